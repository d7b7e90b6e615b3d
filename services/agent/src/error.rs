//! What can go wrong in an agent.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use thiserror::Error;

/// What can go wrong in an agent.
#[derive(Debug, Error)]
pub enum Error {
    /// A configuration that cannot be.
    #[error("the configuration is wrong: {0}")]
    Config(String),
    /// A port that is taken.
    #[error("cannot listen on {at}")]
    Listen {
        /// Which.
        at: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// A local socket.
    #[error("cannot listen on {at:?}")]
    ListenUnix {
        /// Which.
        at: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The promise could not be made durable: the member must not go on.
    #[error("the promise file {path:?} failed")]
    Promise {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A promise file that is not one, or a newer version's.
    #[error("the promise file {path:?} {what}")]
    PromiseContent {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
    /// PostgreSQL.
    #[error(transparent)]
    Postgres(#[from] atoll_postgres::Error),
    /// A wait that ran into its limit.
    #[error("{what} took longer than {limit_ms} ms")]
    TooLong {
        /// What we waited for.
        what: &'static str,
        /// The limit.
        limit_ms: u128,
    },
    /// PostgreSQL is not up.
    #[error("PostgreSQL is not up")]
    Down,
    /// Metrics that could not be registered.
    #[error(transparent)]
    Metrics(#[from] atoll_telemetry::MetricsError),
    /// The heart of the agent has stopped.
    #[error("the member's actor has ended")]
    Ended,
}
