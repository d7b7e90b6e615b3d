//! Key to shard to cell to slot: one pure function for every data plane and SDK.
#![warn(missing_docs)]

mod table;

pub use table::{
    CellRow, Closed, GroupRow, Instance, Phase, ShardRow, Table, TableVersion,
};
