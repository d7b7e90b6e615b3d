//! Where control is: from the command line, the environment, or a local world's directory.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use atoll_api::{Code, Problem};
use serde::Deserialize;

use crate::Failure;
use crate::command::Common;

/// All addresses of control, in the order in which they are tried.
pub(crate) fn find(common: &Common) -> Result<Vec<SocketAddr>, Failure> {
    let mut found = Vec::new();
    // What was named beats the environment; clap has put either into `server`.
    for text in common.server.iter().filter(|text| !text.is_empty()) {
        let bare = text
            .strip_prefix("http://")
            .unwrap_or(text)
            .trim_end_matches('/');
        found.push(bare.parse().map_err(|_| {
            Problem::new(
                Code::USAGE,
                format!("{text:?} is not an address of control"),
            )
            .why("expected IP:PORT, as in 127.1.0.1:7600")
        })?);
    }
    if let Some(world) = &common.world {
        found.extend(of_world(world)?);
    }
    if found.is_empty() {
        let problem = Problem::new(Code::NO_WORLD, "no server is known")
            .why("neither --server, ATOLL_SERVER nor --world is given")
            .next("atoll status --world DIR   (DIR is what `atoll dev up --dir DIR` used)");
        return Err(Box::new(problem));
    }
    Ok(found)
}

#[derive(Deserialize)]
struct Processes {
    processes: Vec<Process>,
}

#[derive(Deserialize)]
struct Process {
    role: String,
    #[serde(default)]
    state: String,
    #[serde(default)]
    addresses: BTreeMap<String, SocketAddr>,
}

fn of_world(world: &Path) -> Result<Vec<SocketAddr>, Failure> {
    let file = world.join("run/processes.json");
    let bad = |why: String| {
        Problem::new(
            Code::NO_WORLD,
            format!("no world runs in {}", world.display()),
        )
        .why(why)
        .place(file.display().to_string())
        .next("atoll dev status")
    };
    let text = std::fs::read_to_string(&file).map_err(|error| bad(error.to_string()))?;
    let read: Processes = serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
    let control = read
        .processes
        .into_iter()
        .filter(|process| process.role == "control");
    let mut control: Vec<_> = control.collect();
    // Those that are known to be down or frozen come last.
    control.sort_by_key(|process| process.state != "ready");
    let found: Vec<_> = control
        .into_iter()
        .filter_map(|mut p| p.addresses.remove("api"))
        .collect();
    if found.is_empty() {
        return Err(Box::new(bad("it has no control".into())));
    }
    Ok(found)
}
