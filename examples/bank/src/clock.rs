//! The wall clock, for marks that people compare with other processes' logs. Durations are measured
//! with `tokio::time::Instant`.

/// Milliseconds since 1970.
#[expect(
    clippy::disallowed_methods,
    reason = "an application of its own; the simulator does not run it"
)]
pub fn unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}
