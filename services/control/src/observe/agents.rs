//! What the agents say, and the way to tell them something.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use atoll_ownership::Progress;
use atoll_streams::agent::{
    AgentReport, MemberStatus, Order, ReportBody, RowsHashed, SchemaApplied,
};
use atoll_topology::{MemberId, Position};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// An agent that has not reported for this long is not reckoned with.
pub(crate) const LIVE: Duration = Duration::from_millis(1_000);
/// Orders that wait for one agent's stream; beyond it, the stream is as good as dead.
pub(crate) const ORDERS_MAX: usize = 64;
/// Answers that are kept for whoever asked.
const ANSWERS_MAX: usize = 1_024;

/// One member as its agent describes it.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// The last status.
    pub(crate) status: MemberStatus,
    /// When it was heard, on our clock.
    pub(crate) heard: Instant,
}

impl Seen {
    /// Whether it was heard lately.
    pub(crate) fn live(&self) -> bool {
        self.heard.elapsed() < LIVE
    }

    /// How far its log goes, if it can be read.
    pub(crate) fn position(&self) -> Option<Position> {
        self.status.position.map(|end| end.position)
    }
}

#[derive(Default)]
struct State {
    members: BTreeMap<MemberId, Seen>,
    streams: BTreeMap<MemberId, (u64, mpsc::Sender<Order>)>,
    progress: BTreeMap<MemberId, (String, Progress)>,
    schemas: BTreeMap<(MemberId, String), SchemaApplied>,
    hashes: BTreeMap<(MemberId, String), RowsHashed>,
    streams_opened: u64,
}

/// All agents.
pub(crate) struct Agents {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

impl Default for Agents {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            changed: watch::Sender::new(0),
        }
    }
}

impl Agents {
    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// An agent's stream has come up; its orders go out of the receiver. The number names the
    /// stream, so that the end of an older one does not end this one.
    pub(crate) fn connected(&self, member: &MemberId) -> (u64, mpsc::Receiver<Order>) {
        let (sender, receiver) = mpsc::channel(ORDERS_MAX);
        let number = self.with(|state| {
            state.streams_opened += 1;
            state
                .streams
                .insert(member.clone(), (state.streams_opened, sender));
            state.streams_opened
        });
        self.changed.send_modify(|count| *count += 1);
        (number, receiver)
    }

    /// A stream has ended.
    pub(crate) fn disconnected(&self, member: &MemberId, number: u64) {
        self.with(|state| {
            if state
                .streams
                .get(member)
                .is_some_and(|(current, _)| *current == number)
            {
                state.streams.remove(member);
            }
        });
    }

    /// A report has come in.
    pub(crate) fn heard(&self, report: AgentReport) {
        let AgentReport { member, body, .. } = report;
        self.with(|state| match body {
            ReportBody::Status(status) => {
                let seen = Seen {
                    status,
                    heard: Instant::now(),
                };
                state.members.insert(member, seen);
            }
            ReportBody::Progress { op, progress, .. } => {
                state.progress.insert(member, (op, progress));
            }
            ReportBody::SchemaApplied(applied) => {
                if state.schemas.len() >= ANSWERS_MAX {
                    state.schemas.pop_first();
                }
                state.schemas.insert((member, applied.id.clone()), applied);
            }
            ReportBody::RowsHashed(hashed) => {
                if state.hashes.len() >= ANSWERS_MAX {
                    state.hashes.pop_first();
                }
                state.hashes.insert((member, hashed.id.clone()), hashed);
            }
        });
        self.changed.send_modify(|count| *count += 1);
    }

    /// Sends an order, if the agent has a stream that takes it.
    pub(crate) fn order(&self, member: &MemberId, order: Order) -> bool {
        self.with(|state| {
            state
                .streams
                .get(member)
                .is_some_and(|(_, sender)| sender.try_send(order).is_ok())
        })
    }

    /// Names the stream that an agent has now; another number means that it came back.
    pub(crate) fn stream(&self, member: &MemberId) -> Option<u64> {
        self.with(|state| state.streams.get(member).map(|(number, _)| *number))
    }

    /// One member.
    pub(crate) fn member(&self, member: &MemberId) -> Option<Seen> {
        self.with(|state| state.members.get(member).cloned())
    }

    /// All members that were ever heard.
    pub(crate) fn members(&self) -> BTreeMap<MemberId, Seen> {
        self.with(|state| state.members.clone())
    }

    /// How far a driver is with an op.
    pub(crate) fn progress(&self, member: &MemberId, op: &str) -> Option<Progress> {
        self.with(|state| {
            let (of, progress) = state.progress.get(member)?;
            (of == op).then(|| progress.clone())
        })
    }

    /// The answer to a schema order, once it is there.
    pub(crate) fn schema_applied(&self, member: &MemberId, id: &str) -> Option<SchemaApplied> {
        self.with(|state| state.schemas.get(&(member.clone(), id.to_owned())).cloned())
    }

    /// The answer to an order for row hashes, once it is there.
    pub(crate) fn rows_hashed(&self, member: &MemberId, id: &str) -> Option<RowsHashed> {
        self.with(|state| state.hashes.get(&(member.clone(), id.to_owned())).cloned())
    }

    /// Waits until `found` finds something; looks again at each report, and often enough to
    /// notice an agent that fell silent.
    pub(crate) async fn until<T>(&self, found: impl Fn(&Self) -> Option<T>) -> T {
        let mut changed = self.changed.subscribe();
        loop {
            changed.borrow_and_update();
            if let Some(found) = found(self) {
                return found;
            }
            // The sender lives as long as `self`, so the only other end is the time-out.
            let _ended = tokio::time::timeout(LIVE / 4, changed.changed()).await;
        }
    }
}
