//! Metrics of one process. Names begin with `atoll_`, carry base units, counters end in `_total`.

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

/// Buckets for latencies, in seconds: dense from a tenth of a millisecond to the limits of holds.
pub const LATENCY_SECONDS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2,
    0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0,
];

/// Why a metric could not be made: its name or labels are not valid, or it exists already.
#[derive(Debug, thiserror::Error)]
#[error("the metric {name:?} could not be registered")]
pub struct MetricsError {
    name: String,
    source: prometheus::Error,
}

/// The registry of one process. A cheap handle.
#[derive(Debug, Clone)]
pub struct Metrics(Registry);

impl Metrics {
    /// Empty; `labels` (region, cell, process) go on every metric.
    pub fn new(labels: &[(&str, &str)]) -> Self {
        let labels: std::collections::BTreeMap<_, _> = labels
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let registry = Registry::new_custom(Some("atoll".to_owned()), Some(into_map(labels)));
        // Only an empty prefix is an error, and ours is not.
        Self(registry.unwrap_or_default())
    }

    /// A count of events; `name` without `atoll_`, with `_total`.
    pub fn counter(&self, name: &str, help: &str) -> Result<IntCounter, MetricsError> {
        self.register(name, IntCounter::new(name, help))
    }

    /// Counts by label.
    pub fn counters(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntCounterVec, MetricsError> {
        self.register(name, IntCounterVec::new(Opts::new(name, help), labels))
    }

    /// A value that goes up and down.
    pub fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, MetricsError> {
        self.register(name, IntGauge::new(name, help))
    }

    /// Values by label.
    pub fn gauges(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntGaugeVec, MetricsError> {
        self.register(name, IntGaugeVec::new(Opts::new(name, help), labels))
    }

    /// A distribution of latencies; `name` ends in `_seconds`.
    pub fn latency(&self, name: &str, help: &str) -> Result<Histogram, MetricsError> {
        self.register(name, Histogram::with_opts(latency(name, help)))
    }

    /// Distributions of latencies by label.
    pub fn latencies(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<HistogramVec, MetricsError> {
        self.register(name, HistogramVec::new(latency(name, help), labels))
    }

    /// All of them in Prometheus's text format.
    pub fn text(&self) -> Result<String, MetricsError> {
        TextEncoder::new()
            .encode_to_string(&self.0.gather())
            .map_err(|source| MetricsError {
                name: "all".to_owned(),
                source,
            })
    }

    fn register<M: prometheus::core::Collector + Clone + 'static>(
        &self,
        name: &str,
        made: prometheus::Result<M>,
    ) -> Result<M, MetricsError> {
        made.and_then(|metric| self.0.register(Box::new(metric.clone())).map(|()| metric))
            .map_err(|source| MetricsError {
                name: name.to_owned(),
                source,
            })
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new(&[])
    }
}

fn latency(name: &str, help: &str) -> HistogramOpts {
    HistogramOpts::new(name, help).buckets(LATENCY_SECONDS.to_vec())
}

#[expect(
    clippy::disallowed_types,
    reason = "the library wants one; it sorts what it writes"
)]
fn into_map(
    labels: std::collections::BTreeMap<String, String>,
) -> std::collections::HashMap<String, String> {
    labels.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_carry_our_prefix_and_the_labels_of_the_process() {
        let metrics = Metrics::new(&[("process", "hz1-gateway")]);
        let requests = metrics
            .counters("requests_total", "Requests.", &["outcome"])
            .unwrap();
        requests.with_label_values(&["ok"]).inc();
        metrics
            .latency("hold_seconds", "Holds.")
            .unwrap()
            .observe(0.12);
        let text = metrics.text().unwrap();
        let line = r#"atoll_requests_total{outcome="ok",process="hz1-gateway"} 1"#;
        assert!(text.contains(line), "{text}");
        assert!(text.contains(r#"atoll_hold_seconds_bucket{process="hz1-gateway",le="0.15"} 1"#));
        let twice = metrics.counter("requests_total", "Again.").unwrap_err();
        assert!(twice.to_string().contains("requests_total"));
    }
}
