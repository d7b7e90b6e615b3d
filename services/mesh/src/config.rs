//! What a mesh is told at its start. Unknown keys are refused.

use std::net::SocketAddr;
use std::path::PathBuf;

use atoll_topology::{CellId, ProcessId, RegionId};
use serde::Deserialize;

/// A mesh's configuration file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Its name, `<cell>-mesh[-<n>]`.
    pub process: ProcessId,
    /// Its city.
    pub region: RegionId,
    /// The cell whose data planes it serves.
    #[serde(default)]
    pub cell: Option<CellId>,
    /// Where data planes come in.
    pub listen: SocketAddr,
    /// Health, metrics, the table.
    pub admin: SocketAddr,
    /// Streams of control's replicas, the nearest first; each is followed.
    pub control: Vec<SocketAddr>,
    /// Last good table.
    pub table_file: PathBuf,
}
