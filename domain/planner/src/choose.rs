//! The one policy of choice, the same for a person's order and for a verdict: who leads, and who
//! adopts.

use std::collections::BTreeMap;

use atoll_ownership::record::GroupRecord;
use atoll_topology::{CellId, MemberId, Position, RegionId};

use crate::limits::Limits;
use crate::observed::{Avoid, Observed};

/// Logs that differ by less than this count as equally long: the difference is a beat's, and the
/// target reads it from the others in one round trip.
const NEAR_BYTES: u64 = 1 << 20;

/// The member that should lead: within reach, not avoided; in the wanted region if there is one;
/// then the longest log; then the order of the topology, whose author has spread the groups.
pub(crate) fn target(
    observed: &Observed,
    limits: &Limits,
    record: &GroupRecord,
    avoid: &Avoid,
    wanted: Option<&RegionId>,
) -> Option<MemberId> {
    let group = observed.topology.groups.get(&record.group)?;
    let candidates: Vec<(&MemberId, Position)> = group
        .members
        .iter()
        .filter(|member| !avoid.has_member(observed, &record.group, &member.id))
        .filter_map(|member| {
            let seen = observed.reachable(&member.id, limits)?;
            Some((&member.id, seen.position.unwrap_or_default()))
        })
        .collect();
    let longest = candidates
        .iter()
        .fold(Position::default(), |longest, (_, position)| {
            if position.ahead_of(longest) {
                *position
            } else {
                longest
            }
        });
    let elsewhere =
        |id: &MemberId| wanted.is_some() && observed.region_of(&record.group, id) != wanted;
    let shorter = |position: Position| {
        position.term != longest.term || longest.lsn.0 - position.lsn.0 >= NEAR_BYTES
    };
    let best = candidates
        .into_iter()
        .enumerate()
        .min_by_key(|(order, (id, position))| (elsewhere(id), shorter(*position), *order))?;
    Some(best.1.0.clone())
}

/// Who adopts shards, one choice after the other.
pub(crate) struct Adoption {
    /// Shards of each cell, those that this plan gives it included.
    shards: BTreeMap<CellId, u64>,
}

impl Adoption {
    pub(crate) fn new(observed: &Observed) -> Self {
        Self {
            shards: observed.shards_of_cells(),
        }
    }

    /// The cell that adopts: in the region where the data is led if any is up there, else the
    /// nearest region; of several, the one with the fewest shards, so that they spread evenly.
    pub(crate) fn cell(
        &self,
        observed: &Observed,
        limits: &Limits,
        avoid: &Avoid,
        near: &RegionId,
    ) -> Option<CellId> {
        let distance = |cell: &CellId| {
            let region = observed.region_of_cell(cell);
            let far = region != Some(near);
            (
                far,
                region.map_or(u64::MAX, |region| observed.round_trip_ms(near, region)),
            )
        };
        observed
            .cells_to_use(avoid, limits)
            .min_by_key(|cell| (distance(cell), self.shards.get(*cell).copied().unwrap_or(0)))
            .cloned()
    }

    /// Counts what a plan gives to a cell.
    pub(crate) fn give(&mut self, from: &CellId, to: &CellId, shards: u64) {
        if let Some(owned) = self.shards.get_mut(from) {
            *owned = owned.saturating_sub(shards);
        }
        *self.shards.entry(to.clone()).or_default() += shards;
    }
}

/// The region in which all the given owners are, if it is one.
pub(crate) fn common_region<'a>(
    observed: &'a Observed,
    owners: impl IntoIterator<Item = &'a CellId>,
) -> Option<&'a RegionId> {
    let mut regions = owners.into_iter().map(|cell| observed.region_of_cell(cell));
    let first = regions.next()??;
    regions.all(|region| region == Some(first)).then_some(first)
}
