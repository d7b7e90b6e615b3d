//! Why there is no plan. Every reason is found, not only the first.

use atoll_detection::guard::Held;
use atoll_ownership::OpKind;
use atoll_topology::{CellId, Epoch, GroupId, MemberId, RegionId, ShardId, Term};
use thiserror::Error;

/// One reason.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refusal {
    /// No such cell, or not one that owns shards.
    #[error("there is no sharded cell {0}")]
    NoSuchCell(String),
    /// No such region.
    #[error("there is no region {0}")]
    NoSuchRegion(RegionId),
    /// No such data group.
    #[error("there is no data group {0}")]
    NoSuchGroup(GroupId),
    /// Everything is there already.
    #[error("there is nothing to do: {0}")]
    NothingToDo(String),
    /// The group has never been opened.
    #[error("group {0} has not been born yet")]
    NotBorn(GroupId),
    /// The world has moved since the verdict.
    #[error("group {group} was judged at term {judged}, and term {open} is open")]
    Stale {
        /// Which group.
        group: GroupId,
        /// What was judged.
        judged: Term,
        /// What is.
        open: Term,
    },
    /// A shard has another owner than the plan was made for.
    #[error("shard {shard} is not owned by {cell} at epoch {epoch} any more")]
    Moved {
        /// Which shard.
        shard: ShardId,
        /// Who owned it.
        cell: CellId,
        /// Under which epoch.
        epoch: Epoch,
    },
    /// The group is going through an op.
    #[error("group {group} is going through a {kind} of term {term}")]
    OpRunning {
        /// Which group.
        group: GroupId,
        /// Its kind.
        kind: OpKind,
        /// Its term.
        term: Term,
    },
    /// The primary is not judged lost, but it cannot be told anything either.
    #[error("{member}, the primary of group {group}, is out of reach and not known to be lost")]
    PrimaryOutOfReach {
        /// Which group.
        group: GroupId,
        /// Its primary.
        member: MemberId,
    },
    /// Too few members can be recruited.
    #[error("group {group} has {reachable} of {members} members within reach; {needed} are needed")]
    TooFewMembers {
        /// Which group.
        group: GroupId,
        /// Members that can be recruited.
        reachable: usize,
        /// All of them.
        members: usize,
        /// `max(F, 1 + k)`.
        needed: usize,
    },
    /// No member could be the primary.
    #[error("group {group} has no member within reach that could lead outside of what is left")]
    NoTarget {
        /// Which group.
        group: GroupId,
    },
    /// The target is too far behind.
    #[error("{member} is {lag_bytes} bytes behind, more than {limit}")]
    Lag {
        /// The target.
        member: MemberId,
        /// How far.
        lag_bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// A transaction would have to be waited for.
    #[error("the oldest transaction on {member} is {age_ms} ms old, more than {limit_ms} ms")]
    OldTransaction {
        /// The primary.
        member: MemberId,
        /// How old.
        age_ms: u64,
        /// The limit.
        limit_ms: u64,
    },
    /// The owner's privilege would not be all that guards the shards.
    #[error(
        "something goes round the owner's privilege on {member}: {what}; mend it (REVOKE, ALTER … \
         OWNER TO, DROP), and plan again"
    )]
    BrokenPrivilege {
        /// The primary.
        member: MemberId,
        /// Rule and object.
        what: String,
    },
    /// The cell that would adopt shards does not report.
    #[error("cell {0} does not report: it cannot adopt shards")]
    CellDown(CellId),
    /// No cell could adopt the shards.
    #[error("no cell is left to adopt shards {shards} of group {group}")]
    NoCell {
        /// Whose shards.
        group: GroupId,
        /// Which, as in `0-24`.
        shards: String,
    },
    /// The adopting cell has no room.
    #[error("cell {cell} would carry {wanted} requests a second; its room ends at {room}")]
    NoHeadroom {
        /// Which cell.
        cell: CellId,
        /// What it would carry.
        wanted: u64,
        /// What it may carry.
        room: u64,
    },
    /// A guard holds automation back.
    #[error(transparent)]
    Held(#[from] Held),
}

/// All reasons; never empty when returned as an error.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub struct Refused(pub Vec<Refusal>);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let reasons: Vec<_> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&reasons.join("\n"))
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self(vec![refusal])
    }
}
