//! `atoll status`

use atoll_api::{Exit, GroupStatus, MemberStatus, WorldStatus};

use crate::client::Client;
use crate::table::{Table, age, bytes, or_dash};
use crate::{Failure, Format, Screen, output};

pub(crate) async fn run(
    client: &Client,
    format: Format,
    screen: &mut Screen<'_>,
) -> Result<Exit, Failure> {
    let status: WorldStatus = client.get(atoll_api::STATUS).await?;
    match (output::whole(&status, format)?, format) {
        (Some(whole), _) => screen.data(&whole),
        (None, Format::Name) => {
            status
                .groups
                .iter()
                .for_each(|g| screen.data(&format!("datagroup/{}", g.name)));
        }
        (None, _) => lines(&status, format)
            .iter()
            .for_each(|line| screen.data(line)),
    }
    for warning in &status.warnings {
        screen.say(&format!("warning: {warning}"));
    }
    Ok(if status.warnings.is_empty() {
        Exit::Ok
    } else {
        Exit::Warnings
    })
}

fn lines(status: &WorldStatus, format: Format) -> Vec<String> {
    let automatic = if status.automatic { "on" } else { "off" };
    let mut lines = vec![
        format!(
            "world {}, table {}, automatic failover {automatic}",
            status.world, status.table
        ),
        String::new(),
    ];
    lines.extend(groups(&status.groups));
    lines.push(String::new());
    let mut cells = Table::new(&[
        "CELL",
        "REGION",
        "SHARDS",
        "SWITCHING",
        "GATEWAYS",
        "ROUTERS",
        "CANARY",
    ]);
    for cell in &status.cells {
        cells.row(vec![
            cell.name.to_string(),
            cell.region.to_string(),
            dash(&cell.shards),
            dash(&cell.switching),
            cell.gateways.to_string(),
            cell.routers.to_string(),
            dash(&cell.canary),
        ]);
    }
    lines.extend(cells.lines());
    let behind = status
        .planes
        .iter()
        .filter(|p| p.live && p.table.is_none_or(|t| t < status.table));
    let gone = status.planes.iter().filter(|plane| !plane.live).count();
    lines.push(String::new());
    lines.push(format!(
        "{} data planes: {} on table {}, {} behind, {gone} not heard",
        status.planes.len(),
        status
            .planes
            .iter()
            .filter(|p| p.live && p.table >= Some(status.table))
            .count(),
        status.table,
        behind.count(),
    ));
    if format == Format::Wide {
        let mut planes = Table::new(&[
            "PROCESS", "ROLE", "REGION", "CELL", "TABLE", "HEARD", "HELD",
        ]);
        for plane in &status.planes {
            planes.row(vec![
                plane.process.to_string(),
                plane.role.clone(),
                plane.region.to_string(),
                or_dash(plane.cell.as_ref()),
                or_dash(plane.table),
                age(plane.age_ms),
                plane.held.to_string(),
            ]);
        }
        lines.extend(planes.lines());
    }
    for execution in &status.executions {
        lines.push(format!(
            "running: {execution}   (atoll switch watch {execution})"
        ));
    }
    lines
}

fn groups(groups: &[GroupStatus]) -> Vec<String> {
    let heads = [
        "GROUP", "TERM", "OWNERS", "MEMBER", "ZONE", "ROLE", "PROMISE", "POSITION", "LAG", "HEARD",
    ];
    let mut table = Table::new(&heads);
    let mut notes = Vec::new();
    for group in groups {
        for (index, member) in group.members.iter().enumerate() {
            let mut row = match index {
                0 => vec![
                    group.name.to_string(),
                    or_dash(group.open.as_ref().map(|open| open.term)),
                    dash(&group.owners.join("; ")),
                ],
                _ => vec![String::new(); 3],
            };
            row.extend(member_cells(group, member));
            table.row(row);
        }
        if let Some(op) = &group.op {
            let step = if op.step.is_empty() {
                String::new()
            } else {
                format!(": {}", op.step)
            };
            notes.push(format!(
                "{}: {} to {} at term {} ({}){step}",
                group.name, op.kind, op.target, op.term, op.execution
            ));
        }
        if !group.exposed.is_empty() {
            notes.push(format!("{}: {}", group.name, group.exposed));
        }
        let noted = group
            .members
            .iter()
            .filter(|member| !member.note.is_empty());
        notes.extend(noted.map(|member| format!("{}: {}", member.id, member.note)));
    }
    let mut lines = table.lines();
    lines.extend(notes);
    lines
}

fn member_cells(group: &GroupStatus, member: &MemberStatus) -> Vec<String> {
    let leads = group
        .open
        .as_ref()
        .is_some_and(|open| open.primary == member.id);
    let role = if leads && member.role != "primary" {
        // The tables send clients there, and it says something else: worth seeing.
        format!("{} (open primary)", member.role)
    } else {
        member.role.clone()
    };
    let heard = match (member.live, member.age_ms) {
        (true, Some(ms)) => age(ms),
        (false, Some(ms)) => format!("{} ago", age(ms)),
        (_, None) => "never".into(),
    };
    vec![
        member.id.to_string(),
        member.zone.to_string(),
        role,
        member.promise.to_string(),
        or_dash(member.position.map(|(term, lsn)| format!("{term}:{lsn}"))),
        bytes(member.lag_bytes),
        heard,
    ]
}

fn dash(text: &str) -> String {
    or_dash((!text.is_empty()).then_some(text))
}
