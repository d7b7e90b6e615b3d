//! The state of a world on one screen.

use atoll_topology::{CellId, CellKind, GroupId, Lsn, MemberId, ProcessId, RegionId, Term, ZoneId};
use serde::{Deserialize, Serialize};

/// Who leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenStatus {
    /// The open term.
    pub term: Term,
    /// Its primary.
    pub primary: MemberId,
}

/// The one change that a group is going through.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OpStatus {
    /// `switchover`, `failover`, `owner-change`, …
    pub kind: String,
    /// Its term.
    pub term: Term,
    /// The coming primary.
    pub target: MemberId,
    /// The execution that it belongs to.
    pub execution: String,
    /// How far its driver is, in words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub step: String,
}

/// One PostgreSQL with its agent, as the agent last said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberStatus {
    /// Which one.
    pub id: MemberId,
    /// Its city.
    pub region: RegionId,
    /// Its data centre.
    pub zone: ZoneId,
    /// `primary`, `replica`, `down`, `rebuilding`, `lost`; `unheard` when it never reported.
    pub role: String,
    /// The highest term that it has made durable.
    pub promise: Term,
    /// Term and end of its log; none when it cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<(Term, Lsn)>,
    /// Received and not yet replayed.
    pub lag_bytes: u64,
    /// Since it was last heard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_ms: Option<u64>,
    /// Whether that is recent enough.
    pub live: bool,
    /// What a person should know: "stays out until a policy op admits it".
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// One data group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupStatus {
    /// Which one.
    pub name: GroupId,
    /// Who leads; none before birth.
    pub open: Option<OpenStatus>,
    /// The change that it is going through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub op: Option<OpStatus>,
    /// Its shards with their owners: `0-24 hz-1 epoch 2`, and `switching` if so.
    pub owners: Vec<String>,
    /// Its members.
    pub members: Vec<MemberStatus>,
    /// What it would not survive now, in words; empty: it can keep its promise.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub exposed: String,
}

/// One cell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CellStatus {
    /// Which one.
    pub name: CellId,
    /// What it serves.
    pub kind: CellKind,
    /// Its city.
    pub region: RegionId,
    /// What it owns: `0-24`.
    pub shards: String,
    /// Of those, what is switching.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub switching: String,
    /// Live gateways.
    pub gateways: u32,
    /// Live routers.
    pub routers: u32,
    /// Gateways whose last write canary to it was acknowledged, of those that tried: `4/4`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub canary: String,
}

/// One data plane, as it last said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlaneStatus {
    /// Which process.
    pub process: ProcessId,
    /// `gateway`, `sql-router`.
    pub role: String,
    /// Its city.
    pub region: RegionId,
    /// The cell that it serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cell: Option<CellId>,
    /// Number of the table that every one of its threads uses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u64>,
    /// Since it was last heard.
    pub age_ms: u64,
    /// Whether that is recent enough.
    pub live: bool,
    /// Requests of switching shards that wait there.
    pub held: u64,
}

/// The state of a world.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorldStatus {
    /// The world's id.
    pub world: String,
    /// When this was said, in ms since 1970.
    pub unix_ms: u64,
    /// Number of the published table.
    pub table: u64,
    /// Whether automatic failover is on.
    pub automatic: bool,
    /// Whether the replica that says this has no majority of the store: it shows what it last knew,
    /// and changes nothing.
    #[serde(default, skip_serializing_if = "is_false")]
    pub read_only: bool,
    /// Which of several replicas acts, as far as this one knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acting: Option<ProcessId>,
    /// By name.
    pub groups: Vec<GroupStatus>,
    /// By name.
    pub cells: Vec<CellStatus>,
    /// By name.
    pub planes: Vec<PlaneStatus>,
    /// Executions that are not over.
    pub executions: Vec<String>,
    /// What a person should know, the worst first; empty: all is well.
    pub warnings: Vec<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "what serde asks for")]
fn is_false(value: &bool) -> bool {
    !value
}
