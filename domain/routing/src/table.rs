//! The routing table: everything a data plane needs to route one request; immutable, versioned.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use atoll_topology::{
    CellId, CellKind, Epoch, GroupId, MemberId, RegionId, Route, ShardId, ShardScheme, SlotName,
    Term,
};
use serde::{Deserialize, Serialize};

/// Which table: the world that it belongs to, and a number that only grows within it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TableVersion {
    /// Id of the world; a rebuilt store gets a new one, so that its first table is not ignored.
    pub world: String,
    /// Grows with each publication.
    pub number: u64,
}

impl TableVersion {
    /// Whether a node that holds `other` takes this one: another world, or a greater number.
    pub fn supersedes(&self, other: &Self) -> bool {
        self.world != other.world || self.number > other.number
    }
}

impl std::fmt::Display for TableVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.world, self.number)
    }
}

/// Who waits while a shard is switching.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Closed {
    /// Gateways hold new requests; routers let the requests in flight finish.
    Gateways,
    /// Gateways and routers hold.
    All,
}

/// Whether a shard's owner serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// The owner serves.
    Active,
    /// The shard is changing hands or its group its primary; requests wait.
    Switching {
        /// The cell that it leaves (the same as the owner for a pure group failover).
        leaving: CellId,
        /// Who waits.
        closed: Closed,
    },
}

/// One shard's row. `epoch` is the new owner's while it is switching.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardRow {
    /// The owner; the coming one while switching.
    pub cell: CellId,
    /// Names this ownership.
    pub epoch: Epoch,
    /// Whether the owner serves.
    pub phase: Phase,
    /// Where its data is.
    pub group: GroupId,
}

/// One place of a cell where its application answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Where it listens.
    pub address: SocketAddr,
    /// The deployment that it belongs to.
    pub slot: SlotName,
}

/// One cell's row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CellRow {
    /// What it serves.
    pub kind: CellKind,
    /// Its city.
    pub region: RegionId,
    /// Peer ports of its gateways.
    pub gateways: Vec<SocketAddr>,
    /// Its application's instances.
    pub instances: Vec<Instance>,
    /// Share of each slot, in per cent.
    pub weights: BTreeMap<SlotName, u8>,
}

/// One data group's row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRow {
    /// The term and primary that clients are sent to; none before birth.
    pub open: Option<(Term, MemberId)>,
    /// The term that an op in progress will open, with its target: connections for it may be
    /// warmed now, and used after `open` names it.
    pub coming: Option<(Term, MemberId)>,
    /// SQL port of each member.
    pub members: BTreeMap<MemberId, SocketAddr>,
}

/// Everything a data plane needs to route one request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Which table.
    pub version: TableVersion,
    /// How a user id becomes a shard.
    pub scheme: ShardScheme,
    /// One row a shard, by number.
    pub shards: Vec<ShardRow>,
    /// All cells.
    pub cells: BTreeMap<CellId, CellRow>,
    /// All data groups.
    pub groups: BTreeMap<GroupId, GroupRow>,
    /// Round-trip time between regions, in milliseconds, for "nearest".
    #[serde(with = "round_trips")]
    pub round_trip_ms: BTreeMap<(RegionId, RegionId), u32>,
    /// How requests are recognised, in order.
    pub routes: Vec<Route>,
}

impl Table {
    /// The row of a shard, if there is such a shard.
    pub fn shard(&self, shard: ShardId) -> Option<&ShardRow> {
        self.shards.get(usize::from(shard.0))
    }
}

/// A map whose keys are pairs, as a list: JSON's keys are text.
mod round_trips {
    use std::collections::BTreeMap;

    use atoll_topology::RegionId;
    use serde::{Deserialize, Deserializer, Serializer};

    type Trips = BTreeMap<(RegionId, RegionId), u32>;

    pub(super) fn serialize<S: Serializer>(trips: &Trips, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(trips.iter().map(|((from, to), ms)| (from, to, ms)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Trips, D::Error> {
        let list = Vec::<(RegionId, RegionId, u32)>::deserialize(from)?;
        Ok(list
            .into_iter()
            .map(|(from, to, ms)| ((from, to), ms))
            .collect())
    }
}
