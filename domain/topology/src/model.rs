//! What a world is made of, as values that cannot be wrong: a `Topology` exists only after every
//! rule of `validate` has passed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::{CellId, ClusterId, GroupId, MemberId, RegionId, ShardId, ZoneId};

/// A validated topology.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    /// Cities.
    pub regions: BTreeMap<RegionId, Region>,
    /// Data centres.
    pub zones: BTreeMap<ZoneId, Zone>,
    /// Pools of compute.
    pub clusters: BTreeMap<ClusterId, Cluster>,
    /// Cells of all kinds.
    pub cells: BTreeMap<CellId, Cell>,
    /// Data groups.
    pub groups: BTreeMap<GroupId, DataGroup>,
    /// Which cell owns which shards at birth, and how users map to shards.
    pub shard_map: ShardMap,
    /// How requests are recognised, in order; the first that matches decides.
    pub routes: Vec<Route>,
}

/// A city.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    /// Round-trip time to other regions, in milliseconds; symmetric, absent = 0.
    pub round_trip_ms: BTreeMap<RegionId, u32>,
}

/// A data centre.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Zone {
    /// The city that it stands in.
    pub region: RegionId,
}

/// A pool of compute in a zone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// The data centre that it stands in.
    pub zone: ZoneId,
}

/// What a cell serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CellKind {
    /// Owns shards of users and their data.
    Sharded,
    /// The one writable set of data that cannot be split.
    Global,
    /// A city's read copy of global data.
    City,
}

/// One of a cell's two deployments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// Where it runs; a zone of the cell's region.
    pub zone: ZoneId,
    /// Share of the cell's requests, in per cent; a cell's weights sum to 100.
    pub weight: u8,
}

/// The names of a cell's two deployments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SlotName {
    /// The first.
    Blue,
    /// The second.
    Green,
}

/// A self-contained unit that serves a share of the users.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cell {
    /// What it serves.
    pub kind: CellKind,
    /// Its city.
    pub region: RegionId,
    /// Its deployments.
    pub slots: BTreeMap<SlotName, Slot>,
}

/// What a data group survives without losing a committed row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Survives {
    /// Any one zone.
    Zone,
    /// Any one region.
    Region,
}

/// One PostgreSQL of a data group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// `<group>-<n>`, n from 1 in the order of the file.
    pub id: MemberId,
    /// Where it runs.
    pub zone: ZoneId,
}

/// A primary and its replicas.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataGroup {
    /// Its members, in the order of the file; the first one is the preferred primary.
    pub members: Vec<Member>,
    /// How many standbys a commit waits for.
    pub k: u8,
    /// What it promises to survive.
    pub survives: Survives,
    /// The shards that it stores, ascending.
    pub shards: Vec<ShardId>,
}

/// How a user id becomes a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ShardScheme {
    /// Third- and second-last digit of the id's digits; 100 shards.
    Digits,
    /// XXH64 (seed 0) of the id's bytes, modulo the number of shards.
    Hash,
}

/// Shard to cell, for all shards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardMap {
    /// How a user id becomes a shard.
    pub scheme: ShardScheme,
    /// Number of shards: 100 for `digits`, 1 to 16,384 for `hash`.
    pub shards: u16,
    /// Owner of each shard; as long as `shards`.
    pub owners: Vec<CellId>,
}

/// Where a request's user id may stand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Extractor {
    /// A request header, by its lower-case name.
    Header(String),
    /// A cookie, by name.
    Cookie(String),
    /// A query parameter, by name.
    Query(String),
}

/// Whom a route's requests go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RouteKind {
    /// The owner of the user's shard.
    Sharded,
    /// The global cell.
    Global,
    /// The nearest cell.
    Nearest,
}

/// How requests are recognised.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Its name, for logs and `explain`.
    pub name: String,
    /// Matches paths that begin with this; `/` matches all.
    pub path_prefix: String,
    /// Whom the requests go to.
    pub kind: RouteKind,
    /// Where the user id may stand; the first that answers wins.
    pub user: Vec<Extractor>,
}

/// Size of a quorum's parts, from `N` members and `k` awaited standbys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quorum {
    /// Members, the primary included.
    pub members: usize,
    /// Awaited standbys.
    pub k: usize,
}

impl Quorum {
    /// Members that hold a commit once it is acknowledged: `W = 1 + k`.
    pub fn write(self) -> usize {
        1 + self.k
    }

    /// Members that a recruit set needs, whoever led: `F = max(majority, N − k)`.
    pub fn recruits(self) -> usize {
        (self.members / 2 + 1).max(self.members - self.k.min(self.members))
    }

    /// Members that must be left after a loss for the group to go on: `max(F, 1 + k)`.
    pub fn survivors(self) -> usize {
        self.recruits().max(self.write())
    }
}

impl DataGroup {
    /// The arithmetic of this group.
    pub fn quorum(&self) -> Quorum {
        Quorum {
            members: self.members.len(),
            k: usize::from(self.k),
        }
    }
}
