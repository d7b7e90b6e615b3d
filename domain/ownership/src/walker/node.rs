//! One member with its disk, its PostgreSQL as far as the protocol can see it, and its agent.

use std::collections::VecDeque;

use atoll_topology::{Lsn, MemberId, ShardId, Term};

use super::log::{Cell, Log};
use crate::driver::Driver;
use crate::member::{Durable, Input, Mark, Member, Output};
use crate::messages::{Call, Grant, JoinPath, Recruit, TermRow};
use crate::rejoin::Rejoin;

/// A member, by its place in `World::nodes`.
pub(super) type At = u8;

/// The list of awaited standbys that a PostgreSQL has been given.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Awaited {
    pub(super) members: Vec<At>,
    pub(super) k: u8,
}

/// A statement on its way through a backend: whoever sent it may be gone when it executes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Statement {
    /// Whether its session still stands.
    pub(super) heard: bool,
    /// The run of the driver that sent it.
    pub(super) run: u32,
    pub(super) what: Work,
}

/// Who waits for what follows from an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Asker {
    Nobody,
    /// Who called.
    Member(At),
    /// This run of the local driver.
    Driver(u32),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Work {
    /// An opening transaction with a term row.
    Opening {
        term: Term,
        grants: Vec<Grant>,
        /// Members and k of the op's record, as the row will name them.
        listed: Awaited,
        in_place: bool,
    },
    /// An owner change in place.
    Owners { grants: Vec<Grant> },
    /// The barrier of a policy change.
    Policy { number: u64 },
    /// A client's write.
    Write { shard: ShardId, cell: Cell },
}

/// A commit that waits for its quorum.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Waiting {
    pub(super) at: usize,
    pub(super) heard: bool,
    pub(super) run: u32,
    pub(super) what: Commit,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Commit {
    Write {
        number: u32,
        shard: ShardId,
        epoch: atoll_topology::Epoch,
        cell: Cell,
    },
    Opening {
        term: Term,
        row: TermRow,
        in_place: bool,
    },
    Owners,
    Policy {
        number: u64,
    },
}

/// The link of a standby to its upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Link {
    pub(super) upstream: At,
    pub(super) term: Term,
    pub(super) established: bool,
    /// What the upstream knows that the standby has promised: by its greeting, or by an answer
    /// since.
    pub(super) known: Term,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Postgres {
    Down,
    /// Reads its log, and takes more of it; cannot be asked yet.
    Starting,
    Standby,
    Primary,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Node {
    pub(super) id: MemberId,
    pub(super) group: u8,
    /// What survives a crash: the promise file, the volume, the log and how much of it a rewound
    /// directory needs before it can be read.
    pub(super) disk: Durable,
    pub(super) volume: u8,
    pub(super) log: Log,
    pub(super) needs: usize,
    /// The highest promise that it ever made durable; nobody in the protocol knows it.
    pub(super) promised: Term,
    /// Whether its agent's process is there.
    pub(super) alive: bool,
    pub(super) member: Member,
    pub(super) driver: Option<Driver>,
    /// What it knows of the others while it leads.
    pub(super) rejoin: Rejoin,
    /// Counts its drivers: what an earlier one asked for is answered to nobody.
    pub(super) run: u32,
    /// The cells that its driver's order takes the shards from, as the record says.
    pub(super) leaving: Vec<(ShardId, Cell)>,
    /// Inputs that wait until the outputs of the last one are performed, with who asked.
    pub(super) inbox: VecDeque<(Asker, Input)>,
    /// Outputs not performed yet.
    pub(super) queue: VecDeque<Output>,
    /// Who waits for what follows from the input that is being performed.
    pub(super) asker: Asker,
    /// Whether its driver waits for the port to open before it reports.
    pub(super) reporting: bool,
    /// What its driver last asked of each, to ask again.
    pub(super) asked: Vec<(At, Call)>,
    pub(super) postgres: Postgres,
    pub(super) awaited: Awaited,
    /// The last policy order that it took, under the term that it serves.
    pub(super) policy: u64,
    pub(super) link: Option<Link>,
    /// What a standby of its must be known to have promised before anything passes.
    pub(super) needed: Term,
    pub(super) port: Option<Term>,
    pub(super) statements: Vec<Statement>,
    pub(super) waiting: VecDeque<Waiting>,
    pub(super) promoting: Option<(Term, Asker)>,
    pub(super) rebuilding: Option<(At, Term, JoinPath)>,
    pub(super) replay_target: Option<Lsn>,
}

impl Node {
    pub(super) fn new(member: Member, group: u8, awaited: Awaited) -> Self {
        let disk = member.durable().clone();
        Self {
            id: member.id().clone(),
            group,
            promised: disk.promise,
            disk,
            volume: 1,
            log: Log::default(),
            needs: 0,
            alive: true,
            member,
            driver: None,
            rejoin: Rejoin::default(),
            run: 0,
            leaving: Vec::new(),
            inbox: VecDeque::from([(Asker::Nobody, Input::Started)]),
            queue: VecDeque::new(),
            asker: Asker::Nobody,
            reporting: false,
            asked: Vec::new(),
            postgres: Postgres::Down,
            awaited,
            policy: 0,
            link: None,
            needed: Term::ZERO,
            port: None,
            statements: Vec::new(),
            waiting: VecDeque::new(),
            promoting: None,
            rebuilding: None,
            replay_target: None,
        }
    }

    /// The volume's nonce, as the record admits it.
    pub(super) fn nonce(&self) -> String {
        format!("{}{}", self.id, self.volume)
    }

    /// Everything but the disk is gone; a directory that was being rebuilt is of no use.
    pub(super) fn crash(&mut self) {
        self.alive = false;
        self.forget_driver();
        self.rejoin.lead(Term::ZERO, 0, std::iter::empty());
        self.queue.clear();
        self.inbox.clear();
        self.asker = Asker::Nobody;
        self.needed = Term::ZERO;
        self.postgres_ended();
        if self.rebuilding.take().is_some() {
            self.log.truncate(0);
        }
    }

    pub(super) fn forget_driver(&mut self) {
        self.driver = None;
        self.reporting = false;
        self.asked.clear();
        self.replay_target = None;
    }

    pub(super) fn postgres_ended(&mut self) {
        self.postgres = Postgres::Down;
        self.link = None;
        self.port = None;
        self.statements.clear();
        self.waiting.clear();
        self.promoting = None;
        self.policy = 0;
    }

    /// Sessions end, backends do not.
    pub(super) fn cut_sessions(&mut self) {
        self.port = None;
        self.statements.iter_mut().for_each(|s| s.heard = false);
        self.waiting.iter_mut().for_each(|w| w.heard = false);
    }

    /// Between two inputs.
    pub(super) fn idle(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether it leads, and others may have to wait until this one has come up.
    pub(super) fn waits_for(&self, other: &MemberId) -> bool {
        let term = self.member.leading();
        term.is_some_and(|term| term != self.rejoin.term() || self.rejoin.waited_for(other))
    }

    /// Whether the log can be read by its agent.
    pub(super) fn recruit(&self) -> Option<Recruit> {
        let up = matches!(self.postgres, Postgres::Standby | Postgres::Primary);
        let readable = up && self.member.readable() && self.log.len() >= self.needs;
        readable.then(|| Recruit {
            end: self.log.end(),
            history: self.log.rows().to_vec(),
            left: self.log.fork(),
            primary: self.postgres == Postgres::Primary,
        })
    }

    /// Its directory is gone, and what was promised with it.
    pub(super) fn lose_volume(&mut self) {
        self.log = Log::default();
        self.needs = 0;
        self.disk.mark = Mark::Lost;
    }

    /// An empty directory, admitted with a new volume at this term.
    pub(super) fn admitted(&mut self, volume: u8, term: Term) {
        self.volume = volume;
        self.disk = Durable {
            promise: term,
            upstream: None,
            mark: Mark::None,
        };
    }
}
