//! `atoll dev status`, for people and for programs.

use std::fmt::Write;

use atoll_world::{Doing, ProcessStatus, WorldStatus};

/// How a status is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Output {
    /// One line for each process
    Table,
    /// As the table, with addresses
    Wide,
    /// Everything
    Json,
    /// Names only
    Name,
}

/// The status as text.
pub(crate) fn show(status: &WorldStatus, output: Output) -> Result<String, serde_json::Error> {
    match output {
        Output::Json => serde_json::to_string_pretty(status),
        Output::Name => {
            let names: Vec<&str> = status.processes.iter().map(|p| p.name.as_str()).collect();
            Ok(names.join("\n"))
        }
        Output::Table | Output::Wide => Ok(table(status, output)),
    }
}

fn table(status: &WorldStatus, output: Output) -> String {
    let mut heads = vec![
        "NAME", "ROLE", "REGION", "ZONE", "CELL", "GROUP", "PID", "STATE", "RESTARTS",
    ];
    if output == Output::Wide {
        heads.push("ADDRESSES");
    }
    let mut rows: Vec<Vec<String>> = vec![heads.into_iter().map(str::to_owned).collect()];
    rows.extend(status.processes.iter().map(|process| row(process, output)));
    let columns = rows[0].len();
    let widths: Vec<usize> = (0..columns)
        .map(|c| rows.iter().map(|r| r[c].len()).max().unwrap_or_default())
        .collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            // Writing to a string cannot fail.
            write!(line, "{cell:width$}  ").ok();
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    let ready = status
        .processes
        .iter()
        .filter(|p| p.state == Doing::Ready)
        .count();
    let (all, world) = (status.processes.len(), status.world);
    write!(
        text,
        "world 127.{world}.*.* in {}: {ready} of {all} ready",
        status.directory.display()
    )
    .ok();
    text
}

fn row(process: &ProcessStatus, output: Output) -> Vec<String> {
    let place = &process.place;
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let mut row = vec![
        process.name.to_string(),
        place.role.word().to_owned(),
        or_dash(place.region.as_ref().map(ToString::to_string)),
        or_dash(place.zone.as_ref().map(ToString::to_string)),
        or_dash(place.cell.as_ref().map(ToString::to_string)),
        or_dash(place.group.as_ref().map(ToString::to_string)),
        or_dash(process.process.map(|p| p.pid.to_string())),
        process.state.word().to_owned(),
        process.restarts.to_string(),
    ];
    if output == Output::Wide {
        let addresses: Vec<String> = process
            .addresses
            .iter()
            .map(|(protocol, at)| format!("{protocol}={at}"))
            .collect();
        row.push(addresses.join(" "));
    }
    row
}
