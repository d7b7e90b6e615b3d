//! Whom an op that has to go on takes as its target, and where its shards go. The driver makes
//! sure that nothing is lost whoever is chosen; a good choice only saves it a detour.

use atoll_ownership::Admitted;
use atoll_ownership::record::{GroupRecord, Move, RunPhase};
use atoll_streams::agent::MemberRole;
use atoll_topology::{CellId, MemberId, Position, Quorum, RegionId};

use crate::app::Control;
use crate::observe::{agents::Seen, planes};

/// The best live member: in the region of most of the group's owners if one is there, then the
/// one whose log goes furthest.
pub(crate) fn target(control: &Control, record: &GroupRecord) -> Option<MemberId> {
    target_in(control, record, owners_region(control, record).as_ref())
}

/// The best live member, one of `region` if there is one.
pub(crate) fn target_in(
    control: &Control,
    record: &GroupRecord,
    region: Option<&RegionId>,
) -> Option<MemberId> {
    let members = control.agents.members();
    let candidate = |id: &MemberId, seen: &Seen| -> Option<(bool, Position)> {
        let readable = !matches!(
            seen.status.role,
            MemberRole::Down | MemberRole::Rebuilding | MemberRole::Lost
        );
        if !seen.live() || !readable {
            return None;
        }
        let at_home = region.is_some() && control.region_of(id).as_ref() == region;
        Some((at_home, seen.position().unwrap_or_default()))
    };
    let mut best: Option<(&MemberId, (bool, Position))> = None;
    for admitted in &record.members {
        let Some(seen) = members.get(&admitted.id) else {
            continue;
        };
        if seen.status.volume.as_ref() != Some(&admitted.volume) {
            continue;
        }
        let Some(rank) = candidate(&admitted.id, seen) else {
            continue;
        };
        let better = best.as_ref().is_none_or(|(_, than)| {
            (rank.0 && !than.0) || (rank.0 == than.0 && rank.1.ahead_of(than.1))
        });
        if better {
            best = Some((&admitted.id, rank));
        }
    }
    best.map(|(id, _)| id.clone())
}

/// Whether enough members are heard to open a term at all.
pub(crate) fn may_recruit(control: &Control, record: &GroupRecord) -> bool {
    let members = control.agents.members();
    let live = |admitted: &&Admitted| members.get(&admitted.id).is_some_and(Seen::live);
    let quorum = Quorum {
        members: record.members.len(),
        k: usize::from(record.k),
    };
    record.members.iter().filter(live).count() >= quorum.recruits()
}

/// The region in which most of the group's shards are owned.
pub(crate) fn owners_region(control: &Control, record: &GroupRecord) -> Option<RegionId> {
    let mut counts = std::collections::BTreeMap::<RegionId, u32>::new();
    for run in &record.runs {
        if let Some(cell) = control.topology.cells.get(&run.cell) {
            let shards = u32::from(run.last.0 - run.first.0) + 1;
            *counts.entry(cell.region.clone()).or_default() += shards;
        }
    }
    counts
        .into_iter()
        .max_by_key(|(_, count)| *count)
        .map(|(region, _)| region)
}

/// Where the shards of an op that is taken over go: on to the coming cell if a router of it is
/// alive, else back to the one that they were leaving.
pub(crate) fn moves_after(control: &Control, record: &GroupRecord) -> Vec<Move> {
    let live = control.planes.live();
    let alive = |cell: &CellId| planes::has_router(&live, cell);
    record
        .runs
        .iter()
        .filter_map(|run| match &run.phase {
            RunPhase::Switching { leaving } if !alive(&run.cell) && alive(leaving) => Some(Move {
                first: run.first,
                last: run.last,
                to: leaving.clone(),
            }),
            RunPhase::Switching { .. } | RunPhase::Active => None,
        })
        .collect()
}
