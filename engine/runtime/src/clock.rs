//! The wall clock, in one place, so that a test can shift it and the simulator can replace it.
//!
//! Durations and deadlines use `tokio::time`; the wall clock is for people and for records.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::polled::{Follower, follow};

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

/// The machine's clock with an offset, which a file may change while the process runs.
#[derive(Debug)]
pub(crate) struct Clock {
    fixed_ms: i64,
    told_ms: Arc<AtomicI64>,
    _follower: Option<Follower>,
}

impl Clock {
    /// An offset for good, and one that a file holds: milliseconds as a whole number; none is 0.
    pub(crate) fn new(fixed_ms: i64, file: Option<&Path>) -> Self {
        let told_ms = Arc::new(AtomicI64::new(0));
        let told = Arc::clone(&told_ms);
        let follower = file.map(|path| {
            follow("clock", path, move |content| match offset_in(content) {
                Ok(offset_ms) if told.swap(offset_ms, Ordering::Relaxed) != offset_ms => {
                    info!(offset_ms, "the clock is set");
                }
                Ok(_) => {}
                Err(error) => warn!(%error, "the clock stays as it was"),
            })
        });
        Self {
            fixed_ms,
            told_ms,
            _follower: follower,
        }
    }

    pub(crate) fn now(&self) -> UnixMillis {
        real(
            self.fixed_ms
                .saturating_add(self.told_ms.load(Ordering::Relaxed)),
        )
    }
}

fn offset_in(content: Option<io::Result<Vec<u8>>>) -> io::Result<i64> {
    let Some(content) = content else { return Ok(0) };
    let content = content?;
    let text = String::from_utf8_lossy(&content);
    text.trim().parse().map_err(io::Error::other)
}

/// The machine's clock, shifted by `offset_ms`; a clock before 1970 reads 0.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the one place that reads the machine's clock"
)]
fn real(offset_ms: i64) -> UnixMillis {
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use tokio::time::{sleep, timeout};

    use super::*;

    const HOUR_MS: u64 = 3_600_000;

    #[tokio::test]
    async fn a_clock_goes_wrong_and_right_again_while_the_process_runs() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("clock");
        let clock = Clock::new(0, Some(&path));
        let ahead = || clock.now().0.abs_diff(machine_clock().0);
        let until = async |what: &str, fact: &dyn Fn() -> bool| {
            let seen = async {
                while !fact() {
                    sleep(Duration::from_millis(5)).await;
                }
            };
            assert!(
                timeout(Duration::from_secs(5), seen).await.is_ok(),
                "{what}"
            );
        };
        assert!(ahead() < HOUR_MS / 2, "no file");
        fs::write(&path, format!("-{HOUR_MS}\n")).unwrap();
        until("an hour behind", &|| ahead() > HOUR_MS / 2).await;
        assert!(clock.now() < machine_clock());
        fs::write(&path, "nonsense").unwrap();
        fs::remove_file(&path).unwrap();
        until("right again", &|| ahead() < HOUR_MS / 2).await;
    }
}
