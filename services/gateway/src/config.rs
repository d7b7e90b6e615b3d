//! What a gateway is told at its start. Unknown keys are refused; limits have names, units and
//! defaults.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use atoll_proxy::{HoldLimits, PoolLimits, ReadTimes, ServerLimits, StrictLimits};
use atoll_topology::{CellId, ProcessId, RegionId};
use serde::Deserialize;

use crate::error::Error;

/// A gateway's configuration file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Its name, `<cell>-gateway[-<n>]`.
    pub process: ProcessId,
    /// Its city.
    pub region: RegionId,
    /// The cell whose instances it serves.
    pub cell: CellId,
    /// Where clients come in.
    pub edge: SocketAddr,
    /// Where other gateways come in.
    pub peer: SocketAddr,
    /// Health, metrics, the table in use.
    pub admin: SocketAddr,
    /// Who serves tables, in the order of preference.
    pub meshes: Vec<SocketAddr>,
    /// Last good table.
    pub table_file: PathBuf,
    /// File with the world's key for gateways, 64 hexadecimal digits.
    pub peer_key_file: PathBuf,
    /// Worker threads; one a core when absent.
    #[serde(default)]
    pub workers: Option<usize>,
    /// What it asks of cells each second, to know whether they can write; nothing when absent.
    #[serde(default)]
    pub canary: Option<Canary>,
    /// Limits by name.
    #[serde(default)]
    pub limits: Limits,
    /// The gate's limits by name.
    #[serde(default)]
    pub hold: Hold,
    /// How it finds out that a cell does not answer.
    #[serde(default)]
    pub health: Health,
}

/// A write through the real path, each second and for each cell.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Canary {
    /// Its method, for instance `POST`.
    pub method: String,
    /// Its path, for instance `/canary`.
    pub path: String,
    /// How often, in milliseconds.
    #[serde(default = "second")]
    pub every_ms: u64,
    /// When it counts as failed, in milliseconds.
    #[serde(default = "half_second")]
    pub limit_ms: u64,
}

fn second() -> u64 {
    1_000
}

fn half_second() -> u64 {
    500
}

/// Limits of connections and requests.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Connections of clients, per worker.
    pub connections_max: usize,
    /// Bytes of a request's or answer's head.
    pub head_bytes_max: usize,
    /// Header fields of a request or answer.
    pub headers_max: usize,
    /// Bytes of a request's body.
    pub body_bytes_max: u64,
    /// Bytes of a body that are kept until the status arrives, so that a request that another
    /// gateway did not take can be decided again.
    pub replay_bytes: usize,
    /// From a head's first byte to its last.
    pub head_seconds: u64,
    /// Between two requests of a connection. Longer than `upstream_idle_seconds` of those that
    /// connect to us.
    pub idle_seconds: u64,
    /// Between two pieces of a body, in either direction.
    pub body_seconds: u64,
    /// Time for a connection to an instance or a gateway.
    pub connect_ms: u64,
    /// Time until an answer's head, once a request has been sent. Longer than `hold.seconds`: the
    /// owner's gateway may hold it.
    pub answer_seconds: u64,
    /// How long a connection to an instance or a gateway is kept unused.
    pub upstream_idle_seconds: u64,
    /// Connections to one instance or gateway, per worker.
    pub upstream_connections_max: usize,
    /// How long connections without requests live on at the end.
    pub drain_idle_ms: u64,
    /// How long requests may take to end at the end.
    pub drain_seconds: u64,
    /// Lines of the access log that wait to be written, per worker; more are dropped and counted.
    pub access_log_lines: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 10_000,
            head_bytes_max: 32 << 10,
            headers_max: 100,
            body_bytes_max: 16 << 20,
            replay_bytes: 64 << 10,
            head_seconds: 10,
            idle_seconds: 75,
            body_seconds: 30,
            connect_ms: 1_000,
            answer_seconds: 20,
            upstream_idle_seconds: 30,
            upstream_connections_max: 1_024,
            drain_idle_ms: 300,
            drain_seconds: 12,
            access_log_lines: 8_192,
        }
    }
}

/// Limits of the gate; see 6-traffic.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Hold {
    /// Requests that wait for one shard.
    pub requests_per_shard: usize,
    /// Bytes that they occupy.
    pub bytes_per_shard: usize,
    /// How long a request waits; never under twice the recovery time aimed at.
    pub seconds: u64,
    /// Requests that wait in this gateway.
    pub requests: usize,
    /// Bytes that they occupy.
    pub bytes: usize,
    /// Requests that go at once when shards open, the oldest first; each further batch is twice as
    /// large.
    pub release_first: usize,
    /// Time between two batches.
    pub release_every_ms: u64,
}

impl Default for Hold {
    fn default() -> Self {
        let limits = HoldLimits::default();
        Self {
            requests_per_shard: limits.requests_per_key,
            bytes_per_shard: limits.bytes_per_key,
            seconds: limits.time.as_secs(),
            requests: limits.requests,
            bytes: limits.bytes,
            release_first: limits.release_first,
            release_every_ms: u64::try_from(limits.release_every.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

/// How silence is noticed and ended.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Health {
    /// An owner that has answered nothing for so long since a request is probed.
    pub silence_ms: u64,
    /// How long a probe may take.
    pub probe_limit_ms: u64,
    /// How often a cell that does not answer is probed.
    pub probe_every_ms: u64,
    /// What an instance is asked; any answer is a sign of life.
    pub probe_path: String,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            silence_ms: 250,
            probe_limit_ms: 250,
            probe_every_ms: 50,
            probe_path: "/healthz".into(),
        }
    }
}

impl Config {
    /// Checks what one field cannot show.
    pub fn check(&self) -> Result<(), Error> {
        let wrong = |text: &str| Err(Error::Config(text.to_owned()));
        if self.limits.answer_seconds <= self.hold.seconds {
            return wrong("limits.answer_seconds must be longer than hold.seconds");
        }
        if self.limits.idle_seconds <= self.limits.upstream_idle_seconds {
            return wrong("limits.idle_seconds must be longer than limits.upstream_idle_seconds");
        }
        if self.workers == Some(0) {
            return wrong("workers must be at least 1");
        }
        if !self.health.probe_path.starts_with('/') {
            return wrong("health.probe_path must begin with '/'");
        }
        if let Some(canary) = &self.canary {
            if !canary.path.starts_with('/') || canary.path.parse::<http::Uri>().is_err() {
                return wrong("canary.path must be a path");
            }
            if http::Method::from_bytes(canary.method.as_bytes()).is_err() {
                return wrong("canary.method must be a method");
            }
            if canary.limit_ms > canary.every_ms || canary.limit_ms == 0 {
                return wrong("canary.limit_ms must be from 1 to canary.every_ms");
            }
        }
        Ok(())
    }

    pub(crate) fn server_limits(&self) -> ServerLimits {
        let limits = &self.limits;
        ServerLimits {
            strict: StrictLimits {
                head_bytes_max: limits.head_bytes_max,
                headers_max: limits.headers_max,
                body_bytes_max: limits.body_bytes_max,
            },
            times: ReadTimes {
                head: Duration::from_secs(limits.head_seconds),
                idle: Duration::from_secs(limits.idle_seconds),
                body: Duration::from_secs(limits.body_seconds),
            },
            connections_max: limits.connections_max,
            drain_idle: Duration::from_millis(limits.drain_idle_ms),
            drain: Duration::from_secs(limits.drain_seconds),
        }
    }

    pub(crate) fn pool_limits(&self) -> PoolLimits {
        let limits = &self.limits;
        PoolLimits {
            connect: Duration::from_millis(limits.connect_ms),
            idle: Duration::from_secs(limits.upstream_idle_seconds),
            body: Duration::from_secs(limits.body_seconds),
            connections_max: limits.upstream_connections_max,
            headers_max: limits.headers_max,
            head_bytes_max: limits.head_bytes_max,
        }
    }

    pub(crate) fn hold_limits(&self) -> HoldLimits {
        let hold = &self.hold;
        HoldLimits {
            requests_per_key: hold.requests_per_shard,
            bytes_per_key: hold.bytes_per_shard,
            time: Duration::from_secs(hold.seconds),
            requests: hold.requests,
            bytes: hold.bytes,
            release_first: hold.release_first,
            release_every: Duration::from_millis(hold.release_every_ms),
        }
    }
}
