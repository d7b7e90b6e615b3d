//! Why control does not start, or ends.

use std::io;
use std::path::PathBuf;

use atoll_store::StoreError;
use thiserror::Error;

/// Why control does not start, or ends.
#[derive(Debug, Error)]
pub enum Error {
    /// A file that it needs cannot be read.
    #[error("{} cannot be read", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The topology is not valid.
    #[error("{} is not a valid topology:\n{violations}", path.display())]
    Topology {
        /// Which file.
        path: PathBuf,
        /// Every violation, a line each.
        violations: String,
    },
    /// The store belongs to another world.
    #[error(
        "the store was begun with another topology than {}; a topology cannot be changed under a \
         running world yet: put the old file back, or begin a new world in another directory",
        path.display()
    )]
    OtherTopology {
        /// Which file.
        path: PathBuf,
    },
    /// The store.
    #[error("the store failed")]
    Store(#[from] StoreError),
    /// The store's file.
    #[error(transparent)]
    Open(#[from] atoll_store::OpenError),
    /// A metric.
    #[error(transparent)]
    Metrics(#[from] atoll_telemetry::MetricsError),
    /// A listener.
    #[error("cannot listen on {at}")]
    Listen {
        /// Where.
        at: std::net::SocketAddr,
        /// Why.
        source: io::Error,
    },
}
