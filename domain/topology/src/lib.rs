//! What a world is made of: regions, zones, clusters, cells, data groups, shards and routes, the
//! two numbers that order every change (`Epoch`, `Term`), and the file that describes it all.
#![warn(missing_docs)]

mod check;
mod file;
mod id;
mod model;
mod numbers;
mod reader;
mod resource;
mod shards;
mod spec;
mod violation;
mod yaml;

pub use id::{
    CellId, ClusterId, GroupId, InvalidId, MemberId, ProcessId, RegionId, ShardId, UserId, ZoneId,
};
pub use model::{
    Cell, CellKind, Cluster, DataGroup, Extractor, Member, Quorum, Region, Route, RouteKind,
    ShardMap, ShardScheme, Slot, SlotName, Survives, Topology, Zone,
};
pub use numbers::{Epoch, Lsn, Position, Term};
pub use resource::{API_VERSION, Resource, resources, to_yaml};
pub use shards::{format_shards, parse_shards};
pub use violation::{Place, Rule, Violation, Violations};
