//! The making of a group: its world, its agents' configurations.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use atoll_runtime::{Listener, Runtime};
use atoll_topology::MemberId;
use serde_json::json;

use super::control::address;
use super::group::GroupOptions;
use super::processes::AgentProcess;

/// Worlds that tests may use; `atoll dev` counts from 1.
const WORLDS: std::ops::Range<u8> = 150..250;

/// A world number that no other test holds, what shows that it is ours, and control's listener.
pub(super) async fn claim_world(runtime: &Runtime) -> Result<(u8, Listener, Listener)> {
    let spread = u8::try_from(std::process::id() % 50).unwrap_or(0);
    for world in WORLDS.skip(usize::from(spread)) {
        let claim = SocketAddr::from(([127, world, 0, 1], 7609));
        // The control of a test that has just ended may still listen.
        if let Ok(claim) = runtime.listen(claim).await
            && let Ok(control) = runtime.listen(address(world)).await
        {
            return Ok((world, claim, control));
        }
    }
    bail!("every world is taken")
}

pub(super) fn agent(
    world: u8,
    at: usize,
    name: &MemberId,
    names: &[MemberId],
    root: PathBuf,
    links: &Path,
    options: &GroupOptions,
) -> AgentProcess {
    let ip = |at: usize| {
        let region = u8::try_from(at + 1).expect("few");
        IpAddr::from([127, world, 16 * region + 1, 1])
    };
    let member = |at: usize| {
        json!({
            "calls": SocketAddr::new(ip(at), 7700),
            "replication": SocketAddr::new(ip(at), 7701),
        })
    };
    let members: serde_json::Map<String, serde_json::Value> = names
        .iter()
        .enumerate()
        .map(|(at, name)| (name.to_string(), member(at)))
        .collect();
    let sql = SocketAddr::new(ip(at), 5432);
    let config = json!({
        "runtime": { "source": ip(at), "links_file": links },
        "process": format!("g-agent-{}", at + 1),
        "group": "g",
        "member": name,
        "sql": sql,
        "calls": SocketAddr::new(ip(at), 7700),
        "replication": SocketAddr::new(ip(at), 7701),
        "admin": SocketAddr::new(ip(at), 9900),
        "data": root,
        "control": [address(world)],
        "members": members,
        "k": options.agents_k.unwrap_or(options.k),
        "connections_max": 60,
        "cells": ["a", "b", "c"],
    });
    AgentProcess::new(name.clone(), root, sql, config, options.grounds[at])
}

/// PostgreSQL's account must be able to pass through.
pub(super) fn passable(folder: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755))?;
    Ok(())
}
