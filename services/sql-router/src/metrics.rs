//! What the router counts.

use atoll_telemetry::{Histogram, IntCounter, IntGauge, Metrics as Registry, MetricsError};

/// The router's metrics.
pub(crate) struct Metrics {
    /// Client connections now.
    pub(crate) clients: IntGauge,
    /// Unused connections to primaries now.
    pub(crate) idle_connections: IntGauge,
    /// Transactions that a primary ended.
    pub(crate) transactions: IntCounter,
    /// Transactions that had to wait for their shard.
    pub(crate) held: IntCounter,
    /// How long they waited.
    pub(crate) hold_seconds: Histogram,
    /// Idle transactions rolled back for a switch.
    pub(crate) rolled_back: IntCounter,
    /// Commits whose outcome nobody knows (08007).
    pub(crate) unknown: IntCounter,
}

impl Metrics {
    pub(crate) fn new(registry: &Registry) -> Result<Self, MetricsError> {
        Ok(Self {
            clients: registry.gauge("sql_clients", "client connections now")?,
            idle_connections: registry.gauge(
                "sql_idle_connections",
                "unused connections to primaries now",
            )?,
            transactions: registry.counter(
                "sql_transactions_total",
                "transactions that a primary ended",
            )?,
            held: registry.counter("sql_held_total", "transactions that waited for their shard")?,
            hold_seconds: registry.latency(
                "sql_hold_seconds",
                "how long transactions waited for their shard",
            )?,
            rolled_back: registry.counter(
                "sql_rolled_back_total",
                "idle transactions that the router rolled back for a switch",
            )?,
            unknown: registry.counter(
                "sql_unknown_total",
                "commits whose outcome nobody knows (08007)",
            )?,
        })
    }
}
