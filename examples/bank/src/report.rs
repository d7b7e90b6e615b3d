//! What a run of `bank load` leaves: a report as JSON, and one line per request beside it.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::oracle::{Fate, Verdict};

/// One transfer as its user saw it. One JSON array a line:
/// `[start_us, took_us, shard, region, gateway, attempts, fate, unknown_attempts]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Line", from = "Line")]
pub struct Request {
    /// When it should have been sent, in µs since the load's start. Waiting for the load itself
    /// counts, so that a slow system cannot hide behind a slow client.
    pub start_us: u64,
    /// From then to its last answer, in µs.
    pub took_us: u64,
    /// The user's shard.
    pub shard: u16,
    /// The user's home region: index into `Report::regions`.
    pub region: u16,
    /// The gateway that answered last: index into `Report::gateways`.
    pub gateway: u16,
    /// Gateways that were tried.
    pub attempts: u16,
    /// How it ended.
    pub fate: Fate,
    /// Attempts whose outcome nobody knew.
    pub unknown_attempts: u16,
}

type Line = (u64, u64, u16, u16, u16, u16, Fate, u16);

impl From<Request> for Line {
    fn from(r: Request) -> Self {
        let Request {
            start_us,
            took_us,
            shard,
            region,
            gateway,
            attempts,
            fate,
            ..
        } = r;
        (
            start_us,
            took_us,
            shard,
            region,
            gateway,
            attempts,
            fate,
            r.unknown_attempts,
        )
    }
}

impl From<Line> for Request {
    fn from(l: Line) -> Self {
        let (start_us, took_us, shard, region, gateway, attempts, fate, unknown_attempts) = l;
        Self {
            start_us,
            took_us,
            shard,
            region,
            gateway,
            attempts,
            fate,
            unknown_attempts,
        }
    }
}

impl Request {
    /// When it ended, in µs since the load's start.
    pub fn end_us(&self) -> u64 {
        self.start_us + self.took_us
    }
}

/// A gateway that was used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayUsed {
    /// Its process's name or address.
    pub name: String,
    /// Its region.
    pub region: String,
}

/// Percentiles of a set of latencies, in ms.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Half are faster.
    pub p50: f64,
    /// 99 % are faster.
    pub p99: f64,
    /// The slowest.
    pub max: f64,
}

impl Latency {
    /// Of latencies in µs, in any order; none of none.
    pub fn of(mut micros: Vec<u64>) -> Option<Self> {
        micros.sort_unstable();
        let at = |share: usize| {
            // Nearest rank: the smallest value that this share does not exceed.
            let rank = (micros.len() * share).div_ceil(100).max(1) - 1;
            micros.get(rank).map(|us| ms(*us))
        };
        Some(Self {
            p50: at(50)?,
            p99: at(99)?,
            max: at(100)?,
        })
    }
}

/// Microseconds as milliseconds.
pub fn ms(micros: u64) -> f64 {
    // One division of an exact number, so that it prints as short as it is. Waits longer than 71
    // minutes are cut off.
    f64::from(u32::try_from(micros).unwrap_or(u32::MAX)) / 1000.0
}

/// One second of one region. Counted by the second of the answer, latency by the second of the
/// start, so that a pause shows as missing answers *and* as the waits that it caused.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Second {
    /// Seconds since the load's start.
    pub second: u64,
    /// Acknowledged in this second.
    pub ok: u64,
    /// Refused by every gateway in this second.
    pub failed: u64,
    /// Given up in this second without an answer.
    pub unknown: u64,
    /// Latency of the acknowledged that started in this second.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<Latency>,
}

/// Something that happened during a run, as told through the control file or by the caller.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mark {
    /// Short name: `switchover`, `city-loss`.
    pub name: String,
    /// ms since 1970.
    pub at_unix_ms: u64,
    /// One line for people.
    #[serde(default)]
    pub text: String,
}

/// A run's report. Field names are those of the demo's report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Prefix of all its transfers' ids.
    pub run: String,
    /// Start of the load, in ms since 1970.
    pub started_unix_ms: u64,
    /// How long it lasted.
    pub seconds: f64,
    /// Transfers offered a second.
    pub rate: u32,
    /// Cities that users call home.
    pub regions: Vec<String>,
    /// Gateways, in the order that `Request::gateway` counts.
    pub gateways: Vec<GatewayUsed>,
    /// Transfers that users wanted.
    pub offered: u64,
    /// Transfers with an unknown attempt, whatever came of them later; they are also counted in
    /// one of `acknowledged`, `unknown_unresolved`.
    pub unknown: u64,
    /// Of those: acknowledged when asked again with the same key.
    pub unknown_acknowledged: u64,
    /// Of those: never acknowledged.
    pub unknown_unresolved: u64,
    /// No success after every gateway that may be tried, and surely not executed.
    pub failed: u64,
    /// Refused by the bank itself.
    pub refused: u64,
    /// Offered while too many were under way, and never sent; a limit of the load, not of Atoll.
    pub not_started: u64,
    /// What the oracle found.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// The same, from each source that was read.
    pub readings: BTreeMap<String, Verdict>,
    /// Latency of everything that was acknowledged.
    pub latency_ms: Option<Latency>,
    /// Each region's seconds.
    pub series: BTreeMap<String, Vec<Second>>,
    /// What happened meanwhile.
    pub marks: Vec<Mark>,
    /// File of the requests, beside the report.
    pub requests_file: String,
}

impl Report {
    /// Whether nothing acknowledged is lost, doubled or changed, all was read, and money adds up.
    /// A run in which nothing was acknowledged has shown nothing, and is not sound either.
    pub fn sound(&self) -> bool {
        self.verdict.acknowledged > 0
            && self.verdict.sound()
            && self.readings.values().all(Verdict::sound)
    }

    /// A few lines for people.
    pub fn summary(&self) -> String {
        let v = &self.verdict;
        let mut lines = vec![
            format!(
                "offered {}  acknowledged {}  failed {}  refused {}  unknown {} (acknowledged when asked again {})  not started {}",
                self.offered,
                v.acknowledged,
                self.failed,
                self.refused,
                self.unknown,
                self.unknown_acknowledged,
                self.not_started,
            ),
            format!(
                "present {}  lost {}  duplicated {}  altered {}  strangers {}  denied but present {}  conserved {}",
                v.present,
                v.lost,
                v.duplicated,
                v.altered,
                v.strangers,
                v.denied_but_present,
                v.conserved,
            ),
        ];
        if let Some(l) = self.latency_ms {
            lines.push(format!(
                "latency p50 {:.1} ms  p99 {:.1} ms  max {:.1} ms",
                l.p50, l.p99, l.max
            ));
        }
        for (source, verdict) in &self.readings {
            lines.push(format!("read from {source}: {}", verdict.in_words()));
        }
        let verdict = if self.sound() { "sound" } else { "NOT SOUND" };
        lines.push(format!("verdict: {verdict}"));
        lines.join("\n")
    }
}

/// A report with its requests.
#[derive(Debug, Clone)]
pub struct Run {
    /// The report.
    pub report: Report,
    /// Every transfer, by start.
    pub requests: Vec<Request>,
}

/// Where the requests of a report are kept: `x.json` → `x.requests.jsonl`.
pub fn requests_path(report: &Path) -> PathBuf {
    report.with_extension("requests.jsonl")
}

impl Run {
    /// Reads a report and its requests.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let reading = |path: &Path| {
            std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
        };
        let report = serde_json::from_str(&reading(path)?)
            .with_context(|| format!("{} is not a report", path.display()))?;
        let requests_path = requests_path(path);
        let lines = reading(&requests_path)?;
        let requests = lines
            .lines()
            .map(serde_json::from_str)
            .collect::<Result<_, _>>();
        let requests =
            requests.with_context(|| format!("{} holds no requests", requests_path.display()))?;
        Ok(Self { report, requests })
    }

    /// Writes both.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        if let Some(folder) = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
        {
            std::fs::create_dir_all(folder)?;
        }
        let mut lines = std::io::BufWriter::new(std::fs::File::create(requests_path(path))?);
        for request in &self.requests {
            serde_json::to_writer(&mut lines, request)?;
            lines.write_all(b"\n")?;
        }
        lines.flush()?;
        std::fs::write(path, serde_json::to_vec_pretty(&self.report)?)?;
        Ok(())
    }
}

/// Each region's seconds.
pub fn series(regions: &[String], requests: &[Request]) -> BTreeMap<String, Vec<Second>> {
    let last = requests
        .iter()
        .map(|r| r.end_us() / 1_000_000)
        .max()
        .unwrap_or(0);
    let mut all = BTreeMap::new();
    for (index, region) in regions.iter().enumerate() {
        let mine: Vec<_> = requests
            .iter()
            .filter(|r| usize::from(r.region) == index)
            .collect();
        let mut seconds: BTreeMap<u64, Second> = (0..=last)
            .map(|second| {
                (
                    second,
                    Second {
                        second,
                        ..Second::default()
                    },
                )
            })
            .collect();
        let mut latencies: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for request in mine {
            let second = seconds.entry(request.end_us() / 1_000_000).or_default();
            match request.fate {
                Fate::Acknowledged => {
                    second.ok += 1;
                    let start = request.start_us / 1_000_000;
                    latencies.entry(start).or_default().push(request.took_us);
                }
                Fate::Failed => second.failed += 1,
                Fate::Unknown => second.unknown += 1,
                Fate::Refused => {}
            }
        }
        for (second, micros) in latencies {
            seconds.entry(second).or_default().latency_ms = Latency::of(micros);
        }
        all.insert(region.clone(), seconds.into_values().collect());
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let all: Vec<u64> = (1..=200).map(|n| n * 1000).rev().collect();
        let latency = Latency::of(all).unwrap();
        assert_eq!(
            latency,
            Latency {
                p50: 100.0,
                p99: 198.0,
                max: 200.0
            }
        );
        assert_eq!(Latency::of(vec![]), None);
        assert_eq!(Latency::of(vec![1500]).map(|l| l.p99), Some(1.5));
    }

    #[test]
    fn a_request_is_one_short_line_and_comes_back() {
        let request = Request {
            start_us: 12,
            took_us: 3,
            shard: 42,
            region: 1,
            gateway: 3,
            attempts: 2,
            fate: Fate::Acknowledged,
            unknown_attempts: 1,
        };
        let line = serde_json::to_string(&request).unwrap();
        assert_eq!(line, r#"[12,3,42,1,3,2,"acknowledged",1]"#);
        assert_eq!(serde_json::from_str::<Request>(&line).unwrap(), request);
    }
}
