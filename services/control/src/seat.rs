//! Which replica acts, so that they do not tread on one another's feet. Any of them may: the seat is
//! a preference that no safety rests on (every write says what it expects to find), and it shows
//! whether there is a majority of the store behind this replica.
//!
//! The holder writes a new number under one key four times a second; whoever sees none for a second
//! takes the seat. A holder that is not fit to act lets it go stale, so that a fit one can take it:
//! one that hears few members, or one whose tables do not go out (in a rolling upgrade), with which
//! no op would come to its end. Where nobody else is there, it acts after all, and publishes.

use std::sync::Arc;
use std::time::Duration;

use atoll_store::{Expect, StoreError, Txn};
use atoll_topology::ProcessId;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use crate::app::Control;
use crate::stored::{decode, encode};

const KEY: &str = "/control/seat";
/// How often the holder says that it is there, and the others look.
const BEAT: Duration = Duration::from_millis(250);
/// A holder without a new beat in so many looks is replaced. Looks are counted, not time: while the
/// store answers nobody, nobody can beat.
const LOOKS: u32 = 4;
/// The same, where the one who would replace it is not fit either.
const LOOKS_OF_THE_UNFIT: u32 = 12;
/// The same, where it is an unfit holder itself: everybody else has had the time to take the seat.
const LOOKS_OF_THE_HOLDER: u32 = 16;
/// A replica that could not read the store for so long is read-only; longer than an election among
/// the store's nodes.
const STORE_SILENCE: Duration = Duration::from_millis(2_000);

/// What a replica may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It begins and continues ops.
    Acts,
    /// Another one does.
    Waits {
        /// Who, if it is known.
        holder: Option<ProcessId>,
    },
    /// It has no majority of the store, and only shows what it last knew.
    ReadOnly {
        /// What the store said.
        reason: String,
    },
}

/// This replica's standing.
pub(crate) struct Seat {
    standing: watch::Sender<Standing>,
    process: Option<ProcessId>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Held {
    holder: ProcessId,
    beat: u64,
}

impl Seat {
    /// Of a replica that is the only one.
    pub(crate) fn alone() -> Self {
        Self {
            standing: watch::Sender::new(Standing::Acts),
            process: None,
        }
    }

    /// Of one of several, which goes by this name.
    pub(crate) fn shared(process: ProcessId) -> Self {
        Self {
            standing: watch::Sender::new(Standing::Waits { holder: None }),
            process: Some(process),
        }
    }

    /// Now.
    pub(crate) fn standing(&self) -> Standing {
        self.standing.borrow().clone()
    }

    /// Which replica acts, as far as this one knows.
    pub(crate) fn acting(&self) -> Option<ProcessId> {
        match self.standing() {
            Standing::Acts => self.process.clone(),
            Standing::Waits { holder } => holder,
            Standing::ReadOnly { .. } => None,
        }
    }

    /// Whether this replica begins and continues ops.
    pub(crate) fn acts(&self) -> bool {
        *self.standing.borrow() == Standing::Acts
    }

    /// Waits until this replica acts.
    pub(crate) async fn until_acts(&self) {
        self.until(|standing| *standing == Standing::Acts).await;
    }

    /// Waits until it does not.
    pub(crate) async fn until_idle(&self) {
        self.until(|standing| *standing != Standing::Acts).await;
    }

    async fn until(&self, holds: impl FnMut(&Standing) -> bool) {
        // The sender lives as long as `self`.
        let mut standing = self.standing.subscribe();
        let _ended = standing.wait_for(holds).await;
    }

    fn stand(&self, standing: Standing) {
        self.standing.send_if_modified(|now| {
            if *now == standing {
                return false;
            }
            match &standing {
                Standing::Acts => info!("this replica acts"),
                Standing::Waits { holder } => {
                    let holder = holder.as_ref().map(ToString::to_string);
                    info!(holder, "this replica does not act");
                }
                Standing::ReadOnly { reason } => {
                    warn!(
                        reason,
                        "no majority of the store: this replica is read-only"
                    );
                }
            }
            *now = standing;
            true
        });
    }
}

/// Takes the seat when nobody holds it, and keeps it, until the runtime ends; then it is left.
pub(crate) async fn run(control: Arc<Control>, process: ProcessId) {
    let mut sitting = Sitting {
        control: control.clone(),
        process,
        beat: 0,
        seen: None,
        heard: Instant::now(),
    };
    let shutdown = control.runtime.shutdown();
    let work = async {
        loop {
            sitting.look().await;
            sleep(BEAT).await;
        }
    };
    tokio::select! {
        () = work => {}
        () = shutdown.requested() => {}
    }
    sitting.leave().await;
}

struct Sitting {
    control: Arc<Control>,
    process: ProcessId,
    beat: u64,
    /// The seat as it was seen last, and how often it was looked at in vain.
    seen: Option<(Expect, u32)>,
    /// When the store answered last.
    heard: Instant,
}

impl Sitting {
    async fn look(&mut self) {
        let asked = Instant::now();
        let result = match timeout(STORE_SILENCE, self.step()).await {
            Ok(result) => result,
            Err(_) => Err(StoreError::Unavailable {
                reason: "no answer in time".to_owned(),
            }),
        };
        match result {
            Ok(standing) => {
                self.heard = asked;
                self.control.seat.stand(standing);
            }
            // The next look tells.
            Err(StoreError::Conflict { .. } | StoreError::OutcomeUnknown { .. }) => {}
            Err(_) if self.heard.elapsed() < STORE_SILENCE => {}
            Err(error) => self.control.seat.stand(Standing::ReadOnly {
                reason: error.to_string(),
            }),
        }
    }

    async fn step(&mut self) -> Result<Standing, StoreError> {
        let Some(found) = self.control.store.get(KEY).await? else {
            if self.control.publisher.publishes() {
                return self.sit(Expect::Absent).await;
            }
            let stays = Standing::Waits { holder: None };
            return self.wait(Expect::Absent, stays, LOOKS_OF_THE_UNFIT).await;
        };
        let held: Held = decode(KEY, &found.value)?;
        let expect = Expect::Revision(found.revision);
        if held.holder == self.process {
            self.beat = self.beat.max(held.beat);
            if self.fit() || !self.control.seat.acts() {
                return self.sit(expect).await;
            }
            let stays = Standing::Acts;
            return self.wait(expect, stays, LOOKS_OF_THE_HOLDER).await;
        }
        let patience = if self.fit() {
            LOOKS
        } else {
            LOOKS_OF_THE_UNFIT
        };
        let stays = Standing::Waits {
            holder: Some(held.holder),
        };
        self.wait(expect, stays, patience).await
    }

    /// Stays as it is until the seat was looked at so often without a new beat; then takes it.
    async fn wait(
        &mut self,
        expect: Expect,
        stays: Standing,
        patience: u32,
    ) -> Result<Standing, StoreError> {
        let looks = match self.seen {
            Some((seen, looks)) if seen == expect => looks + 1,
            _ => 0,
        };
        self.seen = Some((expect, looks));
        if looks < patience {
            return Ok(stays);
        }
        info!(silent = ?stays, "taking the seat");
        // Who sits there publishes: without tables no op ends.
        if !self.control.publisher.publishes() {
            self.control.publisher.claim().await?;
        }
        self.sit(expect).await
    }

    async fn sit(&mut self, expect: Expect) -> Result<Standing, StoreError> {
        self.beat += 1;
        let held = Held {
            holder: self.process.clone(),
            beat: self.beat,
        };
        let txn = Txn::new().expect(KEY, expect).put(KEY, encode(&held));
        self.control.store.txn(txn).await?;
        Ok(Standing::Acts)
    }

    /// Whether the seat is in good hands here.
    fn fit(&self) -> bool {
        self.hears() && self.control.publisher.publishes()
    }

    /// Whether most members are heard here: else it is rather this replica that is cut off.
    fn hears(&self) -> bool {
        let groups = self.control.topology.groups.values();
        let all: usize = groups.map(|group| group.members.len()).sum();
        let members = self.control.agents.members();
        let live = members.values().filter(|seen| seen.live()).count();
        live * 2 > all
    }

    /// Gives the seat up, so that nobody need wait for our silence.
    async fn leave(&self) {
        if !self.control.seat.acts() {
            return;
        }
        let left = async {
            let found = self.control.store.get(KEY).await.ok()??;
            let held: Held = decode(KEY, &found.value).ok()?;
            if held.holder != self.process {
                return None;
            }
            let expect = Expect::Revision(found.revision);
            let txn = Txn::new().expect(KEY, expect).delete(KEY);
            self.control.store.txn(txn).await.ok()
        };
        // Without it the others wait a second.
        let _late = timeout(BEAT, left).await;
    }
}
