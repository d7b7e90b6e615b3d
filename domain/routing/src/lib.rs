//! Key to shard to cell to slot: one pure function for every data plane and SDK.
#![warn(missing_docs)]

mod explain;
mod route;
mod shard;
mod table;

pub use explain::{Explanation, explain};
pub use route::{Decision, Home, NoRoute, by_distance, find_route, home, route, route_by};
pub use shard::{NoShard, shard_of};
pub use table::{CellRow, Closed, GroupRow, Instance, Phase, ShardRow, Table, TableVersion};
