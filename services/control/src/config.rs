//! The configuration of a replica of control.

use std::net::SocketAddr;
use std::path::PathBuf;

use atoll_store::Backend;
use atoll_topology::ProcessId;
use serde::{Deserialize, Serialize};

use crate::places::Place;

/// Everything that a replica of control is told at its start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Its name.
    pub process: ProcessId,
    /// Where the resource API listens (HTTP).
    pub api: SocketAddr,
    /// Where agents and meshes dial (gRPC).
    pub streams: SocketAddr,
    /// Where health and metrics are served.
    pub admin: SocketAddr,
    /// Its directory.
    pub data: PathBuf,
    /// Where intent is kept. Default: a file in its directory, for one replica.
    #[serde(default)]
    pub store: Option<Backend>,
    /// The topology file; read at each start, and refused where it is not the one that the store
    /// was begun with.
    pub topology: PathBuf,
    /// The address book.
    pub places: Vec<Place>,
    /// Whether verdicts begin failovers by themselves. Default: true.
    #[serde(default = "yes")]
    pub automatic_failover: bool,
    /// Least time between two automatic changes of one shard's owner, in seconds. Default: 600.
    #[serde(default = "ten_minutes")]
    pub automatic_switch_min_interval_seconds: u64,
    /// The window of automation's guards, in seconds. Default: 600.
    #[serde(default)]
    pub automatic_window_seconds: Option<u64>,
}

impl Config {
    /// Where intent is kept.
    pub(crate) fn backend(&self) -> Backend {
        let file = || Backend::Redb {
            path: self.data.join("store.redb"),
        };
        self.store.clone().unwrap_or_else(file)
    }
}

fn yes() -> bool {
    true
}

fn ten_minutes() -> u64 {
    600
}
