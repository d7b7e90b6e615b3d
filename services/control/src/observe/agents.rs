//! What the agents say, and the way to tell them something.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use atoll_ownership::Progress;
use atoll_streams::agent::{
    AgentReport, MemberStatus, Order, ReportBody, RowsHashed, SchemaApplied,
};
use atoll_topology::{Lsn, MemberId, Position, ShardId};
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

/// A question about rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AskedRows<'a> {
    /// Names the question, and its answers.
    pub(crate) id: &'a str,
    /// Of which shards; none: of all.
    pub(crate) shards: &'a [ShardId],
    /// What the member has to have replayed first.
    pub(crate) at_least: Lsn,
    /// How long it has.
    pub(crate) limit: Duration,
}

#[derive(Default)]
struct State {
    members: BTreeMap<MemberId, Seen>,
    streams: BTreeMap<MemberId, (u64, mpsc::Sender<Order>)>,
    progress: BTreeMap<MemberId, (String, Progress)>,
    schemas: Answers<SchemaApplied>,
    hashes: Answers<RowsHashed>,
    streams_opened: u64,
}

/// Answers to orders, the oldest first; the oldest makes room.
struct Answers<T>(VecDeque<(MemberId, T)>);

impl<T> Default for Answers<T> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<T: Clone> Answers<T> {
    fn keep(&mut self, of: MemberId, answer: T) {
        if self.0.len() >= ANSWERS_MAX {
            self.0.pop_front();
        }
        self.0.push_back((of, answer));
    }

    /// The newest of a member that fits.
    fn newest(&self, of: &MemberId, fits: impl Fn(&T) -> bool) -> Option<T> {
        let mut own = self.0.iter().rev().filter(|(member, _)| member == of);
        own.find(|(_, answer)| fits(answer))
            .map(|(_, answer)| answer.clone())
    }
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
            ReportBody::SchemaApplied(applied) => state.schemas.keep(member, applied),
            ReportBody::RowsHashed(hashed) => state.hashes.keep(member, hashed),
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
        self.with(|state| state.schemas.newest(member, |applied| applied.id == id))
    }

    /// The answer to an order for row hashes, once it is there.
    pub(crate) fn rows_hashed(&self, member: &MemberId, id: &str) -> Option<RowsHashed> {
        self.with(|state| state.hashes.newest(member, |hashed| hashed.id == id))
    }

    /// One member's hashes of the rows of these shards (none: all), once it has replayed its log
    /// that far; or why there are none.
    pub(crate) async fn ask_rows(
        &self,
        member: &MemberId,
        asked: AskedRows<'_>,
    ) -> Result<RowsHashed, String> {
        let order = Order::HashRows {
            id: asked.id.to_owned(),
            shards: asked.shards.to_vec(),
            at_least: asked.at_least,
        };
        if !self.order(member, order) {
            return Err("its agent is not connected".to_owned());
        }
        let answer = self.until(|agents| agents.rows_hashed(member, asked.id));
        match tokio::time::timeout(asked.limit, answer).await {
            Ok(RowsHashed {
                error: Some(error), ..
            }) => Err(error),
            Ok(rows) => Ok(rows),
            Err(_) => Err("no answer in time".to_owned()),
        }
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

#[cfg(test)]
mod tests {
    use atoll_topology::{GroupId, ProcessId};

    use super::*;

    #[test]
    fn the_oldest_answer_makes_room_whoever_gave_it() {
        let agents = Agents::default();
        let member = |id: &str| MemberId::parse(id).unwrap();
        let answer = |of: &str, id: usize| {
            agents.heard(AgentReport {
                process: ProcessId::parse("agent").unwrap(),
                group: GroupId::parse("g1").unwrap(),
                member: member(of),
                unix_ms: 0,
                body: ReportBody::RowsHashed(RowsHashed {
                    id: id.to_string(),
                    lsn: Lsn(0),
                    tables: vec![],
                    error: None,
                }),
            });
        };
        answer("z", 0);
        for id in 1..=ANSWERS_MAX {
            answer("a", id);
        }
        assert_eq!(agents.rows_hashed(&member("z"), "0"), None);
        assert!(agents.rows_hashed(&member("a"), "1").is_some());
    }
}
