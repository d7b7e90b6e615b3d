//! What drivers, members and control say to one another. Every call carries a term and is refused
//! below the promise.

use std::fmt;

use atoll_topology::{CellId, Epoch, GroupId, Lsn, MemberId, Position, ShardId, Term};
use serde::{Deserialize, Serialize};

/// A row of `atoll.term`: the log's own account of who led from where.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TermRow {
    /// The primaryship.
    pub term: Term,
    /// PostgreSQL's timeline on which it was written.
    pub timeline: u32,
    /// Where this primaryship's log leaves the timeline of the row before it: the switch point
    /// that the timeline's history names for that timeline (a promotion in between that wrote no
    /// row counts), or the log's end where the timeline is the same.
    pub fork: Lsn,
    /// Who leads.
    pub primary: MemberId,
    /// All members at that time.
    pub members: Vec<MemberId>,
    /// Awaited standbys.
    pub k: u8,
    /// The execution that opened it, for people.
    pub op: String,
}

/// The end of a member's log, as the member itself reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LogEnd {
    /// Term of the last term row, and the LSN at which the log ends.
    pub position: Position,
    /// Timeline on which the log ends. It differs from that of the last term row where a promotion
    /// never wrote one.
    pub timeline: u32,
}

/// What a recruit shows: its log can be read, and this is where it ends.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Recruit {
    /// End of its log.
    pub end: LogEnd,
    /// Its term rows, oldest first.
    pub history: Vec<TermRow>,
    /// Where its log leaves the timeline of its last term row: at a promotion that never wrote one,
    /// or at its end. Where it wins, this is the fork of its row.
    pub left: Lsn,
    /// Whether it is a running primary: where it wins, it goes on, on the timeline that it has.
    pub primary: bool,
}

/// One shard's new owner.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Grant {
    /// Which shard.
    pub shard: ShardId,
    /// Names the new ownership.
    pub epoch: Epoch,
    /// The new owner.
    pub cell: CellId,
}

/// From a driver to a member.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "call", rename_all = "kebab-case")]
pub enum Call {
    /// Take part in nothing older than `term`, cut everything, say where your log ends.
    Prepare {
        /// The op's term.
        term: Term,
    },
    /// You lead: stop serving, keep only the link to `target`, say where your log ends.
    Demote {
        /// The op's term.
        term: Term,
        /// The coming primary.
        target: MemberId,
    },
    /// Take your log from `upstream`.
    Follow {
        /// The op's term, or the term that the sender leads.
        term: Term,
        /// Whose log.
        upstream: MemberId,
        /// The upstream's term rows, oldest first; the coming one too where its fork is known.
        history: Vec<TermRow>,
        /// Whether a log that does not fit may be rewound or cloned, if `upstream` wrote the last
        /// row of `history`: that row is acknowledged by its quorum, or cannot be otherwise; and
        /// from a leader it is this member's turn (`rejoin`).
        settled: bool,
    },
    /// You were demoted: end your PostgreSQL so that its log ends at the fork, and come back as a
    /// standby.
    Halt {
        /// The op's term.
        term: Term,
    },
    /// Call off: promise `term` if your promise is exactly `open`; nothing else changes.
    Keep {
        /// The term that calls off.
        term: Term,
        /// The open term that goes on.
        open: Term,
    },
}

impl Call {
    /// The term that this call carries.
    pub fn term(&self) -> Term {
        match self {
            Self::Prepare { term }
            | Self::Demote { term, .. }
            | Self::Follow { term, .. }
            | Self::Halt { term }
            | Self::Keep { term, .. } => *term,
        }
    }
}

/// How a member's log comes to fit its upstream's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JoinPath {
    /// It fits: stream on.
    Stream,
    /// It left the upstream's line: rewind.
    Rewind,
    /// It left the upstream's line in a way that a rewind cannot see: clone.
    Clone,
}

/// Why a member refused.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "kebab-case")]
pub enum Refused {
    /// It has promised a newer term.
    Promised {
        /// The promise.
        promise: Term,
    },
    /// It does not lead, so it cannot be demoted.
    NotPrimary,
    /// It leads this very term.
    Leading,
    /// It was not demoted, or not prepared, under this term by this process.
    NotReady,
    /// Its directory or its promise was lost; it stays out until a policy op admits it.
    Lost,
    /// What it was asked for failed on its machine; it has cut itself off.
    Failed {
        /// What failed.
        reason: String,
    },
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Promised { promise } => write!(f, "it has promised term {promise}"),
            Self::NotPrimary => write!(f, "it does not lead"),
            Self::Leading => write!(f, "it leads this term"),
            Self::NotReady => write!(f, "it was not brought to this step by this process"),
            Self::Lost => write!(f, "its log was lost; it stays out"),
            Self::Failed { reason } => write!(f, "it failed: {reason}"),
        }
    }
}

/// From a member to a driver.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Answer {
    /// Promised, cut off; a recruit only where its log can be read and its volume is the admitted
    /// one.
    Prepared {
        /// The term of the call.
        term: Term,
        /// Its volume's nonce.
        volume: String,
        /// What makes it a recruit.
        recruit: Option<Recruit>,
    },
    /// Demoted; nothing that it writes is reported to anyone any more.
    Demoted {
        /// The term of the call.
        term: Term,
        /// Last position.
        end: LogEnd,
        /// Its term rows, oldest first.
        history: Vec<TermRow>,
    },
    /// It follows, or says what it would need to.
    Following {
        /// The term of the call.
        term: Term,
        /// How it joins.
        path: JoinPath,
    },
    /// Its PostgreSQL has ended.
    Halted {
        /// The term of the call.
        term: Term,
    },
    /// It promised, and goes on as before.
    Kept {
        /// The term of the call.
        term: Term,
    },
    /// It refused.
    Refused {
        /// The term of the call.
        term: Term,
        /// Why.
        why: Refused,
    },
}

impl Answer {
    /// The term of the call that it answers.
    pub fn term(&self) -> Term {
        match self {
            Self::Prepared { term, .. }
            | Self::Demoted { term, .. }
            | Self::Following { term, .. }
            | Self::Halted { term }
            | Self::Kept { term }
            | Self::Refused { term, .. } => *term,
        }
    }

    /// The promise that was durable before this was answered.
    pub fn promised(&self) -> Option<Term> {
        match self {
            Self::Refused { .. } => None,
            answer => Some(answer.term()),
        }
    }

    /// Whether the same has to be asked again: a member that is coming up, or whose machine failed
    /// it.
    pub fn asks_again(&self) -> bool {
        match self {
            Self::Prepared { recruit, .. } => recruit.is_none(),
            Self::Refused { why, .. } => matches!(why, Refused::NotReady | Refused::Failed { .. }),
            _ => false,
        }
    }
}

/// What kind of change a group goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OpKind {
    /// Planned: the old primary is alive and hands over.
    Switchover,
    /// Unplanned: recruit who can be reached. Birth is a failover too.
    Failover,
    /// The primary stays; shards change hands.
    OwnerChange,
    /// A switchover that is not to be, before anything was cut.
    CallOff,
}

impl fmt::Display for OpKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Switchover => "switchover",
            Self::Failover => "failover",
            Self::OwnerChange => "owner change",
            Self::CallOff => "call-off",
        })
    }
}

/// A member as the record admits it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Admitted {
    /// Which member.
    pub id: MemberId,
    /// The volume that it was admitted with.
    pub volume: String,
}

/// From control to the driver, the target's agent: carry P3–P7 out. May be repeated.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DriveOrder {
    /// Which group.
    pub group: GroupId,
    /// What kind of change.
    pub kind: OpKind,
    /// The op's term; for an owner change the open one.
    pub term: Term,
    /// The open term and its primary; none at birth.
    pub open: Option<(Term, MemberId)>,
    /// The coming primary, who drives.
    pub target: MemberId,
    /// All members.
    pub members: Vec<Admitted>,
    /// Awaited standbys.
    pub k: u8,
    /// The shards that change hands.
    pub grants: Vec<Grant>,
    /// The execution, for people.
    pub op: String,
}

impl DriveOrder {
    /// The row of its opening transaction, on this timeline, forked there.
    pub fn term_row(&self, timeline: u32, fork: Lsn) -> TermRow {
        TermRow {
            term: self.term,
            timeline,
            fork,
            primary: self.target.clone(),
            members: self.members.iter().map(|m| m.id.clone()).collect(),
            k: self.k,
            op: self.op.clone(),
        }
    }
}

/// Where a driver is; goes up to control.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum Progress {
    /// P3, or the unplanned path's recruiting: waiting for answers.
    Recruiting,
    /// P4: the target replays.
    CatchingUp,
    /// P5: the old primary ends, the target is promoted.
    Promoting,
    /// P6: the opening transaction waits for its quorum.
    Opening,
    /// P7 is done: the target serves.
    Open {
        /// The row that was written; none for an owner change.
        row: Option<TermRow>,
    },
    /// The driver cannot go on under this term.
    GaveUp {
        /// Why; control starts the next term with the best recruit it names, if any.
        reason: String,
        /// Who would be the better target.
        better: Option<MemberId>,
    },
}
