//! Every time and number that detection and its guards use.

use serde::{Deserialize, Serialize};

/// Limits of detection; the defaults are the design's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// A member whose heartbeat another one has missed for so long is silent to it.
    pub heartbeat_silent_ms: u64,
    /// A cell that has reported nothing for so long gives a signal.
    pub report_missing_ms: u64,
    /// An observer whose newest report is older has no say.
    pub report_fresh_ms: u64,
    /// An observer that was away (frozen, cut off, restarted) has no say until it has reported
    /// for so long: what it saw first after that is its own absence.
    pub observer_settle_ms: u64,
    /// How long signals must stand before a place that says nothing itself is lost.
    pub signal_hold_ms: u64,
    /// How long before a cell that reports is: what others see of it may be their own trouble, or a
    /// load that follows its shards to the next cell.
    pub reporting_hold_ms: u64,
    /// How long a canary may take; one that fails was sent so long before.
    pub canary_limit_ms: u64,
    /// Errors are counted over the newest stretch of this length.
    pub error_window_ms: u64,
    /// Fewer answers than this in the window say nothing.
    pub error_requests_min: u64,
    /// From this share of errors on, errors are a signal.
    pub error_rate_percent: u64,
    /// From this latency on (99 % of answers are faster), latency is a signal.
    pub latency_p99_max_ms: u64,
    /// A judge that has not judged for so long was away itself and starts anew.
    pub judge_gap_ms: u64,
    /// The window of the guards.
    pub window_ms: u64,
    /// Failovers of one group in a window; then a person is paged instead.
    pub group_failovers_per_window: u32,
    /// No second automatic owner change of a shard within this time; 0 in local worlds.
    pub automatic_switch_min_interval_ms: u64,
    /// Where the cell that is to lose them still reports, not within this time either.
    pub reporting_switch_min_interval_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            heartbeat_silent_ms: 1_000,
            report_missing_ms: 1_000,
            report_fresh_ms: 1_000,
            observer_settle_ms: 500,
            signal_hold_ms: 1_000,
            reporting_hold_ms: 5_000,
            canary_limit_ms: 500,
            error_window_ms: 1_000,
            error_requests_min: 20,
            error_rate_percent: 50,
            latency_p99_max_ms: 5_000,
            judge_gap_ms: 1_000,
            window_ms: 600_000,
            group_failovers_per_window: 3,
            automatic_switch_min_interval_ms: 600_000,
            reporting_switch_min_interval_ms: 60_000,
        }
    }
}
