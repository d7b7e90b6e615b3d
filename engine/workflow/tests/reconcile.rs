//! When a reconciler runs.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use atoll_workflow::{LoopLimits, Reconcile, Reconciled, reconcile_until};
use tokio::sync::Notify;
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(20);

#[derive(Default)]
struct Counting {
    passes: usize,
    fail: usize,
    moves: usize,
    seen: Arc<Notify>,
}

#[async_trait]
impl Reconcile for Counting {
    type Error = io::Error;

    async fn reconcile(&mut self) -> Result<Reconciled, io::Error> {
        self.passes += 1;
        self.seen.notify_one();
        if self.passes <= self.fail {
            return Err(io::Error::other("not yet"));
        }
        let moves = self.passes <= self.fail + self.moves;
        Ok(if moves {
            Reconciled::Moved
        } else {
            Reconciled::Settled
        })
    }
}

async fn pass(seen: &Notify) {
    timeout(LIMIT, seen.notified()).await.expect("a pass comes");
}

#[tokio::test]
async fn failures_moves_and_lost_wakes_lead_to_another_pass() {
    let seen = Arc::new(Notify::new());
    let mut reconciler = Counting {
        fail: 2,
        moves: 3,
        seen: seen.clone(),
        ..Counting::default()
    };
    let limits = LoopLimits {
        interval: Duration::from_millis(10),
        pause_min: Duration::from_millis(1),
        ..LoopLimits::default()
    };
    // Two failures, three moves, the settled one, and two more by the interval alone.
    let end = async {
        for _ in 0..8 {
            pass(&seen).await;
        }
    };
    reconcile_until("test", &mut reconciler, &Notify::new(), limits, end).await;
    assert!(reconciler.passes >= 8);
}

#[tokio::test]
async fn a_settled_reconciler_rests_until_it_is_woken() {
    let (seen, wake) = (Arc::new(Notify::new()), Notify::new());
    let mut reconciler = Counting {
        seen: seen.clone(),
        ..Counting::default()
    };
    let limits = LoopLimits {
        interval: Duration::from_secs(3600),
        ..LoopLimits::default()
    };
    let end = async {
        pass(&seen).await;
        wake.notify_one();
        pass(&seen).await;
    };
    reconcile_until("test", &mut reconciler, &wake, limits, end).await;
    assert_eq!(reconciler.passes, 2);
}

#[tokio::test]
async fn a_wake_during_a_pass_is_not_lost() {
    struct WakesItself<'a>(&'a Notify, usize);

    #[async_trait]
    impl Reconcile for WakesItself<'_> {
        type Error = io::Error;

        async fn reconcile(&mut self) -> Result<Reconciled, io::Error> {
            self.1 += 1;
            if self.1 < 3 {
                self.0.notify_one();
            } else {
                self.0.notify_waiters();
            }
            Ok(Reconciled::Settled)
        }
    }

    let wake = Notify::new();
    let mut reconciler = WakesItself(&wake, 0);
    let limits = LoopLimits {
        interval: Duration::from_secs(3600),
        ..LoopLimits::default()
    };
    let end = tokio::time::sleep(Duration::from_millis(50));
    reconcile_until("test", &mut reconciler, &wake, limits, end).await;
    assert_eq!(reconciler.1, 3);
}
