//! One member with its disk, its PostgreSQL as far as the protocol can see it, and its agent.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use atoll_topology::{CellId, Epoch, Lsn, MemberId, Position, ShardId, Term};

use crate::driver::Driver;
use crate::member::{Durable, Input, Mark, Member, Output};
use crate::messages::{Call, Grant, LogEnd, Recruit, TermRow};

/// One record of a log; its place in the log is its LSN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Entry {
    /// A promotion: from here on the log is on another timeline.
    Promotion,
    /// An opening transaction: its term row, if it has one, and the grants, all or nothing.
    Opening {
        row: Option<TermRow>,
        grants: Vec<Grant>,
    },
    /// A client's write under the privilege that the log gave its cell.
    Write { number: u64 },
}

/// An entry and the timeline on which it was written.
pub(super) type Logged = (u32, Entry);

/// A commit that waits for its quorum.
#[derive(Debug, Clone)]
pub(super) struct Waiting {
    pub(super) at: usize,
    pub(super) what: Commit,
}

#[derive(Debug, Clone)]
pub(super) enum Commit {
    Write {
        number: u64,
        shard: ShardId,
        epoch: Epoch,
        cell: CellId,
    },
    Opening {
        term: Term,
        row: Option<TermRow>,
    },
}

/// The link of a standby to its upstream.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub(super) upstream: MemberId,
    pub(super) established: bool,
}

pub(super) struct Node {
    pub(super) id: MemberId,
    /// What survives a crash.
    pub(super) disk: Durable,
    pub(super) log: Vec<Logged>,
    /// Whether its agent's process is there.
    pub(super) alive: bool,
    pub(super) member: Member,
    pub(super) driver: Option<Driver>,
    /// Inputs that wait until the outputs of the last one are performed, with who asked.
    pub(super) inbox: VecDeque<(Option<MemberId>, Input)>,
    /// Outputs not performed yet.
    pub(super) queue: VecDeque<Output>,
    /// Who waits for the answer of the call being performed.
    pub(super) caller: Option<MemberId>,
    /// The op that its driver reports as open once the port is.
    pub(super) reporting: Option<String>,
    /// What its driver has asked of others, to ask again.
    pub(super) asked: Vec<(MemberId, Call)>,
    pub(super) postgres: Postgres,
    pub(super) link: Option<Link>,
    pub(super) port: Option<Term>,
    pub(super) waiting: Vec<Waiting>,
    pub(super) promoting: Option<Term>,
    pub(super) rebuild_from: Option<MemberId>,
    pub(super) replay_target: Option<Lsn>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Postgres {
    Down,
    Standby,
    Primary,
}

impl Node {
    pub(super) fn new(id: MemberId, make: impl Fn(MemberId, Durable) -> Member) -> Self {
        let disk = Durable {
            promise: Term::new(1),
            upstream: None,
            mark: Mark::None,
        };
        let member = make(id.clone(), disk.clone());
        Self {
            id,
            disk,
            log: Vec::new(),
            alive: true,
            member,
            driver: None,
            inbox: VecDeque::from([(None, Input::Started)]),
            queue: VecDeque::new(),
            caller: None,
            reporting: None,
            asked: Vec::new(),
            postgres: Postgres::Down,
            link: None,
            port: None,
            waiting: Vec::new(),
            promoting: None,
            rebuild_from: None,
            replay_target: None,
        }
    }

    /// Everything but the disk is gone.
    pub(super) fn crash(&mut self) {
        self.alive = false;
        self.driver = None;
        self.queue.clear();
        self.inbox.clear();
        self.reporting = None;
        self.asked.clear();
        self.caller = None;
        self.postgres_ended();
        self.rebuild_from = None;
        self.replay_target = None;
    }

    pub(super) fn postgres_ended(&mut self) {
        self.postgres = Postgres::Down;
        self.link = None;
        self.port = None;
        self.waiting.clear();
        self.promoting = None;
    }

    /// Timeline on which the log ends.
    pub(super) fn timeline(&self) -> u32 {
        self.log.last().map_or(1, |(timeline, _)| *timeline)
    }

    pub(super) fn rows(&self) -> Vec<TermRow> {
        let row = |(_, entry): &Logged| match entry {
            Entry::Opening { row, .. } => row.clone(),
            Entry::Promotion | Entry::Write { .. } => None,
        };
        self.log.iter().filter_map(row).collect()
    }

    pub(super) fn end(&self) -> LogEnd {
        let term = self.rows().last().map_or(Term::new(1), |row| row.term);
        let lsn = Lsn(self.log.len() as u64);
        LogEnd {
            position: Position { term, lsn },
            timeline: self.timeline(),
        }
    }

    pub(super) fn recruit(&self) -> Option<Recruit> {
        let readable = self.postgres != Postgres::Down && self.member.readable();
        readable.then(|| Recruit {
            end: self.end(),
            history: self.rows(),
        })
    }

    pub(super) fn writes(&self) -> BTreeSet<u64> {
        let write = |(_, entry): &Logged| match entry {
            Entry::Write { number } => Some(*number),
            Entry::Promotion | Entry::Opening { .. } => None,
        };
        self.log.iter().filter_map(write).collect()
    }

    /// The privilege that the log gives: by shard, its owner.
    pub(super) fn owners(&self) -> BTreeMap<ShardId, Grant> {
        let mut owners = BTreeMap::new();
        for (_, entry) in &self.log {
            if let Entry::Opening { grants, .. } = entry {
                owners.extend(grants.iter().map(|grant| (grant.shard, grant.clone())));
            }
        }
        owners
    }

    /// Where this log leaves the timeline of its last term row: at the promotion after it, or at
    /// its end.
    pub(super) fn fork(&self) -> Lsn {
        let last = self
            .log
            .iter()
            .rposition(|(_, entry)| matches!(entry, Entry::Opening { row: Some(_), .. }));
        let timeline = last
            .and_then(|at| self.log.get(at))
            .map_or(1, |(timeline, _)| *timeline);
        let after = last.map_or(0, |at| at + 1);
        let left = self
            .log
            .iter()
            .skip(after)
            .position(|(on, _)| *on != timeline);
        Lsn(left.map_or(self.log.len(), |offset| after + offset) as u64)
    }
}
