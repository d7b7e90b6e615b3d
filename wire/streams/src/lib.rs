//! Our own gRPC contracts: tables down and reports up (`table.proto`), orders and calls of data
//! groups (`agent.proto`), with conversions to and from the domain's values.
#![warn(missing_docs)]

/// Generated code, one module per contract.
pub mod proto {
    #![allow(
        clippy::all,
        clippy::pedantic,
        clippy::restriction,
        missing_docs,
        unreachable_pub,
        unused_lifetimes,
        unused_qualifications,
        elided_lifetimes_in_paths,
        explicit_outlives_requirements,
        reason = "generated"
    )]
    /// `table.proto`.
    pub mod table {
        tonic::include_proto!("atoll.table.v1");
    }
    /// `agent.proto`.
    pub mod agent {
        tonic::include_proto!("atoll.agent.v1");
    }
}

/// Largest message of a table stream, in bytes: the default of 4 MiB is too near to a table of
/// 16,384 shards that all differ.
pub const MESSAGE_BYTES_MAX: usize = 32 * 1024 * 1024;

pub mod agent;
mod encoded;
mod report;
mod table;
mod text;

pub use encoded::{EncodedTable, UpdateError};
pub use report::{
    CellHealth, MeshReport, Opening, Report, ReportError, RequestCounts, Role, ShardLoad,
};
pub use table::{decode, encode};
pub use text::DecodeError;
