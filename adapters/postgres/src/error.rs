//! What can go wrong between us and PostgreSQL.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// What can go wrong between us and PostgreSQL.
#[derive(Debug, Error)]
pub enum Error {
    /// No server binaries.
    #[error(
        "no PostgreSQL server found under {searched:?}; install the package `postgresql`, or name its bin folder in the configuration (`postgres_bin`)"
    )]
    NoBinaries {
        /// Where we looked.
        searched: PathBuf,
    },
    /// A version that is known to lack a fix, or that we never ran.
    #[error("PostgreSQL {found} is not supported: 15.13, 16.9, 17.5 or later is needed")]
    Version {
        /// What `postgres --version` said.
        found: String,
    },
    /// A socket path that the kernel would cut off.
    #[error("the socket path {path:?} has more than {limit} bytes; choose a shorter directory")]
    SocketPath {
        /// The path.
        path: PathBuf,
        /// Bytes that fit.
        limit: usize,
    },
    /// We are root and there is nobody else to be.
    #[error("PostgreSQL never runs as root, and neither `postgres` nor `nobody` exists here")]
    NoAccount,
    /// A file or socket.
    #[error("{what} {path:?}")]
    File {
        /// What was attempted.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A process that could not be started or ended badly.
    #[error("{program} failed: {tail}")]
    Program {
        /// Which program.
        program: String,
        /// The end of what it printed.
        tail: String,
    },
    /// A wait that ran into its limit.
    #[error("{what} took longer than {limit_ms} ms; last seen: {last}")]
    TooLong {
        /// What we waited for.
        what: &'static str,
        /// The limit.
        limit_ms: u128,
        /// The last thing that we saw.
        last: String,
    },
    /// PostgreSQL refused, or the session broke.
    #[error("SQL: {what}")]
    Sql {
        /// What was attempted.
        what: &'static str,
        /// Why it failed.
        source: tokio_postgres::Error,
    },
    /// A change that carries an old number.
    #[error("stale: {what}")]
    Stale {
        /// Which number, against which.
        what: String,
    },
    /// Content that we do not understand.
    #[error("{what}: {text:?}")]
    Garbled {
        /// Where it stood.
        what: &'static str,
        /// What stood there.
        text: String,
    },
    /// A rule of the data group is broken.
    #[error("{0}")]
    Rule(String),
}

impl Error {
    pub(crate) fn file(
        what: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { what, path, source }
    }

    pub(crate) fn sql(what: &'static str) -> impl FnOnce(tokio_postgres::Error) -> Self {
        move |source| Self::Sql { what, source }
    }

    /// The SQLSTATE, where PostgreSQL gave one.
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Sql { source, .. } => source.code().map(tokio_postgres::error::SqlState::code),
            _ => None,
        }
    }
}
