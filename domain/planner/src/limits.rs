//! Every number that a plan is measured against.

use serde::{Deserialize, Serialize};

/// Limits of plans.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// A member or cell whose newest report is older is not reachable.
    pub seen_fresh_ms: u64,
    /// How far the target of a planned switchover may be behind.
    pub lag_bytes_max: u64,
    /// How old the oldest transaction on the primary may be for a planned switch.
    pub oldest_transaction_ms_max: u64,
    /// How much of its limit a cell may be asked to carry, in per cent.
    pub headroom_percent_max: u64,
    /// How long an op of a planned switch may take before another may take it over.
    pub switchover_deadline_ms: u64,
    /// The same for a failover.
    pub failover_deadline_ms: u64,
    /// Detection and its guards.
    pub automatic: atoll_detection::Limits,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            seen_fresh_ms: 1_500,
            lag_bytes_max: 16 << 20,
            oldest_transaction_ms_max: 5_000,
            headroom_percent_max: 90,
            switchover_deadline_ms: 10_000,
            failover_deadline_ms: 10_000,
            automatic: atoll_detection::Limits::default(),
        }
    }
}
