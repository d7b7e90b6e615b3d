//! The wall clock, in one place, so that a test can shift it and the simulator can replace it.
//!
//! Durations and deadlines use `tokio::time`; the wall clock is for people and for records.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Milliseconds since 1970-01-01 UTC. No safety rests on it.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct UnixMillis(pub u64);

impl fmt::Display for UnixMillis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The machine's clock, shifted by `offset_ms`; a clock before 1970 reads 0.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the one place that reads the machine's clock"
)]
pub(crate) fn real(offset_ms: i64) -> UnixMillis {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    let millis = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    UnixMillis(millis.saturating_add_signed(offset_ms))
}

/// The machine's clock as it is: for log lines, which no process has a runtime for. Everything
/// else uses [`crate::Runtime::wall_clock`].
pub fn machine_clock() -> UnixMillis {
    real(0)
}
