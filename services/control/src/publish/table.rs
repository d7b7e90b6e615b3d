//! The routing table, built from what the store holds: a pure function.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use atoll_ownership::OpKind;
use atoll_ownership::record::{GroupRecord, RunPhase};
use atoll_routing::{CellRow, Closed, GroupRow, Instance, Phase, ShardRow, Table, TableVersion};
use atoll_topology::{CellId, Epoch, GroupId, ShardId, SlotName, Topology};

use super::decided::{Decided, waits};
use crate::places::{APPLICATION_PORT, GATEWAY_PEER_PORT, PlaceRole, Places, SQL_PORT};

/// The table that the tables' readers should use now.
pub(crate) fn build(
    version: TableVersion,
    topology: &Topology,
    places: &Places,
    decided: &Decided,
) -> Table {
    let records = &decided.groups;
    let number = topology.shard_map.owners.len();
    let shard = |index: usize| {
        let shard = ShardId(u16::try_from(index).unwrap_or(u16::MAX));
        shard_row(shard, topology, decided)
    };
    Table {
        version,
        scheme: topology.shard_map.scheme,
        shards: (0..number).map(shard).collect(),
        cells: cells(topology, places),
        groups: topology
            .groups
            .keys()
            .map(|group| (group.clone(), group_row(group, topology, places, records)))
            .collect(),
        round_trip_ms: topology
            .regions
            .iter()
            .flat_map(|(from, region)| {
                let to = |(to, ms): (&_, &u32)| ((from.clone(), Clone::clone(to)), *ms);
                region.round_trip_ms.iter().map(to).collect::<Vec<_>>()
            })
            .collect(),
        routes: topology.routes.clone(),
    }
}

fn shard_row(shard: ShardId, topology: &Topology, decided: &Decided) -> ShardRow {
    let stored = decided
        .groups
        .iter()
        .find_map(|(group, record)| record.run_of(shard).map(|run| (group, record, run)));
    if let Some((group, record, run)) = stored {
        let waits = waits(record, &decided.stages);
        let row = |cell: &CellId, epoch, phase| ShardRow {
            cell: cell.clone(),
            epoch,
            phase,
            group: group.clone(),
        };
        let switching = |leaving: &CellId, closed| Phase::Switching {
            leaving: leaving.clone(),
            closed,
        };
        return match (&run.phase, waits) {
            // Not born: whoever asks waits.
            (RunPhase::Active, _) if record.open.is_none() => {
                row(&run.cell, run.epoch, switching(&run.cell, Closed::All))
            }
            // The whole group waits for its new primary; these shards keep owner and epoch.
            (RunPhase::Active, Some(closed)) if primary_moves(record) => {
                row(&run.cell, run.epoch, switching(&run.cell, closed))
            }
            (RunPhase::Active, _) => row(&run.cell, run.epoch, Phase::Active),
            (RunPhase::Switching { leaving }, Some(closed)) => {
                row(&run.cell, run.epoch, switching(leaving, closed))
            }
            // Nobody waits yet, so all is as it was: a planned op finds its shards Active, and
            // takes them one epoch further.
            (RunPhase::Switching { leaving }, None) => {
                let before = Epoch::new(run.epoch.get().saturating_sub(1));
                row(leaving, before, Phase::Active)
            }
        };
    }
    // The group is not admitted yet.
    let cell = topology.shard_map.owners[usize::from(shard.0)].clone();
    let group = topology
        .groups
        .iter()
        .find(|(_, group)| group.shards.contains(&shard))
        .map_or_else(
            || topology.groups.keys().next().cloned(),
            |(id, _)| Some(id.clone()),
        );
    ShardRow {
        phase: Phase::Switching {
            leaving: cell.clone(),
            closed: Closed::All,
        },
        cell,
        epoch: Epoch::ZERO,
        group: group.unwrap_or_else(unreachable_group),
    }
}

/// A validated topology stores every shard somewhere, so this is never asked for.
fn unreachable_group() -> GroupId {
    #[expect(clippy::expect_used, reason = "a constant that parses")]
    GroupId::parse("none").expect("a valid name")
}

/// Whether the group's op gives it another primary, so that all its shards wait.
fn primary_moves(record: &GroupRecord) -> bool {
    record
        .op
        .as_ref()
        .is_some_and(|op| op.kind != OpKind::OwnerChange)
}

fn cells(topology: &Topology, places: &Places) -> BTreeMap<CellId, CellRow> {
    let row = |id: &CellId, cell: &atoll_topology::Cell| CellRow {
        kind: cell.kind,
        region: cell.region.clone(),
        gateways: places
            .of_cell(id, PlaceRole::Gateway, GATEWAY_PEER_PORT)
            .collect(),
        instances: places
            .of_cell(id, PlaceRole::Application, APPLICATION_PORT)
            .map(|address| Instance {
                address,
                slot: SlotName::Blue,
            })
            .collect(),
        weights: cell
            .slots
            .iter()
            .map(|(name, slot)| (*name, slot.weight))
            .collect(),
    };
    topology
        .cells
        .iter()
        .map(|(id, cell)| (id.clone(), row(id, cell)))
        .collect()
}

fn group_row(
    group: &GroupId,
    topology: &Topology,
    places: &Places,
    records: &BTreeMap<GroupId, GroupRecord>,
) -> GroupRow {
    let record = records.get(group);
    let members = topology
        .groups
        .get(group)
        .map(|group| group.members.clone());
    GroupRow {
        open: record
            .and_then(|record| record.open.as_ref())
            .map(|open| (open.term, open.primary.clone())),
        coming: record
            .and_then(|record| record.op.as_ref())
            .map(|op| (op.term, op.target.clone())),
        members: members
            .unwrap_or_default()
            .into_iter()
            .filter_map(|member| {
                let place = places.member(&member.id)?;
                Some((member.id, SocketAddr::new(place.ip, SQL_PORT)))
            })
            .collect(),
    }
}
