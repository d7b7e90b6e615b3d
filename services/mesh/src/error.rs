//! Why a mesh cannot start or go on.

use std::io;
use std::net::SocketAddr;

use atoll_telemetry::MetricsError;

/// Why a mesh cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An address is taken or not ours.
    #[error("cannot listen at {at}")]
    Listen {
        /// The address.
        at: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is nobody to take tables from.
    #[error("the configuration names no control: give at least one address under `control`")]
    NoControl,
    /// The server ended.
    #[error("the server of tables ended")]
    Serve(#[from] atoll_proxy::table::ServeError),
    /// A metric could not be made.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
}
