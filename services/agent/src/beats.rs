//! Heartbeats between the members, and what the primary concludes from them.
//!
//! A beat that echoes our number n proves that its sender was there *after we sent n*. So what
//! waited in a socket while we were frozen proves nothing about now.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use atoll_runtime::Runtime;
use atoll_streams::agent::{Beat, Heard};
use atoll_streams::proto::agent as wire;
use atoll_topology::{GroupId, MemberId, Term};
use tokio::sync::{mpsc, watch};
use tokio::time::{Duration, Instant, MissedTickBehavior, interval, sleep};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use tracing::debug;

use crate::peers::Peers;
use crate::protocol::Seen;
use crate::view::View;

/// Every member beats this often.
pub(crate) const BEAT_INTERVAL: Duration = Duration::from_millis(200);

/// A primary that has not heard k standbys under its own term for so long serves nobody.
pub const ISOLATION_LIMIT: Duration = Duration::from_secs(2);

/// Numbers that we remember having sent: twice the isolation limit.
const NUMBERS_KEPT: usize = 20;

/// Beats that wait for a slow connection; more are skipped.
const BEATS_WAITING_MAX: usize = 4;

/// Before a broken stream of beats is opened again.
const AGAIN: Duration = Duration::from_millis(100);

/// What is known of another member.
#[derive(Debug, Clone, Copy)]
struct Contact {
    /// The last moment at which it is known to have been there with this promise.
    proved: Instant,
    /// When its last beat arrived.
    arrived: Instant,
    promise: Term,
}

/// What the beats said.
pub(crate) struct Beats {
    group: GroupId,
    member: MemberId,
    view: watch::Receiver<View>,
    seen: watch::Receiver<Seen>,
    contacts: Mutex<BTreeMap<MemberId, Contact>>,
}

impl Beats {
    pub(crate) fn new(
        group: GroupId,
        member: MemberId,
        view: watch::Receiver<View>,
        seen: watch::Receiver<Seen>,
    ) -> Arc<Self> {
        Arc::new(Self {
            group,
            member,
            view,
            seen,
            contacts: Mutex::default(),
        })
    }

    /// Dials every other member and beats.
    pub(crate) fn dial(self: &Arc<Self>, runtime: &Runtime, peers: &Arc<Peers>) {
        for member in peers.ids() {
            let Some(mut client) = peers.client(member) else {
                continue;
            };
            let (beats, at, shutdown) = (self.clone(), runtime.clone(), runtime.shutdown());
            let work = async move {
                loop {
                    let (sender, beating) = mpsc::channel(BEATS_WAITING_MAX);
                    let line = Line::new(sender);
                    let ticking = beats.clone().beat(line.clone());
                    // Ends with the stream, as it is dropped with it.
                    let ticking = at.tasks().spawn("beats-out", ticking).scoped();
                    match client.beats(ReceiverStream::new(beating)).await {
                        Ok(answers) => beats.hear(answers.into_inner(), &line).await,
                        Err(error) => debug!(%error, "no beats"),
                    }
                    drop(ticking);
                    sleep(AGAIN).await;
                }
            };
            runtime
                .tasks()
                .spawn(format!("beats-{member}"), async move {
                    tokio::select! {
                        () = work => {}
                        () = shutdown.requested() => {}
                    }
                });
        }
    }

    /// The answering end of a stream that another member opened.
    pub(crate) fn answer(
        self: &Arc<Self>,
        runtime: &Runtime,
        incoming: Streaming<wire::Beat>,
    ) -> ReceiverStream<Result<wire::Beat, Status>> {
        let (sender, mut beating) = mpsc::channel(BEATS_WAITING_MAX);
        let (out, answers) = mpsc::channel(BEATS_WAITING_MAX);
        let (beats, shutdown) = (self.clone(), runtime.shutdown());
        let line = Line::new(sender);
        runtime.tasks().spawn("beats-in", async move {
            let pass = async {
                while let Some(beat) = beating.recv().await {
                    if out.send(Ok(beat)).await.is_err() {
                        return;
                    }
                }
            };
            tokio::select! {
                () = beats.hear(incoming, &line) => {}
                () = beats.clone().beat(line.clone()) => {}
                () = pass => {}
                () = shutdown.requested() => {}
            }
        });
        ReceiverStream::new(answers)
    }

    async fn beat(self: Arc<Self>, line: Line) {
        let mut ticks = interval(BEAT_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut view = self.view.clone();
        loop {
            // A change of promise or role is told at once.
            tokio::select! {
                _ = ticks.tick() => {}
                changed = view.changed() => if changed.is_err() { return },
            }
            let beat = {
                let view = view.borrow_and_update();
                let (number, heard) = line.next();
                Beat {
                    group: self.group.clone(),
                    member: self.member.clone(),
                    promise: view.promise,
                    role: view.role,
                    position: self.seen.borrow().end,
                    number,
                    heard,
                }
            };
            match line.sender.try_send(wire::Beat::from(&beat)) {
                // A full line is a slow one: the next beat says more than this one.
                Ok(()) | Err(mpsc::error::TrySendError::Full(_)) => {}
                Err(mpsc::error::TrySendError::Closed(_)) => return,
            }
        }
    }

    async fn hear(&self, mut incoming: Streaming<wire::Beat>, line: &Line) {
        loop {
            match incoming.message().await {
                Ok(Some(message)) => match Beat::try_from(message) {
                    Ok(beat) => self.note(&beat, line),
                    Err(error) => debug!(%error, "a beat that is none"),
                },
                Ok(None) => return,
                Err(error) => {
                    debug!(%error, "beats ended");
                    return;
                }
            }
        }
    }

    fn note(&self, beat: &Beat, line: &Line) {
        if beat.group != self.group {
            return;
        }
        let proved = line.heard(beat);
        let arrived = Instant::now();
        let mut contacts = self.contacts.lock().unwrap_or_else(PoisonError::into_inner);
        let contact = contacts.entry(beat.member.clone()).or_insert(Contact {
            proved: proved.unwrap_or(arrived - ISOLATION_LIMIT),
            arrived,
            promise: beat.promise,
        });
        contact.arrived = arrived;
        if let Some(proved) = proved {
            contact.proved = contact.proved.max(proved);
            contact.promise = beat.promise;
        }
    }

    /// When the others were last heard.
    pub(crate) fn heard(&self) -> Vec<Heard> {
        let now = Instant::now();
        let contacts = self.contacts.lock().unwrap_or_else(PoisonError::into_inner);
        contacts
            .iter()
            .map(|(member, contact)| Heard {
                member: member.clone(),
                ago_ms: u64::try_from((now - contact.arrived).as_millis()).unwrap_or(u64::MAX),
                promise: contact.promise,
            })
            .collect()
    }

    /// The last moment at which `k` others are known to have been there under the term that we lead, or
    /// under the one that they and we have promised to keep it through, where a switch is called off;
    /// none if fewer ever were.
    pub(crate) fn confirmed(&self, led: Term, kept: Term, k: usize) -> Option<Instant> {
        let contacts = self.contacts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut proved: Vec<Instant> = contacts
            .values()
            .filter(|contact| contact.promise == led || contact.promise == kept)
            .map(|contact| contact.proved)
            .collect();
        proved.sort_unstable();
        proved
            .len()
            .checked_sub(k)
            .and_then(|at| proved.get(at))
            .copied()
    }
}

/// One stream's numbers: what we sent when, and the last number of the other end.
#[derive(Clone)]
struct Line {
    sender: mpsc::Sender<wire::Beat>,
    numbers: Arc<Mutex<Numbers>>,
}

#[derive(Default)]
struct Numbers {
    last: u64,
    sent: VecDeque<(u64, Instant)>,
    heard: u64,
}

impl Line {
    fn new(sender: mpsc::Sender<wire::Beat>) -> Self {
        Self {
            sender,
            numbers: Arc::default(),
        }
    }

    fn next(&self) -> (u64, u64) {
        let mut numbers = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        numbers.last += 1;
        let last = numbers.last;
        numbers.sent.push_back((last, Instant::now()));
        if numbers.sent.len() > NUMBERS_KEPT {
            numbers.sent.pop_front();
        }
        (last, numbers.heard)
    }

    /// When we sent what this beat echoes.
    fn heard(&self, beat: &Beat) -> Option<Instant> {
        let mut numbers = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        numbers.heard = numbers.heard.max(beat.number);
        numbers
            .sent
            .iter()
            .find(|(number, _)| *number == beat.heard)
            .map(|(_, at)| *at)
    }
}
