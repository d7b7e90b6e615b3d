//! What a campaign leaves: figures as JSON, and the same for people.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use atoll_workloads::{Fate, History, judge};
use bank::analyse::EventFigures;
use bank::report::Run;
use serde::Serialize;
use serde_json::json;

use super::act::Ended;
use super::controls::Control;
use super::draw::Fault;
use super::means::{SLOW_DISK_MECHANISM, Slowed};

/// Everything that was seen.
pub(crate) struct Findings {
    seed: u64,
    faults: BTreeMap<&'static str, u64>,
    skipped: BTreeMap<&'static str, String>,
    slowed: Vec<Slowed>,
    ordered: u64,
    carried_out: u64,
    not_carried_out: Vec<String>,
    anomalies: Vec<String>,
    bank: Outcomes,
    workloads: Outcomes,
    summary: String,
    rto_ms: Vec<f64>,
    controls: Vec<Control>,
}

/// How the writes of one load ended.
#[derive(Debug, Clone, Copy, Default, Serialize)]
struct Outcomes {
    acknowledged: u64,
    failed: u64,
    unknown: u64,
}

impl Findings {
    pub(crate) fn new(seed: u64, skipped: BTreeMap<&'static str, String>) -> Self {
        Self {
            seed,
            faults: BTreeMap::new(),
            skipped,
            slowed: Vec::new(),
            ordered: 0,
            carried_out: 0,
            not_carried_out: Vec::new(),
            anomalies: Vec::new(),
            bank: Outcomes::default(),
            workloads: Outcomes::default(),
            summary: String::new(),
            rto_ms: Vec::new(),
            controls: Vec::new(),
        }
    }

    pub(crate) fn fault(&mut self, fault: &Fault) {
        *self.faults.entry(fault.kind()).or_default() += 1;
    }

    pub(crate) fn operation(&mut self, ended: &Ended) {
        self.ordered += 1;
        match ended {
            Ended::Done => self.carried_out += 1,
            Ended::Not(why) => self.not_carried_out.push(why.clone()),
        }
    }

    pub(crate) fn anomaly(&mut self, what: String) {
        println!("  ANOMALY: {what}");
        self.anomalies.push(what);
    }

    pub(crate) fn books(&mut self, run: &Run) {
        let report = &run.report;
        self.bank = Outcomes {
            acknowledged: report.verdict.acknowledged,
            failed: report.failed,
            unknown: report.unknown,
        };
        self.summary = report.summary();
        if !report.sound() {
            self.anomaly(format!("the books: {}", report.summary()));
        }
    }

    /// What lists, registers and owners' acknowledgements say.
    pub(crate) fn history(&mut self, history: &History) {
        self.workloads = Outcomes {
            acknowledged: history.writes(Fate::Acknowledged),
            failed: history.writes(Fate::Failed),
            unknown: history.writes(Fate::Unknown),
        };
        for (oracle, what) in judge(history) {
            self.anomaly(format!("{oracle}: {what}"));
        }
    }

    /// Disks that were slowed down; one that was not slow is an anomaly of the campaign itself.
    pub(crate) fn slowed(&mut self, slowed: Vec<Slowed>) {
        for each in slowed {
            if !each.is_shown() {
                self.anomaly(format!("a disk was to be slow, and was not: {each:?}"));
            }
            self.slowed.push(each);
        }
    }

    pub(crate) fn recoveries(&mut self, figures: &[EventFigures]) {
        self.rto_ms = figures
            .iter()
            .filter_map(|figures| figures.rto_ms)
            .collect();
        self.rto_ms.sort_by(f64::total_cmp);
    }

    pub(crate) fn controls(&mut self, controls: Vec<Control>) {
        for control in controls.iter().filter(|control| !control.caught) {
            self.anomaly(format!("control not caught: {}", control.name));
        }
        self.controls = controls;
    }

    pub(crate) fn sound(&self) -> bool {
        self.anomalies.is_empty() && !self.controls.is_empty()
    }

    fn rto(&self, percent: usize) -> Option<f64> {
        let at = (self.rto_ms.len() * percent).div_ceil(100).max(1) - 1;
        self.rto_ms.get(at).copied()
    }

    /// `report.json` and `report.md`.
    pub(crate) fn write(&self, output: &Path) -> Result<()> {
        #[derive(Serialize)]
        struct Rto {
            p50: Option<f64>,
            p90: Option<f64>,
            p99: Option<f64>,
            max: Option<f64>,
        }
        let rto = Rto {
            p50: self.rto(50),
            p90: self.rto(90),
            p99: self.rto(99),
            max: self.rto(100),
        };
        let (bank, workloads) = (&self.bank, &self.workloads);
        let all = Outcomes {
            acknowledged: bank.acknowledged + workloads.acknowledged,
            failed: bank.failed + workloads.failed,
            unknown: bank.unknown + workloads.unknown,
        };
        let report = json!({
            "seed": self.seed,
            "faults": self.faults,
            "skipped": self.skipped,
            "slow_disk": { "mechanism": SLOW_DISK_MECHANISM, "shown": self.slowed },
            "ordered": self.ordered,
            "carried_out": self.carried_out,
            "not_carried_out": self.not_carried_out,
            "acknowledged": all.acknowledged,
            "failed": all.failed,
            "unknown": all.unknown,
            "loads": { "bank": self.bank, "lists-and-registers": self.workloads },
            "anomalies": self.anomalies,
            "rto_ms": rto,
            "controls": self.controls,
        });
        let write = |name: &str, text: String| {
            let path = output.join(name);
            fs::write(&path, text).with_context(|| path.display().to_string())
        };
        write("report.json", serde_json::to_string_pretty(&report)?)?;
        write("report.md", self.in_words())
    }

    pub(crate) fn in_words(&self) -> String {
        let total: u64 = self.faults.values().sum();
        let mut words = format!("# Campaign, seed {}\n\n{total} faults:\n", self.seed);
        for (kind, count) in &self.faults {
            words.push_str(&format!("- {kind}: {count}\n"));
        }
        if !self.skipped.is_empty() {
            words.push_str("\nnot done here:\n");
        }
        for (kind, reason) in &self.skipped {
            words.push_str(&format!("- {kind}: {reason}\n"));
        }
        if !self.slowed.is_empty() {
            words.push_str(&format!("\nslow disks: {SLOW_DISK_MECHANISM}\n"));
        }
        for each in &self.slowed {
            words.push_str(&format!(
                "- {}: a write of a few bytes took {:.0} ms before and {:.0} ms meanwhile; {} of {} \
                 processes felt it\n",
                each.member,
                each.before_ms,
                each.meanwhile_ms,
                each.processes,
                each.processes + each.without
            ));
        }
        words.push_str(&format!(
            "\n{} of {} orders carried out\n{}\n",
            self.carried_out, self.ordered, self.summary
        ));
        words.push_str(&format!(
            "lists and registers: {} acknowledged, {} failed, {} unknown\n",
            self.workloads.acknowledged, self.workloads.failed, self.workloads.unknown
        ));
        let ms = |value: Option<f64>| value.map_or("-".to_owned(), |ms| format!("{ms:.0}"));
        words.push_str(&format!(
            "rto p50 / p90 / p99 / max: {} / {} / {} / {} ms\n",
            ms(self.rto(50)),
            ms(self.rto(90)),
            ms(self.rto(99)),
            ms(self.rto(100))
        ));
        let caught = self
            .controls
            .iter()
            .filter(|control| control.caught)
            .count();
        words.push_str(&format!(
            "{caught} of {} negative controls caught\n",
            self.controls.len()
        ));
        if self.anomalies.is_empty() {
            words.push_str("no anomaly\n");
        } else {
            words.push_str(&format!("{} ANOMALIES:\n", self.anomalies.len()));
            for anomaly in &self.anomalies {
                words.push_str(&format!("- {anomaly}\n"));
            }
        }
        words
    }
}
