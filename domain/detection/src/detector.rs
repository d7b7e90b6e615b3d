//! The detector: what must be remembered between two judgements, and nothing else.

use std::collections::BTreeMap;

use atoll_topology::{CellId, GroupId, MemberId, ProcessId, Term};

use crate::limits::Limits;
use crate::place::Sense;
use crate::reports::Reports;
use crate::verdict::Verdict;

/// Judges reports. Asked again and again (every 100 ms, or with every report), it repeats a
/// verdict until the records show that it was acted upon.
#[derive(Debug, Clone, Default)]
pub struct Detector {
    /// When it last judged; none: never.
    last_ms: Option<u64>,
    /// Since when it has judged without a gap: nothing can have been missing for longer.
    pub(crate) awake_since_ms: u64,
    /// Since when each observer has reported without a gap.
    steady: BTreeMap<Observer, Steady>,
    pub(crate) groups: BTreeMap<GroupId, Watched>,
    /// Since when an observer has never heard a member.
    pub(crate) unheard: BTreeMap<(MemberId, MemberId), u64>,
    pub(crate) senses: BTreeMap<(ProcessId, CellId), Sense>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Observer {
    Member(MemberId),
    Gateway(ProcessId),
}

#[derive(Debug, Clone, Copy)]
struct Steady {
    since_ms: u64,
    last_ms: u64,
}

/// What is remembered of the member that a group depends on now.
#[derive(Debug, Clone)]
pub(crate) struct Watched {
    pub(crate) member: MemberId,
    pub(crate) term: Term,
    /// An exit that had been reported before the member came to be depended on.
    pub(crate) old_exit_ms: Option<u64>,
    /// Since when its fresh reports have said that it does not lead.
    pub(crate) not_leading_since_ms: Option<u64>,
}

impl Detector {
    /// What is concluded from `reports` at `now_ms`. Reports from the future count as of now.
    pub fn judge(&mut self, reports: &Reports, limits: &Limits, now_ms: u64) -> Vec<Verdict> {
        let gap = self
            .last_ms
            .is_none_or(|last| now_ms.saturating_sub(last) > limits.judge_gap_ms);
        if gap {
            // The judge was away: what it did not hear meanwhile is its own absence.
            self.awake_since_ms = now_ms;
            self.steady.clear();
            self.unheard.clear();
            self.senses.clear();
            for watched in self.groups.values_mut() {
                watched.not_leading_since_ms = None;
            }
        }
        self.last_ms = Some(now_ms);
        self.settle(reports, limits, now_ms);
        let mut verdicts = self.judge_groups(reports, limits, now_ms);
        verdicts.extend(self.judge_places(reports, limits, now_ms));
        verdicts
    }

    /// Follows who reports without gaps.
    fn settle(&mut self, reports: &Reports, limits: &Limits, now_ms: u64) {
        let members = reports
            .members
            .iter()
            .map(|(id, report)| (Observer::Member(id.clone()), report.at_ms));
        let gateways = reports
            .gateways
            .iter()
            .map(|(id, report)| (Observer::Gateway(id.clone()), report.at_ms));
        let old = std::mem::take(&mut self.steady);
        for (observer, at_ms) in members.chain(gateways) {
            let fresh = now_ms.saturating_sub(at_ms) < limits.report_fresh_ms;
            let steady = match old.get(&observer) {
                _ if !fresh => continue,
                Some(old) if at_ms.saturating_sub(old.last_ms) < limits.report_fresh_ms => Steady {
                    since_ms: old.since_ms,
                    last_ms: at_ms,
                },
                _ => Steady {
                    since_ms: now_ms,
                    last_ms: at_ms,
                },
            };
            self.steady.insert(observer, steady);
        }
    }

    /// Whether an observer has a say: its report is fresh, and it has not just come back.
    pub(crate) fn has_say(&self, observer: &Observer, limits: &Limits, now_ms: u64) -> bool {
        self.steady
            .get(observer)
            .is_some_and(|s| now_ms.saturating_sub(s.since_ms) >= limits.observer_settle_ms)
    }

    /// Whether an observer's newest report is fresh.
    pub(crate) fn is_fresh(&self, observer: &Observer) -> bool {
        self.steady.contains_key(observer)
    }
}
