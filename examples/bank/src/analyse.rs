//! Figures of a window of a run: who waited how long, and when service came back.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::oracle::Fate;
use crate::report::{Latency, Request, Run, ms};

/// Which requests are meant: those under way at some time in `[from, to]`.
#[derive(Debug, Clone)]
pub struct Window {
    /// In ms since 1970.
    pub from_unix_ms: u64,
    /// In ms since 1970.
    pub to_unix_ms: u64,
    /// Only these shards; all when absent.
    pub shards: Option<BTreeSet<u16>>,
}

/// What happened to the requests of a window.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Requests.
    pub requests: u64,
    /// Of them acknowledged.
    pub acknowledged: u64,
    /// No success at any gateway.
    pub failed: u64,
    /// With an unknown attempt.
    pub unknown: u64,
    /// Latency of the acknowledged.
    pub latency_ms: Option<Latency>,
}

/// Something that was done to the world, and whom it concerned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// `switchover`, `process-kill`, `city-loss`, `failback`.
    pub name: String,
    /// The order or the freeze (t0), in ms since 1970.
    pub at_unix_ms: u64,
    /// When its effects were over, in ms since 1970.
    pub until_unix_ms: u64,
    /// The cells concerned, with their shards at t0.
    pub cells: BTreeMap<String, BTreeSet<u16>>,
    /// Region whose gateways were lost too; its users are not bystanders.
    #[serde(default)]
    pub lost_region: Option<String>,
    /// t0 to the verdict; not seen from here, handed through.
    #[serde(default)]
    pub detection_ms: Option<f64>,
    /// Publication to the last live acknowledgement; not seen from here, handed through.
    #[serde(default)]
    pub convergence_ms: Option<f64>,
}

/// An event's figures, with the demo report's field names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EventFigures {
    /// As given.
    pub name: String,
    /// As given.
    pub at_unix_ms: u64,
    /// As given.
    pub until_unix_ms: u64,
    /// As given.
    pub detection_ms: Option<f64>,
    /// As given.
    pub convergence_ms: Option<f64>,
    /// Latency of the concerned shards' requests that had to wait: slower than any quiet one.
    pub hold_ms: Option<Latency>,
    /// How many these are.
    pub held: u64,
    /// t0 to the first acknowledged write after the outage, the worst cell.
    pub rto_ms: Option<f64>,
    /// The same for each cell.
    pub rto_by_cell_ms: BTreeMap<String, Option<f64>>,
    /// Requests of the concerned shards without success.
    pub failed: u64,
    /// Requests of the concerned shards with an unknown attempt.
    pub unknown: u64,
    /// Users of other cells who enter elsewhere.
    pub bystanders: Figures,
    /// Their p99 before the event, over the quiet seconds.
    pub quiet_p99_ms: Option<f64>,
}

/// Quiet time before an event that its figures are compared with.
const QUIET_MS: u64 = 10_000;

impl Run {
    fn micros(&self, unix_ms: u64) -> u64 {
        unix_ms
            .saturating_sub(self.report.started_unix_ms)
            .saturating_mul(1000)
    }

    fn under_way(&self, window: &Window) -> impl Iterator<Item = &Request> {
        let (from, to) = (
            self.micros(window.from_unix_ms),
            self.micros(window.to_unix_ms),
        );
        let shards = window.shards.clone();
        self.requests.iter().filter(move |r| {
            r.start_us <= to
                && r.end_us() >= from
                && shards
                    .as_ref()
                    .is_none_or(|shards| shards.contains(&r.shard))
        })
    }
}

/// The figures of a window.
pub fn figures(run: &Run, window: &Window) -> Figures {
    sum(run.under_way(window))
}

fn sum<'a>(requests: impl Iterator<Item = &'a Request>) -> Figures {
    let mut figures = Figures::default();
    let mut micros = Vec::new();
    for request in requests {
        figures.requests += 1;
        figures.unknown += u64::from(request.unknown_attempts > 0);
        figures.failed += u64::from(request.fate == Fate::Failed);
        if request.fate == Fate::Acknowledged {
            figures.acknowledged += 1;
            micros.push(request.took_us);
        }
    }
    figures.latency_ms = Latency::of(micros);
    figures
}

/// The first write of these shards that was acknowledged at or after `unix_ms`, in ms after it.
pub fn first_acknowledged_after(run: &Run, unix_ms: u64, shards: &BTreeSet<u16>) -> Option<f64> {
    let from = run.micros(unix_ms);
    acknowledged(run, shards)
        .filter(|end| *end >= from)
        .min()
        .map(|end| ms(end - from))
}

fn acknowledged<'a>(run: &'a Run, shards: &'a BTreeSet<u16>) -> impl Iterator<Item = u64> + 'a {
    let mine = |r: &&Request| r.fate == Fate::Acknowledged && shards.contains(&r.shard);
    run.requests.iter().filter(mine).map(Request::end_us)
}

/// From `from` to the acknowledgement that ended the longest silence in `[from, until]`, in ms;
/// none if that silence never ended. A straggler that was already on its way at `from` would make
/// "the first acknowledgement after it" look far too good, so that one is not what counts.
pub fn restored_after(run: &Run, from: u64, until: u64, shards: &BTreeSet<u16>) -> Option<f64> {
    let (from, until) = (run.micros(from), run.micros(until));
    let mut ends: Vec<u64> = acknowledged(run, shards)
        .filter(|end| *end >= from)
        .collect();
    ends.sort_unstable();
    let mut before = from;
    let mut longest = None;
    for end in ends {
        if before > until {
            break;
        }
        let silence = end - before;
        if longest.is_none_or(|(length, _)| silence > length) {
            longest = Some((silence, end));
        }
        before = end;
    }
    let (length, end) = longest?;
    // Silent up to the end of the window, and longer than anything before: not restored in it.
    if until.saturating_sub(before) > length {
        return None;
    }
    Some(ms(end - from))
}

/// All figures of an event.
pub fn event(run: &Run, event: &Event) -> EventFigures {
    let concerned: BTreeSet<u16> = event.cells.values().flatten().copied().collect();
    let window = Window {
        from_unix_ms: event.at_unix_ms,
        to_unix_ms: event.until_unix_ms,
        shards: Some(concerned.clone()),
    };
    let lost = event.lost_region.as_ref();
    let lost = lost.and_then(|name| run.report.regions.iter().position(|region| region == name));
    let bystander = |r: &&Request| {
        !concerned.contains(&r.shard) && lost.is_none_or(|lost| usize::from(r.region) != lost)
    };
    let quiet = Window {
        from_unix_ms: event.at_unix_ms.saturating_sub(QUIET_MS),
        to_unix_ms: event.at_unix_ms,
        shards: None,
    };
    // Only those that ended before the event are quiet.
    let t0 = run.micros(event.at_unix_ms);
    let quiet: Vec<_> = run.under_way(&quiet).filter(|r| r.end_us() < t0).collect();
    let slowest_quiet = quiet.iter().filter(|r| concerned.contains(&r.shard));
    let slowest_quiet = slowest_quiet.map(|r| r.took_us).max().unwrap_or(0);

    let all = sum(run.under_way(&window));
    let waited = |r: &&Request| r.fate == Fate::Acknowledged && r.took_us > slowest_quiet;
    let held: Vec<u64> = run
        .under_way(&window)
        .filter(waited)
        .map(|r| r.took_us)
        .collect();
    let rto_by_cell_ms: BTreeMap<String, Option<f64>> = event
        .cells
        .iter()
        .map(|(cell, shards)| {
            let restored = restored_after(run, event.at_unix_ms, event.until_unix_ms, shards);
            (cell.clone(), restored)
        })
        .collect();
    // A cell that never came back makes the worst one unknown, not good.
    let worst: Option<Vec<f64>> = rto_by_cell_ms.values().copied().collect();
    let rto_ms = worst.and_then(|all| all.into_iter().reduce(f64::max));
    let everyone = Window {
        shards: None,
        ..window
    };
    EventFigures {
        name: event.name.clone(),
        at_unix_ms: event.at_unix_ms,
        until_unix_ms: event.until_unix_ms,
        detection_ms: event.detection_ms,
        convergence_ms: event.convergence_ms,
        held: u64::try_from(held.len()).unwrap_or(u64::MAX),
        hold_ms: Latency::of(held),
        rto_ms,
        rto_by_cell_ms,
        failed: all.failed,
        unknown: all.unknown,
        bystanders: sum(run.under_way(&everyone).filter(bystander)),
        quiet_p99_ms: sum(quiet.into_iter().filter(bystander))
            .latency_ms
            .map(|l| l.p99),
    }
}

/// The figures of all events of a run.
pub fn analyse(run: &Run, events: &[Event]) -> Vec<EventFigures> {
    events.iter().map(|e| event(run, e)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Report;

    const START: u64 = 1_000_000;

    fn request(start_ms: u64, took_ms: u64, shard: u16, fate: Fate) -> Request {
        Request {
            start_us: start_ms * 1000,
            took_us: took_ms * 1000,
            shard,
            region: 0,
            gateway: 0,
            attempts: 1,
            fate,
            unknown_attempts: u16::from(fate == Fate::Unknown),
        }
    }

    /// Two cells, one request each every 10 ms of 20 s; the one with shard 1 is silent from 10 s
    /// to 13 s, its requests are held, and a straggler is acknowledged 5 ms after the loss.
    fn run() -> Run {
        let mut requests = Vec::new();
        for n in 0..2000_u64 {
            let at = n * 10;
            requests.push(request(at, 4, 0, Fate::Acknowledged));
            let held = if (10_000..13_000).contains(&at) {
                13_000 - at
            } else {
                5
            };
            requests.push(request(at, held, 1, Fate::Acknowledged));
        }
        requests.push(request(9_998, 5, 1, Fate::Acknowledged));
        requests.push(request(10_500, 2_000, 1, Fate::Failed));
        requests.push(request(10_500, 2_000, 1, Fate::Unknown));
        let report = Report {
            run: "r".into(),
            started_unix_ms: START,
            seconds: 20.0,
            rate: 200,
            regions: vec!["hz".into()],
            gateways: vec![],
            offered: 4003,
            unknown: 1,
            unknown_acknowledged: 0,
            unknown_unresolved: 1,
            failed: 1,
            refused: 0,
            not_started: 0,
            verdict: crate::oracle::Verdict::default(),
            readings: BTreeMap::new(),
            latency_ms: None,
            series: BTreeMap::new(),
            marks: vec![],
            requests_file: String::new(),
        };
        Run { report, requests }
    }

    fn loss() -> Event {
        Event {
            name: "city-loss".into(),
            at_unix_ms: START + 10_000,
            until_unix_ms: START + 15_000,
            cells: [("cell-b".to_owned(), [1].into())].into(),
            lost_region: None,
            detection_ms: Some(2000.0),
            convergence_ms: None,
        }
    }

    #[test]
    fn the_outage_ends_with_the_acknowledgement_that_ends_the_silence() {
        let figures = event(&run(), &loss());
        assert_eq!(figures.rto_ms, Some(3000.0), "{figures:?}");
        let shards = [1].into();
        // The plain reading of "first acknowledged write" is fooled by the straggler.
        assert_eq!(
            first_acknowledged_after(&run(), START + 10_000, &shards),
            Some(3.0)
        );
    }

    #[test]
    fn only_those_who_waited_count_as_held() {
        let figures = event(&run(), &loss());
        assert_eq!((figures.held, figures.failed, figures.unknown), (300, 1, 1));
        let hold = figures.hold_ms.unwrap();
        assert_eq!((hold.p50, hold.max), (1500.0, 3000.0));
    }

    #[test]
    fn bystanders_are_told_apart_and_compared_with_the_quiet_before() {
        let figures = event(&run(), &loss());
        assert_eq!(figures.bystanders.failed, 0);
        assert_eq!(figures.bystanders.latency_ms.map(|l| l.p99), Some(4.0));
        assert_eq!(figures.quiet_p99_ms, Some(4.0));
    }

    #[test]
    fn a_cell_that_never_comes_back_has_no_rto() {
        let mut run = run();
        run.requests
            .retain(|r| r.shard != 1 || r.end_us() < 10_000_000);
        assert_eq!(event(&run, &loss()).rto_ms, None);
    }
}
