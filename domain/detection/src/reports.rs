//! What detection is told. Control fills it from the streams of agents and data planes and from
//! its own records; `at_ms` is always the time of arrival on control's clock.

use std::collections::{BTreeMap, BTreeSet};

use atoll_topology::{
    CellId, Epoch, GroupId, MemberId, ProcessId, RegionId, ShardId, Survives, Term, ZoneId,
};

/// Everything that is known at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reports {
    /// Where the judge sits: the region from which a missing report is seen.
    pub here: RegionId,
    /// All data groups, as their records say.
    pub groups: BTreeMap<GroupId, GroupView>,
    /// All cells.
    pub cells: BTreeMap<CellId, CellView>,
    /// The newest report of each member.
    pub members: BTreeMap<MemberId, MemberReport>,
    /// The newest report of each gateway.
    pub gateways: BTreeMap<ProcessId, GatewayReport>,
}

/// Where a member stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    /// Its zone.
    pub zone: ZoneId,
    /// Its region.
    pub region: RegionId,
}

/// A data group as its record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupView {
    /// What counts as a failure domain.
    pub survives: Survives,
    /// Its members.
    pub members: BTreeMap<MemberId, Home>,
    /// How many standbys a commit waits for.
    pub k: u8,
    /// The open term and its primary; none before birth.
    pub open: Option<(Term, MemberId)>,
    /// The op that is running.
    pub op: Option<OpView>,
    /// Its shards and their owners.
    pub runs: Vec<RunView>,
}

/// A running op.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpView {
    /// Its term.
    pub term: Term,
    /// The coming primary.
    pub target: MemberId,
    /// After this time it is overdue.
    pub deadline_ms: u64,
}

/// Neighbouring shards with one owner and one epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunView {
    /// First shard.
    pub first: ShardId,
    /// Last shard, included.
    pub last: ShardId,
    /// The owner; the coming one while switching.
    pub cell: CellId,
    /// The cell that it leaves while switching.
    pub leaving: Option<CellId>,
    /// Names the ownership.
    pub epoch: Epoch,
}

/// A cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CellView {
    /// Its city.
    pub region: RegionId,
    /// The zones of its slots.
    pub zones: BTreeSet<ZoneId>,
    /// When any process of the cell last reported; none: never.
    pub reported_ms: Option<u64>,
}

/// What a member's agent says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberReport {
    /// When it arrived.
    pub at_ms: u64,
    /// The term that it leads or last led since its agent started; zero: none.
    pub led: Term,
    /// The term whose client port is open; zero: closed.
    pub open: Term,
    /// Whose log it takes, as a standby that is linked.
    pub follows: Option<MemberId>,
    /// The last exit of its PostgreSQL since its agent started.
    pub exit: Option<Exit>,
    /// How long ago it heard each other member, when it sent this; absent: never.
    pub heard_ms_ago: BTreeMap<MemberId, u64>,
}

/// PostgreSQL has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// When, on the agent's clock; it only tells exits apart.
    pub at_ms: u64,
    /// Whether the agent ordered it: then it is no failure.
    pub ordered: bool,
}

/// What a gateway says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayReport {
    /// When it arrived.
    pub at_ms: u64,
    /// Where the gateway stands.
    pub region: RegionId,
    /// How cells look from there.
    pub sees: BTreeMap<CellId, Seen>,
}

/// How a cell looks from a gateway; counts since the gateway started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seen {
    /// Canary writes that were acknowledged within the limit.
    pub canary_ok: u64,
    /// Canary writes that were not.
    pub canary_failed: u64,
    /// Requests answered.
    pub requests: u64,
    /// Of these, failed by the cell.
    pub errors: u64,
    /// 99 % of the answers of the newest window were faster.
    pub latency_p99_ms: u64,
}
