//! What a person sees while the load runs: one living line per city on a terminal, plain lines
//! elsewhere.

use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tokio::time::{Instant, Interval, interval_at};

use crate::oracle::Fate;
use crate::report::{Latency, Mark, Request};
use crate::talk;

/// A living line is drawn anew this often.
const LIVE_EVERY: Duration = Duration::from_millis(500);
/// A plain line is written this often.
const PLAIN_EVERY: Duration = Duration::from_secs(5);

#[derive(Default)]
struct City {
    name: String,
    ok: u64,
    failed: u64,
    unknown: u64,
    ok_now: u64,
    micros: Vec<u64>,
}

pub(super) struct Live {
    cities: Vec<City>,
    screen: Option<(MultiProgress, Vec<ProgressBar>)>,
    every: Interval,
    period: Duration,
    marks_shown: usize,
}

impl Live {
    pub(super) fn new(regions: &[String]) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let period = if terminal { LIVE_EVERY } else { PLAIN_EVERY };
        let screen = terminal.then(|| {
            let screen = MultiProgress::new();
            let style = ProgressStyle::with_template("  {msg}")
                .unwrap_or_else(|_| ProgressStyle::default_spinner());
            let line = || screen.add(ProgressBar::new_spinner().with_style(style.clone()));
            let lines = regions.iter().map(|_| line()).collect();
            (screen, lines)
        });
        let city = |name: &String| City {
            name: name.clone(),
            ..City::default()
        };
        let cities = regions.iter().map(city).collect();
        Self {
            cities,
            screen,
            every: interval_at(Instant::now() + period, period),
            period,
            marks_shown: 0,
        }
    }

    pub(super) fn count(&mut self, request: &Request) {
        let Some(city) = self.cities.get_mut(usize::from(request.region)) else {
            return;
        };
        city.unknown += u64::from(request.unknown_attempts > 0);
        match request.fate {
            Fate::Acknowledged => {
                city.ok += 1;
                city.ok_now += 1;
                city.micros.push(request.took_us);
            }
            Fate::Failed => city.failed += 1,
            Fate::Unknown | Fate::Refused => {}
        }
    }

    /// Draws when it is time to; cancel-safe.
    pub(super) async fn tick(&mut self) {
        self.every.tick().await;
        self.draw();
    }

    fn draw(&mut self) {
        for (index, city) in self.cities.iter_mut().enumerate() {
            let line = city.line(self.period);
            match &self.screen {
                Some((_, lines)) => {
                    if let Some(bar) = lines.get(index) {
                        bar.set_message(line);
                        bar.tick();
                    }
                }
                None => talk::say(&line),
            }
        }
    }

    /// Shows events that were not shown yet.
    pub(super) fn marks(&mut self, marks: &[Mark]) {
        for mark in marks.iter().skip(self.marks_shown) {
            let line = format!("  ── {}  {}", mark.name, mark.text);
            match &self.screen {
                Some((screen, _)) => drop(screen.println(line)),
                None => talk::say(&line),
            }
        }
        self.marks_shown = self.marks_shown.max(marks.len());
    }

    pub(super) fn finish(&mut self) {
        self.draw();
        if let Some((_, lines)) = &self.screen {
            lines.iter().for_each(ProgressBar::abandon);
        }
    }
}

impl City {
    fn line(&mut self, period: Duration) -> String {
        let per_second = u64::try_from(period.as_millis()).unwrap_or(1000).max(1);
        let rate = std::mem::take(&mut self.ok_now) * 1000 / per_second;
        let waits = match Latency::of(std::mem::take(&mut self.micros)) {
            Some(l) => format!(
                "p50 {:>6.1} ms  p99 {:>7.1} ms  max {:>7.1} ms",
                l.p50, l.p99, l.max
            ),
            None => "no answers".into(),
        };
        format!(
            "{:<12} {rate:>5}/s  {waits}  ok {}  failed {}  unknown {}",
            self.name, self.ok, self.failed, self.unknown
        )
    }
}
