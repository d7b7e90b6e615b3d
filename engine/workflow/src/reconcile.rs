//! The loop around a reconciler: level-triggered, so a lost wake-up costs an interval and no more.

use std::error::Error;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;
use tokio::time::timeout;
use tracing::{info, warn};

/// Brings what is towards what should be. It takes no hint: the pass after a restart and the pass
/// after an event are the same.
#[async_trait]
pub trait Reconcile: Send {
    /// Why a pass failed.
    type Error: Error + Send + Sync + 'static;

    /// One pass: observe, decide, act once. Must be safe to cancel and to repeat.
    async fn reconcile(&mut self) -> Result<Reconciled, Self::Error>;
}

/// What a pass found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reconciled {
    /// All is as it should be, or waits for something that will wake the loop.
    Settled,
    /// Something was done and more may be to do: look again at once.
    Moved,
}

/// The loop's limits.
#[derive(Debug, Clone, Copy)]
pub struct LoopLimits {
    /// A pass at least this often, for wake-ups that were lost.
    pub interval: Duration,
    /// A pass that takes longer is dropped and counts as failed.
    pub pass: Duration,
    /// Pause after a first failure; doubles.
    pub pause_min: Duration,
    /// Longest pause.
    pub pause_max: Duration,
    /// Passes in a row without a rest, so that one that always moves cannot spin.
    pub moves_in_a_row: u32,
}

impl Default for LoopLimits {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(1),
            pass: Duration::from_secs(10),
            pause_min: Duration::from_millis(20),
            pause_max: Duration::from_secs(2),
            moves_in_a_row: 100,
        }
    }
}

/// Runs passes until `end`, which may also drop a pass: on every `wake`, after every move, and at
/// each interval. A row of failures is logged once when it begins and once when it ends.
pub async fn reconcile_until<R: Reconcile>(
    name: &str,
    reconciler: &mut R,
    wake: &Notify,
    limits: LoopLimits,
    end: impl Future<Output = ()>,
) {
    tokio::select! {
        () = end => {}
        () = passes(name, reconciler, wake, limits) => {}
    }
}

async fn passes<R: Reconcile>(name: &str, reconciler: &mut R, wake: &Notify, limits: LoopLimits) {
    let mut failures = 0_u32;
    let mut moves = 0_u32;
    loop {
        let failed = match timeout(limits.pass, reconciler.reconcile()).await {
            Ok(Ok(Reconciled::Moved)) if moves < limits.moves_in_a_row => {
                moves += 1;
                recovered(name, &mut failures);
                // Others on this thread get their turn between two passes.
                tokio::task::yield_now().await;
                continue;
            }
            Ok(Ok(Reconciled::Moved)) => {
                moves = 0;
                recovered(name, &mut failures);
                tokio::time::sleep(limits.pause_min).await;
                continue;
            }
            Ok(Ok(Reconciled::Settled)) => None,
            Ok(Err(error)) => Some(chain(&error)),
            Err(_) => Some(format!("the pass took longer than {:?}", limits.pass)),
        };
        moves = 0;
        if let Some(error) = failed {
            if failures == 0 {
                warn!(reconciler = name, %error, "reconciler began to fail");
            }
            let pause = limits.pause_min.saturating_mul(1 << failures.min(16));
            failures = failures.saturating_add(1);
            tokio::time::sleep(pause.min(limits.pause_max)).await;
        } else {
            recovered(name, &mut failures);
            // Either way the next pass looks at everything; a time-out is the interval.
            drop(timeout(limits.interval, wake.notified()).await);
        }
    }
}

fn recovered(name: &str, failures: &mut u32) {
    if *failures > 0 {
        info!(reconciler = name, failures, "reconciler works again");
        *failures = 0;
    }
}

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
