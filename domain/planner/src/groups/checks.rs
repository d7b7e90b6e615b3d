//! The conditions of a step, and how long its requests will wait.

use std::collections::{BTreeMap, BTreeSet};

use atoll_ownership::OpKind;
use atoll_ownership::record::{GroupRecord, Run};
use atoll_topology::{CellId, MemberId};

use super::{Ask, Draft};
use crate::observed::shards_in;
use crate::plan::{Check, Step};
use crate::refusal::Refusal;

/// The parts of a hold that no distance changes, and its round trips between the old primary, the
/// coming one and the standbys; from what was measured and budgeted.
const SWITCHOVER_HOLD: (u64, u64) = (125, 8);
const OWNER_CHANGE_HOLD: (u64, u64) = (75, 4);
const FAILOVER_HOLD: (u64, u64) = (300, 10);

impl Draft<'_> {
    /// The members that take part. There must be enough of them to recruit and to acknowledge.
    pub(super) fn check_members(
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
    pub(super) fn check_hand_over(&mut self, kind: OpKind, primary: &MemberId, target: &MemberId) {
        if kind == OpKind::Failover {
            return;
        }
        let (limits, seen) = (self.limits, |id| self.observed.reachable(id, self.limits));
        let (Some(old), Some(new)) = (seen(primary), seen(target)) else {
            return;
        };
        if let Some(what) = self.observed.broken_privileges.get(primary) {
            let (member, what) = (primary.clone(), what.clone());
            self.refuse(Refusal::BrokenPrivilege { member, what });
        }
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
    pub(super) fn check_distance(&mut self, record: &GroupRecord, step: &Step) {
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

    pub(super) fn hold_ms(
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
    pub(super) fn check_headroom(&mut self) {
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
}
