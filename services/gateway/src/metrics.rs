//! What a gateway counts.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use atoll_streams::{CellHealth, RequestCounts};
use atoll_telemetry::{
    Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, Metrics, MetricsError,
};
use atoll_topology::CellId;

/// Counters for `/metrics`.
#[derive(Debug)]
pub(crate) struct GatewayMetrics {
    pub(crate) requests: IntCounterVec,
    pub(crate) seconds: HistogramVec,
    pub(crate) held: IntGauge,
    pub(crate) hold_seconds: Histogram,
    pub(crate) holds: IntCounterVec,
    pub(crate) forwards: IntCounterVec,
    pub(crate) retries: IntCounterVec,
    pub(crate) suspicions: IntCounter,
    pub(crate) table_number: IntGauge,
    pub(crate) access_dropped: IntCounter,
    pub(crate) totals: Totals,
}

impl GatewayMetrics {
    pub(crate) fn register(metrics: &Metrics) -> Result<Self, MetricsError> {
        Ok(Self {
            requests: metrics.counters(
                "gateway_requests_total",
                "Requests by where they came in and how they ended.",
                &["origin", "outcome"],
            )?,
            seconds: metrics.latencies(
                "gateway_request_seconds",
                "From a request's head to the end of its answer, holds included.",
                &["origin"],
            )?,
            held: metrics.gauge("gateway_held", "Requests that wait at the gate.")?,
            hold_seconds: metrics.latency(
                "gateway_hold_seconds",
                "How long a held request waited in all.",
            )?,
            holds: metrics.counters(
                "gateway_holds_total",
                "Held requests by how their wait ended.",
                &["end"],
            )?,
            forwards: metrics.counters(
                "gateway_forwards_total",
                "Requests sent to another cell's gateway, by its answer.",
                &["result"],
            )?,
            retries: metrics.counters(
                "gateway_retries_total",
                "Requests sent again because they were surely not executed, or are idempotent.",
                &["reason"],
            )?,
            suspicions: metrics
                .counter("gateway_suspicions_total", "Cells found not to answer.")?,
            table_number: metrics.gauge("gateway_table_number", "The table in use.")?,
            access_dropped: metrics.counter(
                "gateway_access_log_dropped_total",
                "Lines of the access log that found no room.",
            )?,
            totals: Totals::default(),
        })
    }
}

/// How clients' requests went since the process started, for control's proofs. Who went away by
/// itself is in none of them.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    answered: AtomicU64,
    failed: AtomicU64,
    unknown: AtomicU64,
    held: AtomicU64,
    held_now: AtomicU64,
}

/// Whether a request has found the gate closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waited {
    Yes,
    No,
}

impl Totals {
    /// A request finds the gate closed, for the first time.
    pub(crate) fn held(&self) {
        self.held.fetch_add(1, Ordering::Relaxed);
        self.held_now.fetch_add(1, Ordering::Relaxed);
    }

    /// A request has ended.
    pub(crate) fn ended(&self, outcome: &str, waited: Waited) {
        let count = match outcome {
            "ok" | "client-error" => Some(&self.answered),
            "server-error" | "not-sent" => Some(&self.failed),
            "unknown" | "answer-cut" => Some(&self.unknown),
            _ => None,
        };
        if let Some(count) = count {
            count.fetch_add(1, Ordering::Relaxed);
        }
        if waited == Waited::Yes {
            // After its outcome: whoever sees that nobody waits any more sees how they all ended.
            self.held_now.fetch_sub(1, Ordering::Release);
        }
    }

    /// For the report.
    pub(crate) fn report(&self) -> RequestCounts {
        let held_now = self.held_now.load(Ordering::Acquire);
        RequestCounts {
            answered: self.answered.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            unknown: self.unknown.load(Ordering::Relaxed),
            held: self.held.load(Ordering::Relaxed),
            held_now,
        }
    }
}

/// Bounds of the latency window, in milliseconds.
const BOUNDS_MS: [u64; 16] = [
    1, 2, 3, 5, 8, 12, 20, 30, 50, 80, 120, 200, 300, 500, 1_000, 2_000,
];

/// How one cell looks from here; counts since the process started.
#[derive(Debug, Default)]
pub(crate) struct CellStats {
    canary_ok: AtomicU64,
    canary_failed: AtomicU64,
    requests: AtomicU64,
    errors: AtomicU64,
    last_ok_unix_ms: AtomicU64,
    /// The window's answers by latency.
    window: [AtomicU32; BOUNDS_MS.len() + 1],
}

impl CellStats {
    /// A request of a client, answered well or not.
    pub(crate) fn answered(&self, took: Duration, well: Result<u64, ()>) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let at = BOUNDS_MS
            .iter()
            .position(|bound| ms <= *bound)
            .unwrap_or(BOUNDS_MS.len());
        self.window[at].fetch_add(1, Ordering::Relaxed);
        match well {
            Ok(unix_ms) => self.last_ok_unix_ms.store(unix_ms, Ordering::Relaxed),
            Err(()) => {
                self.errors.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// A canary write.
    pub(crate) fn canary(&self, well: Result<u64, ()>) {
        match well {
            Ok(unix_ms) => {
                self.canary_ok.fetch_add(1, Ordering::Relaxed);
                self.last_ok_unix_ms.store(unix_ms, Ordering::Relaxed);
            }
            Err(()) => {
                self.canary_failed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn p99_ms(&self) -> u64 {
        let window: Vec<u64> = self
            .window
            .iter()
            .map(|n| u64::from(n.load(Ordering::Relaxed)))
            .collect();
        let rank = (window.iter().sum::<u64>() * 99).div_ceil(100);
        let mut seen = 0;
        for (at, count) in window.into_iter().enumerate() {
            seen += count;
            if seen >= rank {
                return match rank {
                    0 => 0,
                    _ => BOUNDS_MS.get(at).copied().unwrap_or(10_000),
                };
            }
        }
        0
    }
}

/// All cells that this gateway has had to do with.
#[derive(Debug, Default)]
pub(crate) struct Cells(Mutex<BTreeMap<CellId, Arc<CellStats>>>);

impl Cells {
    /// One worker asks once for each cell and keeps the answer.
    pub(crate) fn of(&self, cell: &CellId) -> Arc<CellStats> {
        let mut cells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match cells.get(cell) {
            Some(stats) => Arc::clone(stats),
            None => Arc::clone(cells.entry(cell.clone()).or_default()),
        }
    }

    /// For the report.
    pub(crate) fn report(&self) -> Vec<CellHealth> {
        let cells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let health = |(cell, stats): (&CellId, &Arc<CellStats>)| CellHealth {
            cell: cell.clone(),
            canary_ok: stats.canary_ok.load(Ordering::Relaxed),
            canary_failed: stats.canary_failed.load(Ordering::Relaxed),
            requests: stats.requests.load(Ordering::Relaxed),
            errors: stats.errors.load(Ordering::Relaxed),
            latency_p99_ms: stats.p99_ms(),
            last_ok_unix_ms: stats.last_ok_unix_ms.load(Ordering::Relaxed),
        };
        cells.iter().map(health).collect()
    }

    /// Begins a new window of latencies.
    pub(crate) fn next_window(&self) {
        let cells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for stats in cells.values() {
            for count in &stats.window {
                count.store(0, Ordering::Relaxed);
            }
        }
    }
}
