//! The state of the world on one screen.

use std::collections::BTreeMap;
use std::sync::Arc;

use atoll_api::{
    CellStatus, GroupStatus, MemberStatus, OpStatus, OpenStatus, PlaneStatus, WorldStatus,
};
use atoll_ownership::Progress;
use atoll_ownership::record::{GroupRecord, RunPhase};
use atoll_streams::Role;
use atoll_streams::agent::MemberRole;
use atoll_topology::{CellId, GroupId, ShardId, format_shards};
use axum::Json;
use axum::extract::State;
use tokio::time::Instant;

use super::Failed;
use crate::app::Control;
use crate::observe::planes::{LIVE, Plane};
use crate::seat::Standing;

pub(crate) async fn get(State(control): State<Arc<Control>>) -> Result<Json<WorldStatus>, Failed> {
    let records = control.records.all();
    let planes = control.planes.all();
    let table = control.publisher.current();
    let groups: Vec<_> = records
        .iter()
        .map(|(id, record)| group(&control, id, record))
        .collect();
    let executions = control.executions.all();
    let running = executions
        .values()
        .filter(|execution| !execution.phase.is_over());
    let mut warnings: Vec<String> = groups
        .iter()
        .map(|group| group.exposed.clone())
        .filter(|text| !text.is_empty())
        .collect();
    let standing = control.seat.standing();
    if let Standing::ReadOnly { reason } = &standing {
        let what = "this replica of control is read-only, and shows what it last knew: it has no \
                    majority of the store";
        warnings.insert(0, format!("{what} ({reason})"));
    }
    if !control.automatic {
        warnings.push("automatic failover is off".to_owned());
    }
    let guard = crate::guard::seen(&control);
    let reasons = [
        ("automation is switched off", &guard.killed),
        ("automatic owner changes are frozen", &guard.frozen),
    ];
    for (what, reason) in reasons {
        if let Some(reason) = reason {
            warnings.insert(0, format!("{what} ({reason})"));
        }
    }
    Ok(Json(WorldStatus {
        world: table
            .as_ref()
            .map(|table| table.version.world.clone())
            .unwrap_or_default(),
        unix_ms: control.runtime.wall_clock().0,
        table: table.as_ref().map_or(0, |table| table.version.number),
        automatic: control.automatic && guard.killed.is_none(),
        read_only: matches!(standing, Standing::ReadOnly { .. }),
        acting: control.seat.acting(),
        groups,
        cells: cells(&control, &records, &planes),
        planes: planes.iter().map(plane).collect(),
        executions: running.map(|execution| execution.name.clone()).collect(),
        warnings,
    }))
}

fn ms(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// A group's owners, a run each.
pub(crate) fn owners(record: &GroupRecord) -> Vec<String> {
    let line = |run: &atoll_ownership::record::Run| {
        let switching = match run.phase {
            RunPhase::Active => "",
            RunPhase::Switching { .. } => " switching",
        };
        format!(
            "{}-{} {} epoch {}{switching}",
            run.first, run.last, run.cell, run.epoch
        )
    };
    record.runs.iter().map(line).collect()
}

fn group(control: &Control, id: &GroupId, record: &GroupRecord) -> GroupStatus {
    let op = record.op.as_ref().map(|op| OpStatus {
        kind: op.kind.to_string(),
        term: op.term,
        target: op.target.clone(),
        execution: op.execution.clone(),
        step: control
            .agents
            .progress(&op.target, &op.id())
            .map(|p| step(&p))
            .unwrap_or_default(),
    });
    let members: Vec<_> = record
        .members
        .iter()
        .map(|admitted| member(control, record, &admitted.id))
        .collect();
    let usable = members
        .iter()
        .filter(|m| m.live && m.position.is_some())
        .count();
    let needed = record.quorum().survivors();
    let exposed = match usable {
        _ if usable > needed => String::new(),
        _ if usable == needed => {
            format!(
                "group {id} has {usable} of {} members: no second loss is survived",
                members.len()
            )
        }
        _ => format!(
            "group {id} has {usable} of {} members and needs {needed}",
            members.len()
        ),
    };
    GroupStatus {
        name: id.clone(),
        open: record.open.as_ref().map(|open| OpenStatus {
            term: open.term,
            primary: open.primary.clone(),
        }),
        op,
        owners: owners(record),
        members,
        exposed,
    }
}

fn step(progress: &Progress) -> String {
    match progress {
        Progress::Recruiting => "recruiting".to_owned(),
        Progress::CatchingUp => "catching up".to_owned(),
        Progress::Promoting => "promoting".to_owned(),
        Progress::Opening => "opening".to_owned(),
        Progress::Open { .. } => "open".to_owned(),
        Progress::GaveUp { reason, .. } => format!("gave up: {reason}"),
    }
}

fn member(control: &Control, record: &GroupRecord, id: &atoll_topology::MemberId) -> MemberStatus {
    let spec = control.topology.groups.get(&record.group);
    let zone = spec
        .and_then(|group| group.members.iter().find(|member| member.id == *id))
        .map(|member| member.zone.clone());
    let seen = control.agents.member(id);
    let role = seen
        .as_ref()
        .map_or("unheard", |seen| match seen.status.role {
            MemberRole::Down => "down",
            MemberRole::Rebuilding => "rebuilding",
            MemberRole::Lost => "lost",
            MemberRole::Sealed | MemberRole::Following => "replica",
            _ => "primary",
        });
    let note = match seen.as_ref().map(|seen| seen.status.role) {
        Some(MemberRole::Lost) => "stays out until a policy op admits it",
        Some(MemberRole::Sealed) => "sealed",
        Some(MemberRole::Isolated) => "serves nobody: it does not hear its standbys",
        _ => "",
    };
    MemberStatus {
        id: id.clone(),
        region: control
            .region_of(id)
            .unwrap_or_else(|| control.region.clone()),
        zone: zone.unwrap_or_else(crate::observe::view::no_zone),
        role: role.to_owned(),
        promise: seen
            .as_ref()
            .map_or(atoll_topology::Term::ZERO, |seen| seen.status.promise),
        position: seen
            .as_ref()
            .and_then(|seen| seen.position())
            .map(|p| (p.term, p.lsn)),
        lag_bytes: seen.as_ref().map_or(0, |seen| seen.status.replay_lag_bytes),
        age_ms: seen.as_ref().map(|seen| ms(seen.heard)),
        live: seen.as_ref().is_some_and(|seen| seen.live()),
        note: note.to_owned(),
    }
}

fn cells(
    control: &Control,
    records: &BTreeMap<GroupId, GroupRecord>,
    planes: &[Plane],
) -> Vec<CellStatus> {
    let status = |(id, cell): (&CellId, &atoll_topology::Cell)| {
        let (mut owned, mut switching) = (Vec::new(), Vec::new());
        for run in records.values().flat_map(|record| &record.runs) {
            if run.cell == *id {
                let shards = (run.first.0..=run.last.0).map(ShardId);
                owned.extend(shards.clone());
                if run.phase != RunPhase::Active {
                    switching.extend(shards);
                }
            }
        }
        owned.sort_unstable();
        let live = |role: Role| {
            let of = planes.iter().filter(|plane| {
                plane.report.role == role
                    && plane.report.cell.as_ref() == Some(id)
                    && plane.heard.elapsed() < LIVE
            });
            u32::try_from(of.count()).unwrap_or(u32::MAX)
        };
        CellStatus {
            name: id.clone(),
            kind: cell.kind,
            region: cell.region.clone(),
            shards: format_shards(&owned),
            switching: format_shards(&switching),
            gateways: live(Role::Gateway),
            routers: live(Role::SqlRouter),
            canary: canary(control, id, planes),
        }
    };
    control.topology.cells.iter().map(status).collect()
}

/// Gateways to which the cell answered well within the last seconds, of those that look at it.
fn canary(control: &Control, cell: &CellId, planes: &[Plane]) -> String {
    let now = control.runtime.wall_clock().0;
    let seen: Vec<_> = planes
        .iter()
        .filter(|plane| plane.heard.elapsed() < LIVE)
        .filter_map(|plane| {
            plane
                .report
                .cells
                .iter()
                .find(|health| health.cell == *cell)
        })
        .collect();
    let well = seen
        .iter()
        .filter(|health| now.saturating_sub(health.last_ok_unix_ms) < 3_000);
    format!("{}/{}", well.count(), seen.len())
}

fn plane(plane: &Plane) -> PlaneStatus {
    let report = &plane.report;
    PlaneStatus {
        process: report.process.clone(),
        role: role(report.role).to_owned(),
        region: report.region.clone(),
        cell: report.cell.clone(),
        table: report.in_use.as_ref().map(|version| version.number),
        age_ms: ms(plane.heard),
        live: plane.heard.elapsed() < LIVE,
        held: report.loads.iter().map(|load| load.held).sum(),
    }
}

/// What a data plane is, in a word.
pub(crate) fn role(role: Role) -> &'static str {
    match role {
        Role::Gateway => "gateway",
        Role::SqlRouter => "sql-router",
        Role::Sidecar => "sidecar",
    }
}
