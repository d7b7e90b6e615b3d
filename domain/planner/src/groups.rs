//! One group's step: where its primary and its shards go, and every condition for that.

mod checks;

use atoll_ownership::OpKind;
use atoll_ownership::record::{GroupRecord, Run, RunPhase};
use atoll_topology::{CellId, GroupId, MemberId, RegionId, ShardId, Term, format_shards};

use crate::choose::{Adoption, common_region, target};
use crate::limits::Limits;
use crate::observed::{Avoid, Observed, shards_in};
use crate::plan::{Check, Moved, Pace, Plan, Step};
use crate::refusal::{Refusal, Refused};

/// Who adopts the shards that move.
pub(crate) enum Adopt {
    /// This cell.
    To(CellId),
    /// A cell near the primary.
    Near,
    /// The owner that the topology prefers.
    Home,
}

/// What becomes of a primary.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It may stay where it is.
    May,
    /// It hands over to another.
    HandsOver,
    /// Whoever is left is recruited.
    GivenUp,
}

/// What is asked of one group.
pub(crate) struct Ask<'a> {
    /// Which runs move.
    pub(crate) leaves: &'a dyn Fn(&Run) -> bool,
    pub(crate) adopt: &'a Adopt,
    pub(crate) avoid: &'a Avoid,
    /// Recruit whoever is left, even if the primary could be reached.
    pub(crate) unplanned: bool,
    /// The running op that is taken over.
    pub(crate) over: Option<Term>,
}

/// A plan that grows group by group.
pub(crate) struct Draft<'a> {
    observed: &'a Observed,
    limits: &'a Limits,
    adoption: Adoption,
    steps: Vec<Step>,
    /// Groups that cannot be planned now; the others are.
    deferred: Vec<(GroupId, Refusal)>,
    checks: Vec<Check>,
    pub(crate) refusals: Vec<Refusal>,
}

impl<'a> Draft<'a> {
    pub(crate) fn new(observed: &'a Observed, limits: &'a Limits) -> Self {
        Self {
            observed,
            limits,
            adoption: Adoption::new(observed),
            steps: Vec::new(),
            deferred: Vec::new(),
            checks: Vec::new(),
            refusals: Vec::new(),
        }
    }

    pub(crate) fn refuse(&mut self, refusal: Refusal) {
        if !self.refusals.contains(&refusal) {
            self.refusals.push(refusal);
        }
    }

    /// Plans one group by itself: what speaks against it holds up no other group.
    pub(crate) fn group_alone(
        &mut self,
        record: &GroupRecord,
        ask: &Ask<'_>,
        guard: impl FnOnce(&Step) -> Result<(), Refusal>,
    ) {
        let (steps, checks, refusals) = (self.steps.len(), self.checks.len(), self.refusals.len());
        self.group(record, ask);
        if let Some(step) = self.steps.get(steps)
            && let Err(refusal) = guard(step)
        {
            self.refuse(refusal);
        }
        if self.refusals.len() > refusals {
            self.steps.truncate(steps);
            self.checks.truncate(checks);
            let why = self.refusals.split_off(refusals);
            self.deferred
                .extend(why.into_iter().map(|why| (record.group.clone(), why)));
        }
    }

    pub(crate) fn defer(&mut self, group: &GroupId, why: Refusal) {
        self.deferred.push((group.clone(), why));
    }

    /// Plans one group, if there is anything to do for it.
    pub(crate) fn group(&mut self, record: &GroupRecord, ask: &Ask<'_>) {
        let id = &record.group;
        let Some(open) = &record.open else {
            return self.refuse(Refusal::NotBorn(id.clone()));
        };
        let primary = &open.primary;
        let out_of_reach = self.observed.reachable(primary, self.limits).is_none();
        let leaving = ask.avoid.has_member(self.observed, id, primary);
        let fate = match (ask.unplanned || out_of_reach, leaving) {
            (true, _) => Fate::GivenUp,
            (false, true) => Fate::HandsOver,
            (false, false) => Fate::May,
        };
        let unplanned = fate == Fate::GivenUp;
        let wanted = self.wanted(record, ask);
        let Some(target) = self.target(record, ask, primary, fate, wanted.as_ref()) else {
            self.check_members(record, ask, unplanned);
            return self.refuse(Refusal::NoTarget { group: id.clone() });
        };
        let regions = (
            self.observed.region_of(id, primary).cloned(),
            self.observed.region_of(id, &target).cloned(),
        );
        let (Some(from_region), Some(target_region)) = regions else {
            return self.refuse(Refusal::NoSuchGroup(id.clone()));
        };
        let moves = self.moves(record, ask, &target_region);
        let kind = if unplanned {
            OpKind::Failover
        } else if target == *primary {
            OpKind::OwnerChange
        } else {
            OpKind::Switchover
        };
        let may_wait = fate == Fate::May || out_of_reach && !ask.unplanned && !leaving;
        if moves.is_empty() && may_wait && (unplanned || target == *primary) {
            // Nothing moves here; a primary that is merely out of reach is detection's matter.
            return;
        }
        if let Some(op) = record.op.as_ref().filter(|op| Some(op.term) != ask.over) {
            let refusal = Refusal::OpRunning {
                group: id.clone(),
                kind: op.kind,
                term: op.term,
            };
            return self.refuse(refusal);
        }
        let standbys = self.check_members(record, ask, unplanned);
        let standbys: Vec<_> = standbys
            .into_iter()
            .filter(|member| *member != target)
            .collect();
        self.check_hand_over(kind, primary, &target);
        let step = Step {
            group: id.clone(),
            kind,
            judged: open.term,
            over: ask.over,
            term: if kind == OpKind::OwnerChange {
                open.term
            } else {
                record.term.next()
            },
            from: primary.clone(),
            from_region,
            hold_ms: self.hold_ms(record, kind, &target, &standbys),
            target,
            target_region,
            standbys,
            awaited: record.k,
            moves,
            deadline_ms: match kind {
                OpKind::Failover => self.limits.failover_deadline_ms,
                _ => self.limits.switchover_deadline_ms,
            },
        };
        self.check_distance(record, &step);
        self.steps.push(step);
    }

    /// The region in which the primary should be afterwards, if its owners agree on one.
    fn wanted(&self, record: &GroupRecord, ask: &Ask<'_>) -> Option<RegionId> {
        let staying = record
            .runs
            .iter()
            .filter(|run| !(ask.leaves)(run))
            .map(|run| &run.cell);
        let owners: Vec<&CellId> = match ask.adopt {
            Adopt::To(cell) => staying.chain(std::iter::once(cell)).collect(),
            Adopt::Near => staying.collect(),
            Adopt::Home => record
                .runs
                .iter()
                .flat_map(|run| run.first.0..=run.last.0)
                .filter_map(|shard| self.home(ShardId(shard)))
                .collect(),
        };
        let region = common_region(self.observed, owners)?;
        (ask.avoid.region.as_ref() != Some(region)).then(|| region.clone())
    }

    fn home(&self, shard: ShardId) -> Option<&'a CellId> {
        self.observed
            .topology
            .shard_map
            .owners
            .get(usize::from(shard.0))
    }

    fn target(
        &self,
        record: &GroupRecord,
        ask: &Ask<'_>,
        primary: &MemberId,
        fate: Fate,
        wanted: Option<&RegionId>,
    ) -> Option<MemberId> {
        if fate == Fate::GivenUp {
            return target(self.observed, self.limits, record, ask.avoid, wanted);
        }
        let here = self.observed.region_of(&record.group, primary);
        if fate == Fate::May && (wanted.is_none() || wanted == here) {
            return Some(primary.clone());
        }
        let avoid = Avoid {
            member: Some(primary.clone()),
            ..ask.avoid.clone()
        };
        let found = target(self.observed, self.limits, record, &avoid, wanted);
        if fate == Fate::HandsOver {
            return found;
        }
        // It only moves to be with its owners: where no member is there, it stays.
        let there = |id: &MemberId| self.observed.region_of(&record.group, id) == wanted;
        found.filter(there).or_else(|| Some(primary.clone()))
    }

    fn moves(&mut self, record: &GroupRecord, ask: &Ask<'_>, near: &RegionId) -> Vec<Moved> {
        let mut moves: Vec<Moved> = Vec::new();
        for run in &record.runs {
            for (first, last, to) in self.destinations(record, run, ask, near) {
                if to == run.cell && ask.over.is_none() {
                    continue;
                }
                if !self.observed.is_up(&to, self.limits) {
                    self.refuse(Refusal::CellDown(to.clone()));
                }
                self.adoption.give(&run.cell, &to, shards_in(first, last));
                let (from, epoch) = (run.cell.clone(), run.epoch);
                moves.push(Moved {
                    first,
                    last,
                    from,
                    epoch,
                    to,
                });
            }
        }
        moves
    }

    /// Where the parts of a run go; nothing where it stays.
    fn destinations(
        &mut self,
        record: &GroupRecord,
        run: &Run,
        ask: &Ask<'_>,
        near: &RegionId,
    ) -> Vec<(ShardId, ShardId, CellId)> {
        let whole = |to: &CellId| vec![(run.first, run.last, to.clone())];
        let mut leaves = (ask.leaves)(run);
        // Of an op that is taken over: on to its target, else back, else to anyone.
        if let (RunPhase::Switching { leaving }, Some(_), false) = (&run.phase, ask.over, leaves) {
            if self.observed.is_up(&run.cell, self.limits) {
                return whole(&run.cell);
            }
            if self.observed.is_up(leaving, self.limits) {
                return whole(leaving);
            }
            leaves = true;
        }
        if !leaves {
            return Vec::new();
        }
        match ask.adopt {
            Adopt::To(cell) => whole(cell),
            Adopt::Near => match self
                .adoption
                .cell(self.observed, self.limits, ask.avoid, near)
            {
                Some(cell) => whole(&cell),
                None => {
                    let shards: Vec<_> = (run.first.0..=run.last.0).map(ShardId).collect();
                    let shards = format_shards(&shards);
                    self.refuse(Refusal::NoCell {
                        group: record.group.clone(),
                        shards,
                    });
                    Vec::new()
                }
            },
            Adopt::Home => {
                let mut parts: Vec<(ShardId, ShardId, CellId)> = Vec::new();
                for shard in (run.first.0..=run.last.0).map(ShardId) {
                    let Some(home) = self.home(shard) else {
                        continue;
                    };
                    match parts.last_mut() {
                        Some((_, last, to)) if to == home => *last = shard,
                        _ => parts.push((shard, shard, home.clone())),
                    }
                }
                parts.retain(|(_, _, to)| *to != run.cell);
                parts
            }
        }
    }

    /// The plan, or everything that speaks against it.
    pub(crate) fn finish(
        mut self,
        title: String,
        automatic: bool,
        pace: Pace,
    ) -> Result<Plan, Refused> {
        self.check_headroom();
        if self.steps.is_empty() && self.refusals.is_empty() {
            if self.deferred.is_empty() {
                self.refuse(Refusal::NothingToDo(title.clone()));
            }
            for (_, refusal) in std::mem::take(&mut self.deferred) {
                self.refuse(refusal);
            }
        }
        if !self.refusals.is_empty() {
            return Err(Refused(self.refusals));
        }
        let Self {
            steps,
            deferred,
            checks,
            ..
        } = self;
        let later = deferred
            .into_iter()
            .map(|(group, why)| (group, why.to_string()))
            .collect();
        Ok(Plan {
            title,
            automatic,
            pace,
            steps,
            later,
            checks,
        })
    }
}
