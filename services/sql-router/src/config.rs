//! What the process is told, and every limit by its name.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use atoll_pgwire::Limits as FrameLimits;
use atoll_topology::{CellId, ProcessId, RegionId};
use serde::Deserialize;

use crate::error::Error;

/// The file of `atoll sql-router --config FILE`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The process's name.
    pub process: ProcessId,
    /// Where it stands.
    pub region: RegionId,
    /// The cell that it serves; it writes with this cell's privileges and no others.
    pub cell: CellId,
    /// Where clients connect. No TLS and no password yet: it must be a loopback address.
    pub listen: SocketAddr,
    /// The admin endpoint.
    pub admin: SocketAddr,
    /// Meshes that serve tables, in the order of preference.
    #[serde(default)]
    pub meshes: Vec<SocketAddr>,
    /// Where the last good table is kept.
    #[serde(default)]
    pub table_file: Option<PathBuf>,
    /// Limits.
    #[serde(default)]
    pub limits: Limits,
}

/// Every limit of the router.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Client connections; more are refused with 53300.
    pub clients_max: usize,
    /// Connections to one group's primary; more wait.
    pub connections_per_group_max: usize,
    /// Connections that are opened ahead for a primary that an op in progress will open.
    pub warm_connections: usize,
    /// An unused connection is closed after this.
    pub idle_connection_seconds: u64,
    /// A new transaction waits this long for its shard to be writable and for a connection.
    pub hold_milliseconds: u64,
    /// Transactions that wait, over all shards; more are refused with 57P03.
    pub held_max: usize,
    /// A new transaction on a shard of another cell waits this long for a table that says otherwise.
    pub foreign_shard_wait_milliseconds: u64,
    /// On a closing shard a transaction that its client leaves idle is rolled back after this.
    pub idle_in_closing_transaction_milliseconds: u64,
    /// A primary that did not answer is tried again after this.
    pub probe_interval_milliseconds: u64,
    /// A connection to a primary, start-up included, takes at most this.
    pub connect_milliseconds: u64,
    /// A statement of the router's own, and a cancel request, take at most this.
    pub own_statement_milliseconds: u64,
    /// Largest message.
    pub frame_bytes_max: usize,
    /// Answers and requests are read no further while this much waits to be written.
    pub buffer_bytes: usize,
    /// Requests up to this size are kept until answered, so that they can be sent again to where
    /// the shard has moved.
    pub replay_bytes: usize,
    /// Prepared statements of one client, named ones.
    pub statements_per_client_max: usize,
    /// Prepared statements on one connection to a primary; the oldest is closed.
    pub statements_per_connection_max: usize,
    /// Session settings of one client.
    pub settings_per_client_max: usize,
    /// A client says what it wants within this, or is cut.
    pub startup_milliseconds: u64,
    /// At the end, transactions in progress get this long.
    pub drain_milliseconds: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            clients_max: 2_000,
            connections_per_group_max: 20,
            warm_connections: 4,
            idle_connection_seconds: 60,
            hold_milliseconds: 10_000,
            held_max: 2_000,
            foreign_shard_wait_milliseconds: 1_000,
            idle_in_closing_transaction_milliseconds: 200,
            probe_interval_milliseconds: 20,
            connect_milliseconds: 2_000,
            own_statement_milliseconds: 2_000,
            frame_bytes_max: FrameLimits::default().frame_bytes_max,
            buffer_bytes: 256 * 1024,
            replay_bytes: 64 * 1024,
            statements_per_client_max: 1_000,
            statements_per_connection_max: 500,
            settings_per_client_max: 64,
            startup_milliseconds: 10_000,
            drain_milliseconds: 5_000,
        }
    }
}

macro_rules! durations {
    ($($name:ident = $field:ident;)*) => {
        impl Limits {
            $(pub(crate) fn $name(&self) -> Duration {
                Duration::from_millis(self.$field)
            })*
        }
    };
}

durations! {
    hold = hold_milliseconds;
    foreign_shard_wait = foreign_shard_wait_milliseconds;
    idle_in_closing_transaction = idle_in_closing_transaction_milliseconds;
    probe_interval = probe_interval_milliseconds;
    connect = connect_milliseconds;
    own_statement = own_statement_milliseconds;
    startup = startup_milliseconds;
    drain = drain_milliseconds;
}

impl Limits {
    pub(crate) fn idle_connection(&self) -> Duration {
        Duration::from_secs(self.idle_connection_seconds)
    }

    pub(crate) fn frames(&self) -> FrameLimits {
        FrameLimits {
            frame_bytes_max: self.frame_bytes_max,
            ..FrameLimits::default()
        }
    }
}

impl Config {
    pub(crate) fn check(&self) -> Result<(), Error> {
        let limits = &self.limits;
        let counts = [
            ("clients_max", limits.clients_max),
            (
                "connections_per_group_max",
                limits.connections_per_group_max,
            ),
            ("frame_bytes_max", limits.frame_bytes_max),
            ("buffer_bytes", limits.buffer_bytes),
            (
                "statements_per_connection_max",
                limits.statements_per_connection_max,
            ),
        ];
        for (name, value) in counts {
            if value == 0 {
                return Err(Error::Config(format!("{name} must be at least 1")));
            }
        }
        if !self.listen.ip().is_loopback() {
            return Err(Error::Config(format!(
                "listen is {}: without TLS and passwords only a loopback address is allowed",
                self.listen
            )));
        }
        Ok(())
    }
}
