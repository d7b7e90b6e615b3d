//! What the domain is shown: the streams' and the store's facts as the values that detection and
//! the planner judge.

use std::collections::BTreeMap;

use atoll_detection::guard::Guard;
use atoll_detection::{
    CellView, Exit, GatewayReport, GroupView, Home, MemberReport, OpView, Reports, RunView, Seen,
};
use atoll_ownership::record::{GroupRecord, RunPhase};
use atoll_planner::{CellSeen, MemberSeen, Observed};
use atoll_streams::Role;
use atoll_streams::agent::MemberRole;
use atoll_topology::{CellId, GroupId, MemberId, RegionId, Term};
use tokio::time::Instant;

use crate::app::Control;
use crate::observe::agents::Seen as Heard;

/// When something that was heard `at` was heard, in milliseconds of Unix time on our clock.
fn unix_ms(at: Instant, now_ms: u64) -> u64 {
    now_ms.saturating_sub(u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX))
}

/// Everything that detection is told.
pub(crate) fn reports(control: &Control, now_ms: u64) -> Reports {
    let records = control.records.all();
    Reports {
        here: control.region.clone(),
        groups: records
            .iter()
            .map(|(group, record)| (group.clone(), group_view(control, group, record)))
            .collect(),
        cells: cell_views(control, now_ms),
        members: control
            .agents
            .members()
            .into_iter()
            .map(|(id, seen)| (id, member_report(&seen, now_ms)))
            .collect(),
        gateways: gateway_reports(control, now_ms),
    }
}

fn group_view(control: &Control, group: &GroupId, record: &GroupRecord) -> GroupView {
    let spec = &control.topology.groups[group];
    let home = |member: &atoll_topology::Member| {
        let region = control.topology.zones[&member.zone].region.clone();
        (
            member.id.clone(),
            Home {
                zone: member.zone.clone(),
                region,
            },
        )
    };
    GroupView {
        survives: spec.survives,
        k: record.k,
        members: spec.members.iter().map(home).collect(),
        open: record
            .open
            .as_ref()
            .map(|open| (open.term, open.primary.clone())),
        op: record.op.as_ref().map(|op| OpView {
            term: op.term,
            target: op.target.clone(),
            deadline_ms: op.deadline_ms,
        }),
        runs: record
            .runs
            .iter()
            .map(|run| RunView {
                first: run.first,
                last: run.last,
                cell: run.cell.clone(),
                leaving: match &run.phase {
                    RunPhase::Switching { leaving } => Some(leaving.clone()),
                    RunPhase::Active => None,
                },
                epoch: run.epoch,
            })
            .collect(),
    }
}

fn member_report(seen: &Heard, now_ms: u64) -> MemberReport {
    let status = &seen.status;
    MemberReport {
        at_ms: unix_ms(seen.heard, now_ms),
        led: status.led.unwrap_or(Term::ZERO),
        open: status.open.unwrap_or(Term::ZERO),
        follows: status
            .upstream
            .clone()
            .filter(|_| status.role == MemberRole::Following),
        exit: status.exit.as_ref().map(|exit| Exit {
            at_ms: exit.unix_ms,
            ordered: exit.ordered,
        }),
        heard_ms_ago: status
            .heard
            .iter()
            .map(|h| (h.member.clone(), h.ago_ms))
            .collect(),
    }
}

/// When any process of each cell was last heard.
fn cells_heard(control: &Control, now_ms: u64) -> BTreeMap<CellId, u64> {
    let mut heard: BTreeMap<CellId, u64> = BTreeMap::new();
    let mut note = |cell: &CellId, at: Instant| {
        let at_ms = unix_ms(at, now_ms);
        let last = heard.entry(cell.clone()).or_default();
        *last = at_ms.max(*last);
    };
    for plane in control.planes.all() {
        if let Some(cell) = &plane.report.cell {
            note(cell, plane.heard);
        }
    }
    for (mesh, (_, at)) in control.planes.meshes() {
        if let Some(cell) = control
            .places
            .get(&mesh)
            .and_then(|place| place.cell.as_ref())
        {
            note(cell, at);
        }
    }
    heard
}

fn cell_views(control: &Control, now_ms: u64) -> BTreeMap<CellId, CellView> {
    let heard = cells_heard(control, now_ms);
    let view = |(id, cell): (&CellId, &atoll_topology::Cell)| {
        let view = CellView {
            region: cell.region.clone(),
            zones: cell.slots.values().map(|slot| slot.zone.clone()).collect(),
            reported_ms: heard.get(id).copied(),
        };
        (id.clone(), view)
    };
    control.topology.cells.iter().map(view).collect()
}

fn gateway_reports(
    control: &Control,
    now_ms: u64,
) -> BTreeMap<atoll_topology::ProcessId, GatewayReport> {
    let mut gateways = control.planes.all();
    gateways.retain(|plane| plane.report.role == Role::Gateway);
    gateways
        .into_iter()
        .map(|plane| {
            let report = plane.report;
            let sees = report.cells.into_iter().map(|health| {
                let seen = Seen {
                    canary_ok: health.canary_ok,
                    canary_failed: health.canary_failed,
                    requests: health.requests,
                    errors: health.errors,
                    latency_p99_ms: health.latency_p99_ms,
                };
                (health.cell, seen)
            });
            let view = GatewayReport {
                at_ms: unix_ms(plane.heard, now_ms),
                region: report.region,
                sees: sees.collect(),
            };
            (report.process, view)
        })
        .collect()
}

/// Everything that the planner is shown.
pub(crate) fn observed(control: &Control, guard: Guard, now_ms: u64) -> Observed {
    let records = control.records.all();
    let volumes: BTreeMap<&MemberId, &String> = records
        .values()
        .flat_map(|record| &record.members)
        .map(|admitted| (&admitted.id, &admitted.volume))
        .collect();
    let member = |(id, seen): (MemberId, Heard)| {
        let out = matches!(
            seen.status.role,
            MemberRole::Down | MemberRole::Rebuilding | MemberRole::Lost
        );
        let admitted = volumes.get(&id).copied() == seen.status.volume.as_ref();
        let view = MemberSeen {
            at_ms: unix_ms(seen.heard, now_ms),
            usable: admitted && !out,
            position: seen.position(),
            replay_lag_bytes: seen.status.replay_lag_bytes,
            oldest_transaction_ms: seen.status.oldest_transaction_ms,
        };
        (id, view)
    };
    let members = control.agents.members();
    let broken = members.iter().filter_map(|(id, seen)| {
        let what = seen.status.broken_privilege.clone()?;
        Some((id.clone(), what))
    });
    Observed {
        broken_privileges: broken.collect(),
        topology: control.topology.as_ref().clone(),
        records: records.as_ref().clone(),
        members: members.into_iter().map(member).collect(),
        cells: cells_heard(control, now_ms)
            .into_iter()
            .map(|(cell, at_ms)| {
                (
                    cell,
                    CellSeen {
                        at_ms,
                        capacity: None,
                    },
                )
            })
            .collect(),
        guard,
        now_ms,
    }
}

/// The zone of a member that the topology does not know; a record has no such member.
pub(crate) fn no_zone() -> atoll_topology::ZoneId {
    #[expect(clippy::expect_used, reason = "a constant that parses")]
    atoll_topology::ZoneId::parse("none").expect("a zone id")
}

/// The name of the place outside all regions.
pub(crate) fn outside() -> RegionId {
    #[expect(clippy::expect_used, reason = "a constant that parses")]
    RegionId::parse("outside").expect("a region id")
}
