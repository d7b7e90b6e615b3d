//! One group's step: where its primary and its shards go, and every condition for that.

use std::collections::{BTreeMap, BTreeSet};

use atoll_ownership::OpKind;
use atoll_ownership::record::{GroupRecord, Run, RunPhase};
use atoll_topology::{CellId, GroupId, MemberId, RegionId, ShardId, Term, format_shards};

use crate::choose::{Adoption, common_region, target};
use crate::limits::Limits;
use crate::observed::{Avoid, Observed, shards_in};
use crate::plan::{Check, Moved, Pace, Plan, Step};
use crate::refusal::{Refusal, Refused};

/// The parts of a hold that no distance changes, and its round trips between the old primary, the
/// coming one and the standbys; from what was measured and budgeted.
const SWITCHOVER_HOLD: (u64, u64) = (125, 8);
const OWNER_CHANGE_HOLD: (u64, u64) = (75, 4);
const FAILOVER_HOLD: (u64, u64) = (300, 10);

/// Who adopts the shards that move.
pub(crate) enum Adopt {
    /// This cell.
    To(CellId),
    /// A cell near the primary.
    Near,
    /// The owner that the topology prefers.
    Home,
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
        let unplanned = ask.unplanned || out_of_reach;
        let leaving = ask.avoid.has_member(self.observed, id, primary);
        let stays = !unplanned && !leaving;
        let wanted = self.wanted(record, ask);
        let Some(target) = self.target(record, ask, primary, stays, unplanned, wanted.as_ref())
        else {
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
        let may_wait = stays || out_of_reach && !ask.unplanned && !leaving;
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
        stays: bool,
        unplanned: bool,
        wanted: Option<&RegionId>,
    ) -> Option<MemberId> {
        if unplanned {
            return target(self.observed, self.limits, record, ask.avoid, wanted);
        }
        let here = self.observed.region_of(&record.group, primary);
        if stays && (wanted.is_none() || wanted == here) {
            return Some(primary.clone());
        }
        let avoid = Avoid {
            member: Some(primary.clone()),
            ..ask.avoid.clone()
        };
        let found = target(self.observed, self.limits, record, &avoid, wanted);
        if !stays {
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

    /// The members that take part. There must be enough of them to recruit and to acknowledge.
    fn check_members(
        &mut self,
        record: &GroupRecord,
        ask: &Ask<'_>,
        unplanned: bool,
    ) -> Vec<MemberId> {
        let group = &record.group;
        let reachable: Vec<MemberId> = record
            .members
            .iter()
            .map(|member| &member.id)
            .filter(|id| self.observed.reachable(id, self.limits).is_some())
            .filter(|id| !unplanned || !ask.avoid.has_member(self.observed, group, id))
            .cloned()
            .collect();
        let (n, members) = (reachable.len(), record.members.len());
        let needed = record.quorum().survivors();
        if n < needed {
            let refusal = Refusal::TooFewMembers {
                group: group.clone(),
                reachable: n,
                members,
                needed,
            };
            self.refuse(refusal);
        } else {
            let message = format!("{group}: {n} of {members} within reach, {needed} needed");
            self.checks.push(if n > needed {
                Check::passed("members", message)
            } else {
                Check::warned("members", message + "; no second fault is left")
            });
        }
        reachable
    }

    /// What a planned hand-over waits for: the target's lag, the oldest transaction.
    fn check_hand_over(&mut self, kind: OpKind, primary: &MemberId, target: &MemberId) {
        if kind == OpKind::Failover {
            return;
        }
        let (limits, seen) = (self.limits, |id| self.observed.reachable(id, self.limits));
        let (Some(old), Some(new)) = (seen(primary), seen(target)) else {
            return;
        };
        let (age_ms, limit_ms) = (old.oldest_transaction_ms, limits.oldest_transaction_ms_max);
        if age_ms > limit_ms {
            let member = primary.clone();
            self.refuse(Refusal::OldTransaction {
                member,
                age_ms,
                limit_ms,
            });
        } else {
            let message = format!("{primary}: {age_ms} ms, at most {limit_ms} ms");
            self.checks
                .push(Check::passed("oldest-transaction", message));
        }
        if kind != OpKind::Switchover {
            return;
        }
        let unsent = match (old.position, new.position) {
            (Some(old), Some(new)) => old.lsn.0.saturating_sub(new.lsn.0),
            _ => 0,
        };
        let (lag_bytes, limit) = (unsent + new.replay_lag_bytes, limits.lag_bytes_max);
        if lag_bytes > limit {
            let member = target.clone();
            self.refuse(Refusal::Lag {
                member,
                lag_bytes,
                limit,
            });
        } else {
            let message = format!("{target}: {lag_bytes} bytes, at most {limit}");
            self.checks.push(Check::passed("replication-lag", message));
        }
    }

    /// Owners that will write across regions, and what that costs.
    fn check_distance(&mut self, record: &GroupRecord, step: &Step) {
        let moved = |run: &&Run| {
            step.moves
                .iter()
                .any(|m| m.first <= run.first && run.last <= m.last)
        };
        let staying = record
            .runs
            .iter()
            .filter(|run| !moved(run))
            .map(|run| &run.cell);
        let owners: BTreeSet<_> = staying.chain(step.moves.iter().map(|m| &m.to)).collect();
        for cell in owners {
            let Some(region) = self.observed.region_of_cell(cell) else {
                continue;
            };
            let ms = self.observed.round_trip_ms(region, &step.target_region);
            if *region != step.target_region {
                let (group, there) = (&step.group, &step.target_region);
                let message = format!(
                    "cell {cell} in {region} writes to {group} in {there}: {ms} ms more a statement"
                );
                self.checks.push(Check::warned("distance", message));
            }
        }
    }

    fn hold_ms(
        &self,
        record: &GroupRecord,
        kind: OpKind,
        target: &MemberId,
        standbys: &[MemberId],
    ) -> u64 {
        let region = |id: &MemberId| self.observed.region_of(&record.group, id).cloned();
        let trip = |other: &MemberId| match (region(target), region(other)) {
            (Some(a), Some(b)) => self.observed.round_trip_ms(&a, &b),
            _ => 0,
        };
        let mut trips: Vec<u64> = standbys.iter().map(trip).collect();
        trips.sort_unstable();
        // A commit waits for the k nearest.
        let quorum = trips
            .get(usize::from(record.k).saturating_sub(1))
            .copied()
            .unwrap_or(0);
        let primary = record.open.as_ref().map_or(0, |open| trip(&open.primary));
        let ((fixed, trips), round_trip) = match kind {
            OpKind::Switchover => (SWITCHOVER_HOLD, quorum.max(primary)),
            OpKind::OwnerChange | OpKind::CallOff => (OWNER_CHANGE_HOLD, quorum),
            OpKind::Failover => (FAILOVER_HOLD, quorum),
        };
        fixed + trips * round_trip
    }

    /// Whether the adopting cells can carry what they are given.
    fn check_headroom(&mut self) {
        let before = self.observed.shards_of_cells();
        let capacity = |cell: &CellId| self.observed.cells.get(cell).and_then(|seen| seen.capacity);
        let mut added: BTreeMap<&CellId, u64> = BTreeMap::new();
        let steps = std::mem::take(&mut self.steps);
        for moved in steps.iter().flat_map(|step| &step.moves) {
            let owned = before.get(&moved.from).copied().unwrap_or(0).max(1);
            let used = capacity(&moved.from).map_or(0, |capacity| capacity.used);
            *added.entry(&moved.to).or_default() +=
                (used * shards_in(moved.first, moved.last)).div_ceil(owned);
        }
        for (cell, more) in added {
            let Some(now) = capacity(cell) else {
                let message = format!("nobody has said what cell {cell} can carry");
                self.checks.push(Check::warned("headroom", message));
                continue;
            };
            let wanted = now.used + more;
            let room = now.limit * self.limits.headroom_percent_max / 100;
            if wanted > room {
                self.refuse(Refusal::NoHeadroom {
                    cell: cell.clone(),
                    wanted,
                    room,
                });
            } else {
                let message = format!("{cell}: {wanted} requests a second, room for {room}");
                self.checks.push(Check::passed("headroom", message));
            }
        }
        self.steps = steps;
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
