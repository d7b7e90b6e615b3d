//! One client: what it has said, where its transaction stands, and the loop that moves bytes.
//!
//! Messages are taken in units: one Query, or everything up to a Sync. One unit is on its way at a
//! time; within a unit messages are passed on as they come, so a pipeline up to its Sync travels
//! whole. Between units the connection to the primary goes back to the pool unless a transaction
//! is open.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use atoll_pgwire::backend::{Severity, Status, put_ready_for_query};
use atoll_pgwire::frontend::tag;
use atoll_pgwire::hint::Hint;
use atoll_pgwire::{Peer, decode};
use atoll_topology::ShardId;
use bytes::{Bytes, BytesMut};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use crate::app::Shared;
use crate::backend::{Backend, Statement};
use crate::error::Refusal;
use crate::gate::Pass;
use crate::identify::{Committed, Keys};
use crate::side::{Progress, Reading, Side};
use crate::statement::Kind;

/// Why a step of a session did not go on.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The client is told; the session goes on.
    Refused(Refusal),
    /// The client has gone, or the process ends.
    Gone,
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<atoll_pgwire::FrameError> for Stop {
    fn from(error: atoll_pgwire::FrameError) -> Self {
        Self::Refused(error.into())
    }
}

/// Where the client's transaction stands, as the client sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum State {
    /// None.
    Idle,
    /// BEGIN was answered and is not sent yet: these statements go before the first one.
    Begun(Vec<String>),
    /// A primary is in it.
    Open(Status),
    /// The router has given it up. The client is told once, then hears that it is aborted.
    Failed { untold: Option<Refusal> },
}

/// What a client calls a prepared statement.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) statement: Arc<Statement>,
    pub(crate) kind: Kind,
    pub(crate) hint: Option<Hint>,
    pub(crate) named: Named,
}

/// Which of the two kinds of prepared statements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Named {
    Yes,
    /// Lives on a connection until the next one.
    No,
}

/// What a client calls a portal.
#[derive(Debug, Clone)]
pub(crate) struct Portal {
    pub(crate) prepared: Arc<Prepared>,
    pub(crate) by: ServedBy,
}

/// Who runs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ServedBy {
    Router,
    Primary,
}

/// What a connection to a primary is held for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Only to learn the types of statements: nothing was executed, any shard will do.
    Describe,
    Execute,
}

/// What the primary still has to say.
#[derive(Debug, Clone)]
pub(crate) enum Expect {
    /// The end of a preparation of ours.
    Parse(u64),
    Bind,
    Describe(Option<Arc<Statement>>),
    Execute,
    Close(Seen),
    /// Everything up to ReadyForQuery.
    Query,
    Sync(Seen),
    /// An answer of ours, whose turn it is after what stands before it.
    Ours(Bytes),
}

/// Whether the client knows of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen {
    ByClient,
    ByRouter,
}

/// A connection to a primary, while this client has it.
pub(crate) struct Attached {
    pub(crate) backend: Backend,
    pub(crate) shard: ShardId,
    pub(crate) purpose: Purpose,
    pub(crate) expects: VecDeque<Expect>,
    /// Since when nothing is on its way.
    pub(crate) idle_since: Instant,
    /// Counts the transaction.
    pub(crate) _pass: Pass,
}

/// One thing sent to a primary, so that it can be sent to another one.
#[derive(Debug, Clone)]
pub(crate) struct Sent {
    pub(crate) needs: Option<Arc<Prepared>>,
    pub(crate) bytes: Bytes,
    pub(crate) expects: Vec<Expect>,
}

/// The messages of a unit, as long as they can be sent again: it is the first of its transaction,
/// and the client has seen nothing of its results.
#[derive(Debug)]
pub(crate) struct Replay {
    /// The state before it.
    pub(crate) before: State,
    pub(crate) sent: Vec<Sent>,
    pub(crate) bytes: usize,
    /// How often it was sent again.
    pub(crate) tries: u8,
}

/// One Query, or everything up to a Sync.
#[derive(Debug, Default)]
pub(crate) struct Unit {
    /// All of it was sent; its ReadyForQuery is awaited and nothing is taken from the client.
    pub(crate) waiting: bool,
    /// Something was sent to a primary.
    pub(crate) sent: bool,
    /// Something was executed, or asked to be.
    pub(crate) executed: bool,
    /// Something was sent that may commit.
    pub(crate) may_commit: bool,
    /// An error was told: what follows is skipped up to Sync.
    pub(crate) failed: bool,
    /// A commit stopped waiting for its standbys: all further answers are void.
    pub(crate) unknown: bool,
    /// Told in place of the primary's next error, which we have provoked.
    pub(crate) instead: Option<Refusal>,
    /// "permission denied": kept until it is known whether the shard has moved.
    pub(crate) denied: Option<Bytes>,
    pub(crate) replay: Option<Replay>,
    /// Answers held back while the unit may have to be sent again.
    pub(crate) staged: BytesMut,
    pub(crate) last_tag: Bytes,
}

/// Session settings that follow the client from one connection to the next: name to statement.
#[derive(Debug, Default)]
pub(crate) struct Settings {
    pub(crate) startup: BTreeMap<String, String>,
    pub(crate) session: BTreeMap<String, String>,
    /// Made in the transaction in progress; `None` = reset.
    pub(crate) pending: BTreeMap<String, Option<String>>,
}

impl Settings {
    pub(crate) fn reset_all(&mut self) {
        self.session = self.startup.clone();
        self.pending.clear();
    }

    pub(crate) fn apply(&mut self, name: String, statement: Option<String>) {
        let statement = statement.or_else(|| self.startup.get(&name).cloned());
        match statement {
            Some(statement) => self.session.insert(name, statement),
            None => self.session.remove(&name),
        };
    }

    fn end_transaction(&mut self, committed: Committed) {
        for (name, statement) in std::mem::take(&mut self.pending) {
            if committed == Committed::Yes {
                self.apply(name, statement);
            }
        }
    }
}

/// One client.
pub(crate) struct Session {
    pub(crate) shared: Arc<Shared>,
    pub(crate) client: Side,
    /// Parameters of a session as the client was told.
    pub(crate) told: BTreeMap<String, String>,
    pub(crate) keys: Keys,
    pub(crate) settings: Settings,
    pub(crate) statements: BTreeMap<Bytes, Arc<Prepared>>,
    pub(crate) portals: BTreeMap<Bytes, Portal>,
    pub(crate) state: State,
    pub(crate) attached: Option<Attached>,
    pub(crate) unit: Unit,
    pub(crate) cancels: mpsc::Receiver<()>,
    pub(crate) changes: watch::Receiver<u64>,
}

enum Event {
    Moved,
    TableChanged,
    BackendLost(String),
    ClientGone,
    Cancel,
    LeftIdle,
    Ending,
    Ended,
}

impl Session {
    /// Serves until the client or the process ends.
    pub(crate) async fn serve(mut self) {
        let end = self.run().await;
        if let Stop::Refused(refusal) = end {
            refusal.put(&mut self.client.output, Severity::Fatal);
            // The client may be gone; there is nobody else to tell.
            drop(self.client.flush().await);
        }
        self.leave().await;
    }

    async fn run(&mut self) -> Stop {
        let shutdown = self.shared.runtime.shutdown();
        let mut ending: Option<Instant> = None;
        loop {
            if let Err(stop) = self.work().await {
                return stop;
            }
            let resting = self.state == State::Idle && !self.unit.sent && !self.unit.waiting;
            if ending.is_some() && resting && self.client.output.is_empty() {
                return Stop::Refused(Refusal::ShuttingDown);
            }
            let left_idle_at = self.left_idle_at();
            let (from_client, from_backend) = self.readings();
            let moved = bytes(
                &mut self.client,
                self.attached.as_mut(),
                from_client,
                from_backend,
            );
            let event = tokio::select! {
                event = moved => event,
                Some(()) = self.cancels.recv() => Event::Cancel,
                Ok(()) = self.changes.changed() => Event::TableChanged,
                () = at(left_idle_at) => Event::LeftIdle,
                () = shutdown.requested(), if ending.is_none() => Event::Ending,
                () = at(ending) => Event::Ended,
            };
            match event {
                Event::Moved => {}
                Event::TableChanged => self.leave_outdated(),
                Event::BackendLost(why) => self.on_lost(&why),
                Event::ClientGone => return Stop::Gone,
                Event::Cancel => self.on_cancel().await,
                Event::LeftIdle => self.roll_back_idle().await,
                Event::Ending => ending = Some(Instant::now() + self.shared.limits.drain()),
                Event::Ended => return Stop::Refused(Refusal::ShuttingDown),
            }
        }
    }

    /// Does all that can be done with the bytes that are here.
    async fn work(&mut self) -> Result<(), Stop> {
        loop {
            self.take_answers();
            if self.unit.denied.is_some() && self.at_ready() {
                self.after_denial().await?;
                continue;
            }
            if self.unit.waiting || self.is_behind() {
                return Ok(());
            }
            let limits = self.shared.limits.frames();
            let Some(frame) = decode(&mut self.client.input, Peer::Frontend, limits)? else {
                return Ok(());
            };
            if frame.tag() == tag::TERMINATE {
                return Err(Stop::Gone);
            }
            self.on_client(&frame).await?;
        }
    }

    /// Whether more must be written before more is read.
    fn is_behind(&self) -> bool {
        let limit = self.shared.limits.buffer_bytes;
        let waits = |attached: &Attached| attached.backend.side.output.len() > limit;
        self.client.output.len() > limit || self.attached.as_ref().is_some_and(waits)
    }

    /// Whether there is room for more from either end.
    fn readings(&self) -> (Reading, Reading) {
        let limit = self.shared.limits.buffer_bytes;
        // A frame may be longer than the buffer: it is read on while it is being waited for.
        let room = if self.unit.waiting || self.is_behind() {
            limit
        } else {
            self.shared.limits.frame_bytes_max.saturating_add(limit)
        };
        let reading = |has_room| {
            if has_room {
                Reading::Wanted
            } else {
                Reading::Paused
            }
        };
        (
            reading(self.client.input.len() < room),
            reading(self.client.output.len() < limit),
        )
    }

    /// When a transaction that its client leaves idle on a closing shard is rolled back. Only one
    /// whose last answer was ReadyForQuery with nothing sent since.
    fn left_idle_at(&self) -> Option<Instant> {
        let (State::Open(_), Some(attached)) = (&self.state, &self.attached) else {
            return None;
        };
        if self.unit.sent || self.unit.waiting || !attached.expects.is_empty() {
            return None;
        }
        let closed = self.shared.gates.closed_since(attached.shard)?;
        let limit = self.shared.limits.idle_in_closing_transaction();
        Some(closed.max(attached.idle_since) + limit)
    }

    /// The group has a new primary. What the old one, which may be frozen or cut off, has not
    /// answered it never will, or not in a way that counts.
    pub(crate) fn leave_outdated(&mut self) {
        self.take_answers();
        let outdated = self.attached.as_ref().is_some_and(|attached| {
            self.shared
                .is_outdated(&attached.backend.place, attached.shard)
        });
        if outdated {
            self.on_lost("the data group has a new primary");
        }
    }

    async fn roll_back_idle(&mut self) {
        let Some(mut attached) = self.attached.take() else {
            return;
        };
        let limit = self.shared.limits.own_statement();
        // A connection on which the rollback failed is closed, which rolls back too.
        let rolled_back = attached.backend.run(&["ROLLBACK".to_owned()], limit).await;
        if rolled_back.is_ok_and(|own| own.status == Status::Idle) {
            self.shared.pools.give_back(attached.backend);
        }
        self.shared.metrics.rolled_back.inc();
        let why = "The shard is changing hands and the transaction was left idle.".to_owned();
        self.state = State::Failed {
            untold: Some(Refusal::Repeat(why)),
        };
    }

    /// A cancel is passed on only inside an explicit transaction whose COMMIT was not sent; the
    /// commit waits until the signal is surely out.
    async fn on_cancel(&mut self) {
        let (State::Open(_), Some(attached)) = (&self.state, &self.attached) else {
            return;
        };
        if self.unit.may_commit || attached.expects.is_empty() {
            return;
        }
        let limit = self.shared.limits.own_statement();
        let runtime = &self.shared.runtime;
        let cancel =
            crate::backend::cancel(runtime, attached.backend.address, attached.backend.key);
        match tokio::time::timeout(limit, cancel).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.on_lost(&format!("a cancel request failed: {error}")),
            Err(_) => self.on_lost("a cancel request was not answered"),
        }
    }

    /// The client's view of its transaction.
    pub(crate) fn status(&self) -> Status {
        match &self.state {
            State::Idle => Status::Idle,
            State::Begun(_) => Status::Transaction,
            State::Open(status) => *status,
            State::Failed { .. } => Status::Failed,
        }
    }

    /// Whether a primary is executing for this client.
    pub(crate) fn is_engaged(&self) -> bool {
        self.attached
            .as_ref()
            .is_some_and(|attached| attached.purpose == Purpose::Execute)
    }

    pub(crate) fn put_ready(&mut self) {
        let status = self.status();
        put_ready_for_query(&mut self.client.output, status);
    }

    /// The transaction is over for the client.
    pub(crate) fn end_transaction(&mut self, committed: Committed) {
        self.keys.end_transaction(committed);
        self.settings.end_transaction(committed);
        self.portals.clear();
        self.state = State::Idle;
    }

    /// A transaction that had only been begun has failed.
    pub(crate) fn fail_begun(&mut self) {
        if matches!(self.state, State::Begun(_)) {
            self.state = State::Failed { untold: None };
        }
    }

    /// The client is gone: its transaction is rolled back, its connection kept if that is clean.
    async fn leave(&mut self) {
        let Some(mut attached) = self.attached.take() else {
            return;
        };
        if !attached.expects.is_empty() || self.unit.sent {
            return;
        }
        let limit = self.shared.limits.own_statement();
        let rolled_back = attached.backend.run(&["ROLLBACK".to_owned()], limit).await;
        if rolled_back.is_ok_and(|own| own.status == Status::Idle) {
            self.shared.pools.give_back(attached.backend);
        }
    }
}

/// Moves bytes until something has moved.
async fn bytes(
    client: &mut Side,
    attached: Option<&mut Attached>,
    from_client: Reading,
    from_backend: Reading,
) -> Event {
    let backend = async {
        match attached {
            Some(attached) => attached.backend.side.progress(from_backend).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        moved = backend => match moved {
            Ok(Progress::Closed) => Event::BackendLost("the connection was closed".to_owned()),
            Ok(Progress::Read | Progress::Wrote) => Event::Moved,
            Err(error) => Event::BackendLost(error.to_string()),
        },
        moved = client.progress(from_client) => match moved {
            Ok(Progress::Read | Progress::Wrote) => Event::Moved,
            Ok(Progress::Closed) => Event::ClientGone,
            Err(error) => {
                debug!(%error, "client connection failed");
                Event::ClientGone
            }
        },
    }
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}
