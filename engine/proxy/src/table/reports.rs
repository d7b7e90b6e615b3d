//! When the next report goes: the first at once, news at once, the rest in small batches, and
//! never later than the interval. Pulled by the stream, so that a slow one gets fewer and newer
//! reports instead of a queue.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::{REPORT_INTERVAL, REPORT_SPACING};

/// The rhythm of one stream's reports.
#[derive(Debug)]
pub struct Pace {
    news: watch::Receiver<u64>,
    rest: Option<(watch::Receiver<u64>, Duration)>,
    last: Option<Instant>,
}

impl Pace {
    /// Whatever bumps `news` is sent at once (a burst of it together, [`REPORT_SPACING`] apart).
    pub fn new(news: watch::Receiver<u64>) -> Self {
        Self {
            news,
            rest: None,
            last: None,
        }
    }

    /// Whatever bumps `rest` is sent, too, but at least `batch` after the last report.
    #[must_use]
    pub fn with_rest(mut self, rest: watch::Receiver<u64>, batch: Duration) -> Self {
        self.rest = Some((rest, batch));
        self
    }

    /// Waits until a report is due; false once there is nobody left who could report.
    pub async fn due(&mut self) -> bool {
        let alive = match self.last {
            None => true,
            Some(last) => self.after(last).await,
        };
        self.last = Some(Instant::now());
        self.news.borrow_and_update();
        if let Some((rest, _)) = &mut self.rest {
            rest.borrow_and_update();
        }
        alive
    }

    async fn after(&mut self, last: Instant) -> bool {
        let Self { news, rest, .. } = self;
        let rest = async {
            match rest {
                Some((rest, batch)) => {
                    // Its end is seen by `news`, whose sender lives as long.
                    if rest.changed().await.is_err() {
                        std::future::pending::<()>().await;
                    }
                    sleep_until(last + *batch).await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = news.changed() => {
                if changed.is_err() {
                    return false;
                }
                sleep_until(last + REPORT_SPACING).await;
            }
            () = rest => {}
            () = sleep_until(last + REPORT_INTERVAL) => {}
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn news_go_at_once_the_rest_in_batches_and_silence_not_beyond_the_interval() {
        let (news, seen) = watch::channel(0);
        let (rest, rest_seen) = watch::channel(0);
        let batch = Duration::from_millis(5);
        let mut pace = Pace::new(seen).with_rest(rest_seen, batch);
        let start = Instant::now();
        assert!(pace.due().await);
        assert_eq!(start.elapsed(), Duration::ZERO, "the first goes at once");
        assert!(pace.due().await);
        assert_eq!(start.elapsed(), REPORT_INTERVAL);

        tokio::time::advance(Duration::from_millis(50)).await;
        let before = Instant::now();
        news.send_modify(|n| *n += 1);
        assert!(pace.due().await);
        assert_eq!(before.elapsed(), Duration::ZERO, "news go at once");
        rest.send_modify(|n| *n += 1);
        assert!(pace.due().await);
        assert_eq!(before.elapsed(), batch);
        news.send_modify(|n| *n += 1);
        rest.send_modify(|n| *n += 1);
        assert!(pace.due().await);
        assert_eq!(
            before.elapsed(),
            batch + REPORT_SPACING,
            "a burst goes together"
        );
        drop(news);
        assert!(!pace.due().await);
    }
}
