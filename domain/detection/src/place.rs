//! The place detector: is a cell, a zone or a city gone? Two of three kinds of signals, seen from
//! two regions, standing for a while.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use atoll_topology::{CellId, MemberId, RegionId, ZoneId};

use crate::detector::{Detector, Observer};
use crate::limits::Limits;
use crate::reports::{CellView, GroupView, Home, Reports, Seen};
use crate::verdict::{FrozenVerdict, Judged, LostVerdict, Scope, Signal, SignalKind, Verdict};

/// How one cell has looked from one gateway.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sense {
    /// Counts of the error window, oldest first, with the time of arrival.
    window: VecDeque<(u64, Seen)>,
    canary_bad_since_ms: Option<u64>,
    errors_bad_since_ms: Option<u64>,
}

impl Sense {
    fn take(&mut self, at_ms: u64, seen: Seen, limits: &Limits) {
        let Some((last_ms, last)) = self.window.back().copied() else {
            self.window.push_back((at_ms, seen));
            return;
        };
        if at_ms <= last_ms {
            return;
        }
        if seen.canary_ok < last.canary_ok || seen.requests < last.requests {
            // The gateway was restarted: its counts began anew.
            *self = Self {
                window: VecDeque::from([(at_ms, seen)]),
                ..Self::default()
            };
            return;
        }
        if seen.canary_ok > last.canary_ok {
            self.canary_bad_since_ms = None;
        } else if seen.canary_failed > last.canary_failed {
            // It was sent before it failed.
            let sent_ms = at_ms.saturating_sub(limits.canary_limit_ms);
            self.canary_bad_since_ms.get_or_insert(sent_ms);
        }
        self.window.push_back((at_ms, seen));
        let begin_ms = at_ms.saturating_sub(limits.error_window_ms);
        while self
            .window
            .get(1)
            .is_some_and(|(second_ms, _)| *second_ms <= begin_ms)
        {
            self.window.pop_front();
        }
        let first = self.window.front().map_or(seen, |(_, first)| *first);
        let requests = seen.requests - first.requests;
        let errors = seen.errors.saturating_sub(first.errors);
        // Too few answers say nothing, neither way: users of a cell that fails go away.
        if requests < limits.error_requests_min {
            return;
        }
        let bad = errors * 100 >= requests * limits.error_rate_percent
            || seen.latency_p99_ms >= limits.latency_p99_max_ms;
        self.errors_bad_since_ms = bad.then(|| self.errors_bad_since_ms.unwrap_or(at_ms));
    }

    fn is_bad(&self) -> bool {
        self.canary_bad_since_ms.is_some() || self.errors_bad_since_ms.is_some()
    }

    /// What was seen while an op ran says nothing about what comes after.
    fn forget(&mut self) {
        self.canary_bad_since_ms = None;
        self.errors_bad_since_ms = None;
    }
}

/// Signals of a place, by kind and region, each since its newest part.
#[derive(Default)]
struct Signals(BTreeMap<(SignalKind, RegionId), u64>);

impl Signals {
    fn add(&mut self, kind: SignalKind, from: &RegionId, since_ms: u64) {
        // Of several cells, the one that has been bad for the longest speaks for its place.
        let since = self.0.entry((kind, from.clone())).or_insert(since_ms);
        *since = (*since).min(since_ms);
    }

    fn merge(&mut self, other: &Self) {
        for ((kind, from), since_ms) in &other.0 {
            self.add(*kind, from, *since_ms);
        }
    }

    /// Two kinds from two regions, all of them standing for long enough: longer where the place still
    /// reports, and only others speak against it.
    fn convict(&self, holds: Holds, now_ms: u64) -> Option<Vec<Signal>> {
        let silent = |list: &[Signal]| list.iter().any(|signal| signal.kind == SignalKind::Silent);
        let now = self
            .standing(holds.silent_ms, now_ms)
            .filter(|list| silent(list));
        now.or_else(|| self.standing(holds.reporting_ms, now_ms))
    }

    /// Two kinds from two regions that have stood for at least `hold_ms`.
    fn standing(&self, hold_ms: u64, now_ms: u64) -> Option<Vec<Signal>> {
        let stands = |since_ms: u64| now_ms.saturating_sub(since_ms) >= hold_ms;
        let list: Vec<_> = self
            .0
            .iter()
            .filter(|(_, since_ms)| stands(**since_ms))
            .map(|((kind, from), since_ms)| Signal {
                kind: *kind,
                from: from.clone(),
                since_ms: *since_ms,
            })
            .collect();
        let kinds: BTreeSet<_> = list.iter().map(|signal| signal.kind).collect();
        let regions: BTreeSet<_> = list.iter().map(|signal| &signal.from).collect();
        (kinds.len() >= 2 && regions.len() >= 2).then_some(list)
    }
}

/// How long signals must stand against a place.
#[derive(Debug, Clone, Copy)]
struct Holds {
    /// Where it says nothing itself.
    silent_ms: u64,
    /// Where it reports.
    reporting_ms: u64,
}

impl Holds {
    fn of(limits: &Limits) -> Self {
        Self {
            silent_ms: limits.signal_hold_ms,
            reporting_ms: limits.reporting_hold_ms,
        }
    }
}

/// What is known about one cell at this moment.
struct Cell<'r> {
    view: &'r CellView,
    signals: Signals,
    silent_since_ms: Option<u64>,
}

impl Detector {
    pub(crate) fn judge_places(
        &mut self,
        reports: &Reports,
        limits: &Limits,
        now_ms: u64,
    ) -> Vec<Verdict> {
        self.sense(reports, limits);
        let mut busy = busy_cells(reports, now_ms);
        let starved = self.starved_cells(reports).into_iter();
        busy.extend(starved.filter(|cell| {
            let view = reports.cells.get(cell);
            view.is_none_or(|view| self.silent_since(view, limits, now_ms).is_none())
        }));
        // An op explains failing canaries, but no op keeps a cell from reporting.
        let explained: BTreeSet<&CellId> = busy
            .iter()
            .filter(|cell| {
                let view = reports.cells.get(*cell);
                view.is_none_or(|view| self.silent_since(view, limits, now_ms).is_none())
            })
            .collect();
        for ((_, cell), sense) in &mut self.senses {
            if explained.contains(cell) {
                sense.forget();
            }
        }
        let (witnesses, abstain) = self.witnesses(reports, limits, now_ms);
        let cells: BTreeMap<&CellId, Cell<'_>> = reports
            .cells
            .iter()
            .map(|(id, view)| {
                let use_senses = !busy.contains(id);
                let mut cell = self.look(view, reports, limits, now_ms);
                if use_senses {
                    self.hear(id, &witnesses, &mut cell.signals);
                }
                (id, cell)
            })
            .collect();
        let blind = witnesses.is_empty() && abstain;
        let holds = Holds::of(limits);
        // Two cities at once: nothing is moved; and once both have stood for the hold time, owner
        // changes freeze until a person has looked. A cell that reports becomes suspect only then: when
        // a city is lost, the load that comes to the others must not keep its shards from moving.
        let at_once = Holds {
            silent_ms: 0,
            ..holds
        };
        if suspects(&cells, blind, at_once, now_ms).len() > 1 {
            let held = suspects(&cells, blind, holds, now_ms);
            let frozen = held.len() > 1;
            let regions = held.into_iter().collect();
            let frozen = frozen.then_some(Verdict::Frozen(FrozenVerdict { regions }));
            return frozen.into_iter().collect();
        }
        let mut lost = Vec::new();
        let mut covered: BTreeSet<&CellId> = BTreeSet::new();
        for scope in self.silent_places(&cells, reports) {
            let inside: Vec<_> = cells
                .iter()
                .filter(|(id, cell)| !covered.contains(**id) && scope_holds(&scope, cell.view))
                .collect();
            let mut signals = Signals::default();
            inside
                .iter()
                .for_each(|(_, cell)| signals.merge(&cell.signals));
            if let Some(signals) = signals.convict(holds, now_ms) {
                let ids: Vec<_> = inside.iter().map(|(id, _)| (**id).clone()).collect();
                covered.extend(inside.iter().map(|(id, _)| **id));
                lost.extend(verdict(reports, scope, &ids, signals));
            }
        }
        for (id, cell) in cells.iter().filter(|(id, _)| !covered.contains(**id)) {
            if let Some(signals) = cell.signals.convict(holds, now_ms) {
                let zone = Some(&cell.view.zones).filter(|zones| zones.len() == 1);
                let scope = Scope::Cell {
                    cell: (*id).clone(),
                    region: cell.view.region.clone(),
                    zone: zone.and_then(|zones| zones.first().cloned()),
                };
                lost.extend(verdict(reports, scope, std::slice::from_ref(*id), signals));
            }
        }
        lost.into_iter().map(Verdict::Lost).collect()
    }

    /// Cells that own shards of a group which cannot acknowledge a write now: its primary is not
    /// heard or does not serve, or too few standbys take its log. That explains canaries and errors
    /// of a cell that reports, as an op does; it is the group detector's business, and no sign of a second lost city.
    fn starved_cells(&self, reports: &Reports) -> BTreeSet<CellId> {
        let serves = |group: &GroupView| {
            let Some((term, primary)) = &group.open else {
                return false;
            };
            let fresh = |id: &MemberId| {
                let heard = self.is_fresh(&Observer::Member(id.clone()));
                reports.members.get(id).filter(|_| heard)
            };
            // A standby may take the log from another one that takes it from the primary.
            let carries = |id: &&MemberId| {
                let first = fresh(id).and_then(|report| report.follows.as_ref());
                first.is_some_and(|first| {
                    let second = fresh(first).and_then(|report| report.follows.as_ref());
                    first == primary || second == Some(primary)
                })
            };
            let standbys = group.members.keys().filter(carries).count();
            fresh(primary).is_some_and(|own| own.open == *term) && standbys >= usize::from(group.k)
        };
        let starved = reports.groups.values().filter(|group| !serves(group));
        starved
            .flat_map(|group| &group.runs)
            .map(|run| run.cell.clone())
            .collect()
    }

    fn sense(&mut self, reports: &Reports, limits: &Limits) {
        self.senses.retain(|(gateway, cell), _| {
            reports
                .gateways
                .get(gateway)
                .is_some_and(|report| report.sees.contains_key(cell))
        });
        for (gateway, report) in &reports.gateways {
            for (cell, seen) in &report.sees {
                let sense = self
                    .senses
                    .entry((gateway.clone(), cell.clone()))
                    .or_default();
                sense.take(report.at_ms, *seen, limits);
            }
        }
    }

    /// The gateways that have a say, by region; and whether any abstains. An observer that sees
    /// most cells down, in more than one city, suspects itself.
    fn witnesses<'r>(
        &self,
        reports: &'r Reports,
        limits: &Limits,
        now_ms: u64,
    ) -> (
        BTreeMap<&'r RegionId, Vec<&'r atoll_topology::ProcessId>>,
        bool,
    ) {
        let mut witnesses: BTreeMap<_, Vec<_>> = BTreeMap::new();
        let mut abstain = false;
        for (gateway, report) in &reports.gateways {
            if !self.has_say(&Observer::Gateway(gateway.clone()), limits, now_ms) {
                continue;
            }
            let bad: Vec<_> = report
                .sees
                .keys()
                .filter(|cell| {
                    let sense = self.senses.get(&(gateway.clone(), (*cell).clone()));
                    sense.is_some_and(Sense::is_bad)
                })
                .collect();
            let regions: BTreeSet<_> = bad
                .iter()
                .filter_map(|cell| reports.cells.get(*cell))
                .map(|view| &view.region)
                .collect();
            if bad.len() * 2 > report.sees.len() && regions.len() > 1 {
                abstain = true;
            } else {
                witnesses.entry(&report.region).or_default().push(gateway);
            }
        }
        (witnesses, abstain)
    }

    /// Since when a cell's own report has counted as missing.
    fn silent_since(&self, view: &CellView, limits: &Limits, now_ms: u64) -> Option<u64> {
        // A cell that has never reported has not come up yet.
        let reported_ms = view.reported_ms?.max(self.awake_since_ms);
        let since_ms = reported_ms + limits.report_missing_ms;
        (since_ms <= now_ms).then_some(since_ms)
    }

    /// The cell's own report.
    fn look<'r>(
        &self,
        view: &'r CellView,
        reports: &Reports,
        limits: &Limits,
        now_ms: u64,
    ) -> Cell<'r> {
        let mut signals = Signals::default();
        let since_ms = self.silent_since(view, limits, now_ms);
        if let Some(since_ms) = since_ms {
            signals.add(SignalKind::Silent, &reports.here, since_ms);
        }
        Cell {
            view,
            signals,
            silent_since_ms: since_ms,
        }
    }

    /// What gateways see of a cell: in each region, more than half of its witnesses must agree.
    fn hear(
        &self,
        cell: &CellId,
        witnesses: &BTreeMap<&RegionId, Vec<&atoll_topology::ProcessId>>,
        signals: &mut Signals,
    ) {
        for (region, gateways) in witnesses {
            let senses: Vec<_> = gateways
                .iter()
                .filter_map(|gateway| self.senses.get(&((*gateway).clone(), cell.clone())))
                .collect();
            for (kind, since_ms) in [
                (
                    SignalKind::Canary,
                    agreed(&senses, |sense| sense.canary_bad_since_ms),
                ),
                (
                    SignalKind::Errors,
                    agreed(&senses, |sense| sense.errors_bad_since_ms),
                ),
            ] {
                if let Some(since_ms) = since_ms {
                    signals.add(kind, region, since_ms);
                }
            }
        }
    }

    /// Regions, then zones, of which nothing is heard: no cell and no member reports.
    fn silent_places(&self, cells: &BTreeMap<&CellId, Cell<'_>>, reports: &Reports) -> Vec<Scope> {
        let members: Vec<(&MemberId, &Home)> = reports
            .groups
            .values()
            .flat_map(|group| &group.members)
            .collect();
        let silent = |scope: &Scope| {
            let heard = members.iter().any(|(id, home)| {
                let inside = match scope.zone() {
                    Some(zone) => home.zone == *zone,
                    None => home.region == *scope.region(),
                };
                inside && self.is_fresh(&Observer::Member((*id).clone()))
            });
            let mut inside = cells
                .values()
                .filter(|cell| scope_holds(scope, cell.view))
                .peekable();
            !heard && inside.peek().is_some() && inside.all(|cell| cell.silent_since_ms.is_some())
        };
        let regions: BTreeSet<&RegionId> = cells.values().map(|cell| &cell.view.region).collect();
        let regions = regions.into_iter().map(|region| Scope::Region {
            region: region.clone(),
        });
        let zones: BTreeSet<(&RegionId, &ZoneId)> = cells
            .values()
            .flat_map(|cell| cell.view.zones.iter().map(|zone| (&cell.view.region, zone)))
            .collect();
        let zones = zones.into_iter().map(|(region, zone)| Scope::Zone {
            zone: zone.clone(),
            region: region.clone(),
        });
        regions.chain(zones).filter(silent).collect()
    }
}

/// Since when more than half say so.
fn agreed(senses: &[&Sense], since: impl Fn(&Sense) -> Option<u64>) -> Option<u64> {
    let mut bad: Vec<_> = senses.iter().filter_map(|sense| since(sense)).collect();
    if bad.len() * 2 <= senses.len() {
        return None;
    }
    bad.sort_unstable();
    bad.get(senses.len() / 2).copied()
}

/// Whether a cell lies wholly in a scope.
fn scope_holds(scope: &Scope, view: &CellView) -> bool {
    view.region == *scope.region()
        && scope
            .zone()
            .is_none_or(|zone| view.zones.iter().all(|own| own == zone))
}

/// Cells whose shards go through an op that is not overdue: it explains canaries and errors.
fn busy_cells(reports: &Reports, now_ms: u64) -> BTreeSet<CellId> {
    reports
        .groups
        .values()
        .filter(|group| group.op.as_ref().is_some_and(|op| now_ms < op.deadline_ms))
        .flat_map(|group| &group.runs)
        .flat_map(|run| std::iter::once(&run.cell).chain(&run.leaving))
        .cloned()
        .collect()
}

/// Regions with a cell against which there is enough, standing for so long; where every witness
/// abstains, those that say nothing themselves.
fn suspects(
    cells: &BTreeMap<&CellId, Cell<'_>>,
    blind: bool,
    holds: Holds,
    now_ms: u64,
) -> BTreeSet<RegionId> {
    let suspect = |cell: &&Cell<'_>| {
        let silent = || {
            cell.silent_since_ms
                .is_some_and(|since| now_ms - since >= holds.silent_ms)
        };
        cell.signals.convict(holds, now_ms).is_some() || blind && silent()
    };
    cells
        .values()
        .filter(suspect)
        .map(|cell| cell.view.region.clone())
        .collect()
}

/// A verdict on those of the cells that own shards; none if none does.
fn verdict(
    reports: &Reports,
    scope: Scope,
    cells: &[CellId],
    signals: Vec<Signal>,
) -> Option<LostVerdict> {
    let judged: Vec<_> = reports
        .groups
        .iter()
        .filter_map(|(id, group)| {
            let (term, _) = group.open.as_ref()?;
            let runs: Vec<_> = group
                .runs
                .iter()
                .filter(|run| cells.contains(&run.cell))
                .cloned()
                .collect();
            (!runs.is_empty()).then(|| Judged {
                group: id.clone(),
                term: *term,
                runs,
            })
        })
        .collect();
    let owning = |cell: &&CellId| {
        judged
            .iter()
            .any(|j| j.runs.iter().any(|r| r.cell == **cell))
    };
    let cells: Vec<_> = cells.iter().filter(owning).cloned().collect();
    (!cells.is_empty()).then_some(LostVerdict {
        scope,
        cells,
        judged,
        signals,
    })
}
