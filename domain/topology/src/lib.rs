//! What a world is made of: regions, zones, clusters, cells, data groups, shards and routes, the
//! two numbers that order every change (`Epoch`, `Term`), and the file that describes it all.
#![warn(missing_docs)]

mod id;
mod model;
mod numbers;

pub use id::{
    CellId, ClusterId, GroupId, InvalidId, MemberId, ProcessId, RegionId, ShardId, UserId, ZoneId,
};
pub use model::{
    Cell, CellKind, Cluster, DataGroup, Extractor, Member, Quorum, Region, Route, RouteKind,
    ShardMap, ShardScheme, Slot, SlotName, Survives, Topology, Zone,
};
pub use numbers::{Epoch, Lsn, Position, Term};
