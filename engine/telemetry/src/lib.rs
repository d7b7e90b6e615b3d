//! What a process tells about itself: log lines, metrics, and the admin endpoint.

pub mod admin;
mod json;
mod log;
mod metrics;

pub use admin::Admin;
pub use log::{InitError, init, init_filtered};
pub use metrics::{LATENCY_SECONDS, Metrics, MetricsError};
pub use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};
