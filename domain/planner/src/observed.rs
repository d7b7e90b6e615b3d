//! What a plan is made from: intent (topology), records, and what agents and data planes last said.

use std::collections::BTreeMap;

use atoll_detection::guard::Guard;
use atoll_ownership::record::GroupRecord;
use atoll_topology::{
    CellId, CellKind, GroupId, MemberId, Position, RegionId, ShardId, Topology, ZoneId,
};

use crate::limits::Limits;

/// Everything that a plan is made from, at one moment.
#[derive(Debug, Clone)]
pub struct Observed {
    /// What is wanted.
    pub topology: Topology,
    /// The record of each group.
    pub records: BTreeMap<GroupId, GroupRecord>,
    /// What each member last said.
    pub members: BTreeMap<MemberId, MemberSeen>,
    /// What goes round the owner's privilege on a member that leads: rule and object.
    pub broken_privileges: BTreeMap<MemberId, String>,
    /// What each cell last said.
    pub cells: BTreeMap<CellId, CellSeen>,
    /// What automation has done lately.
    pub guard: Guard,
    /// Now, in milliseconds of Unix time.
    pub now_ms: u64,
}

/// What a member last said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemberSeen {
    /// When that arrived.
    pub at_ms: u64,
    /// Whether it can be recruited: its volume is the admitted one and its log can be read.
    pub usable: bool,
    /// How far its log goes; none: not said.
    pub position: Option<Position>,
    /// Log that it has received and not replayed.
    pub replay_lag_bytes: u64,
    /// Age of the oldest transaction that writes, where it leads.
    pub oldest_transaction_ms: u64,
}

/// What a cell last said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CellSeen {
    /// When any of its processes last reported.
    pub at_ms: u64,
    /// What it carries; none: nobody has said, and headroom cannot be checked.
    pub capacity: Option<Capacity>,
}

/// What a cell carries and could carry, in requests a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Now.
    pub used: u64,
    /// At most.
    pub limit: u64,
}

/// Places that a plan leaves or keeps away from.
#[derive(Debug, Clone, Default)]
pub(crate) struct Avoid {
    pub(crate) region: Option<RegionId>,
    pub(crate) zone: Option<ZoneId>,
    pub(crate) cells: Vec<CellId>,
    pub(crate) member: Option<MemberId>,
}

impl Observed {
    fn fresh(&self, at_ms: u64, limits: &Limits) -> bool {
        self.now_ms.saturating_sub(at_ms) < limits.seen_fresh_ms
    }

    /// What a member last said, if that is fresh and it can be recruited.
    pub(crate) fn reachable(&self, member: &MemberId, limits: &Limits) -> Option<&MemberSeen> {
        self.members
            .get(member)
            .filter(|seen| seen.usable && self.fresh(seen.at_ms, limits))
    }

    /// Whether a cell has said something lately.
    pub(crate) fn is_up(&self, cell: &CellId, limits: &Limits) -> bool {
        self.cells
            .get(cell)
            .is_some_and(|seen| self.fresh(seen.at_ms, limits))
    }

    pub(crate) fn zone_of(&self, group: &GroupId, member: &MemberId) -> Option<&ZoneId> {
        let group = self.topology.groups.get(group)?;
        group
            .members
            .iter()
            .find(|own| own.id == *member)
            .map(|own| &own.zone)
    }

    pub(crate) fn region_of(&self, group: &GroupId, member: &MemberId) -> Option<&RegionId> {
        Some(
            &self
                .topology
                .zones
                .get(self.zone_of(group, member)?)?
                .region,
        )
    }

    pub(crate) fn region_of_cell(&self, cell: &CellId) -> Option<&RegionId> {
        self.topology.cells.get(cell).map(|cell| &cell.region)
    }

    pub(crate) fn round_trip_ms(&self, a: &RegionId, b: &RegionId) -> u64 {
        let region = self.topology.regions.get(a);
        region
            .and_then(|region| region.round_trip_ms.get(b))
            .copied()
            .map_or(0, u64::from)
    }

    /// Sharded cells that are up and not avoided.
    pub(crate) fn cells_to_use<'a>(
        &'a self,
        avoid: &'a Avoid,
        limits: &'a Limits,
    ) -> impl Iterator<Item = &'a CellId> {
        let usable = |id: &CellId| !avoid.has_cell(self, id) && self.is_up(id, limits);
        let sharded = self
            .topology
            .cells
            .iter()
            .filter(|(_, c)| c.kind == CellKind::Sharded);
        sharded.map(|(id, _)| id).filter(move |id| usable(id))
    }

    /// How many shards each cell owns or is about to own, over all records.
    pub(crate) fn shards_of_cells(&self) -> BTreeMap<CellId, u64> {
        let mut count: BTreeMap<CellId, u64> = BTreeMap::new();
        for run in self.records.values().flat_map(|record| &record.runs) {
            *count.entry(run.cell.clone()).or_default() += shards_in(run.first, run.last);
        }
        count
    }
}

/// How many shards stand from `first` to `last`, both included.
pub(crate) fn shards_in(first: ShardId, last: ShardId) -> u64 {
    u64::from(last.0.saturating_sub(first.0)) + 1
}

impl Avoid {
    pub(crate) fn has_cell(&self, observed: &Observed, id: &CellId) -> bool {
        let Some(cell) = observed.topology.cells.get(id) else {
            return true;
        };
        self.cells.contains(id)
            || self.region.as_ref() == Some(&cell.region)
            || self
                .zone
                .as_ref()
                .is_some_and(|zone| cell.slots.values().all(|slot| slot.zone == *zone))
    }

    pub(crate) fn has_member(&self, observed: &Observed, group: &GroupId, id: &MemberId) -> bool {
        self.member.as_ref() == Some(id)
            || self.region.is_some() && self.region.as_ref() == observed.region_of(group, id)
            || self.zone.is_some() && self.zone.as_ref() == observed.zone_of(group, id)
    }
}
