//! The newest report of each receiver, and what of it control has not been told yet.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use atoll_proxy::table::{Collect, Pace, StreamId};
use atoll_streams::{MeshReport, Report};
use atoll_topology::ProcessId;
use tokio::sync::watch;
use tokio::time::Instant;

/// Reports without news wait this long for others, so that many receivers cost few messages.
const BATCH: Duration = Duration::from_millis(5);
/// A report older than this says nothing any more: its sender may be dead. Control must not take
/// it for a sign of life when a new stream begins with all that is known.
const REPORT_LIFE: Duration = Duration::from_secs(1);

/// The newest report of each receiver.
#[derive(Debug)]
pub(crate) struct Board {
    known: Mutex<Known>,
    news: watch::Sender<u64>,
    rest: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Known {
    receivers: BTreeMap<ProcessId, Entry>,
    /// Counts reports; what has a greater number than a stream has sent is new to it.
    number: u64,
}

#[derive(Debug)]
struct Entry {
    stream: StreamId,
    report: Report,
    number: u64,
    at: Instant,
}

impl Default for Board {
    fn default() -> Self {
        Self {
            known: Mutex::default(),
            news: watch::Sender::new(0),
            rest: watch::Sender::new(0),
        }
    }
}

impl Board {
    /// When a stream to control should send.
    pub(crate) fn pace(&self) -> Pace {
        Pace::new(self.news.subscribe()).with_rest(self.rest.subscribe(), BATCH)
    }

    /// The reports after number `after`, and the number to ask with next; 0 asks for all.
    pub(crate) fn after(&self, after: u64) -> (Vec<Report>, u64) {
        let known = self.known();
        let fresh = |entry: &&Entry| entry.number > after && entry.at.elapsed() < REPORT_LIFE;
        let reports = known
            .receivers
            .values()
            .filter(fresh)
            .map(|entry| entry.report.clone());
        (reports.collect(), known.number)
    }

    /// The newest report of each receiver.
    pub(crate) fn receivers(&self) -> Vec<Report> {
        self.known()
            .receivers
            .values()
            .map(|entry| entry.report.clone())
            .collect()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collect for Board {
    fn data_plane(&self, stream: StreamId, report: Report) {
        let news = {
            let mut known = self.known();
            known.number += 1;
            let number = known.number;
            let process = report.process.clone();
            let entry = Entry {
                stream,
                report,
                number,
                at: Instant::now(),
            };
            match known.receivers.get(&process) {
                // A receiver's older stream may end later than its newer one begins.
                Some(before) if before.stream > stream => return,
                Some(before) => {
                    let news = entry.report.is_news_after(&before.report);
                    known.receivers.insert(process, entry);
                    news
                }
                None => {
                    known.receivers.insert(process, entry);
                    true
                }
            }
        };
        let told = if news { &self.news } else { &self.rest };
        told.send_modify(|count| *count = count.wrapping_add(1));
    }

    fn mesh(&self, stream: StreamId, report: MeshReport) {
        for report in report.reports {
            self.data_plane(stream, report);
        }
    }

    fn ended(&self, stream: StreamId) {
        self.known()
            .receivers
            .retain(|_, entry| entry.stream != stream);
    }
}

#[cfg(test)]
mod tests {
    use atoll_routing::TableVersion;
    use atoll_streams::Role;
    use atoll_topology::RegionId;

    use super::*;

    fn report(process: &str, in_use: u64) -> Report {
        Report {
            process: ProcessId::parse(process).unwrap(),
            role: Role::Gateway,
            region: RegionId::parse("hz").unwrap(),
            cell: None,
            held: None,
            in_use: Some(TableVersion {
                world: "w".into(),
                number: in_use,
            }),
            loads: vec![],
            openings: vec![],
            cells: vec![],
            unix_ms: 0,
            draining: false,
            requests: None,
        }
    }

    fn names(reports: &[Report]) -> Vec<&str> {
        reports
            .iter()
            .map(|report| report.process.as_str())
            .collect()
    }

    #[tokio::test(start_paused = true)]
    async fn each_stream_gets_what_is_new_to_it_and_nothing_that_is_old() {
        let board = Board::default();
        board.data_plane(StreamId(1), report("a", 1));
        board.data_plane(StreamId(2), report("b", 1));
        let (reports, at) = board.after(0);
        assert_eq!(names(&reports), ["a", "b"]);
        board.data_plane(StreamId(2), report("b", 2));
        let (reports, at) = board.after(at);
        assert_eq!(names(&reports), ["b"]);
        assert_eq!(board.after(at).0, []);
        tokio::time::advance(REPORT_LIFE).await;
        assert_eq!(board.after(0).0, [], "an old report is no sign of life");
    }

    #[tokio::test(start_paused = true)]
    async fn a_receiver_that_came_again_is_not_lost_when_its_old_stream_ends() {
        let board = Board::default();
        board.data_plane(StreamId(1), report("a", 1));
        board.data_plane(StreamId(2), report("a", 2));
        board.data_plane(StreamId(1), report("a", 1));
        board.ended(StreamId(1));
        assert_eq!(board.receivers(), [report("a", 2)]);
        board.ended(StreamId(2));
        assert_eq!(board.receivers(), []);
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_switch_waits_for_goes_up_at_once() {
        let board = Board::default();
        let mut pace = board.pace();
        assert!(pace.due().await);
        board.data_plane(StreamId(1), report("a", 1));
        assert!(pace.due().await);
        let start = Instant::now();
        board.data_plane(StreamId(1), report("a", 1));
        assert!(pace.due().await);
        assert_eq!(start.elapsed(), BATCH);
        tokio::time::advance(BATCH).await;
        let start = Instant::now();
        board.data_plane(StreamId(1), report("a", 2));
        assert!(pace.due().await);
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
}
