//! Processes with all their descendants, whatever session or group those are in.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use thiserror::Error;

use crate::process::{ProcessRef, Stat, State, stat};

/// How often a wait for the end of processes looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// A tree that forks while it is being stopped is stopped again, at most this often.
const ROUNDS_MAX: usize = 50;

/// Every process of this machine at one moment.
#[derive(Debug, Clone, Default)]
pub struct Tree {
    all: BTreeMap<i32, Stat>,
}

/// Processes that did not end in time.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{} of the processes are still alive after {waited:?}: pids {}", left.len(), pids(left))]
pub struct StillAlive {
    /// Who is left.
    pub left: Vec<ProcessRef>,
    /// How long was waited.
    pub waited: Duration,
}

fn pids(processes: &[ProcessRef]) -> String {
    processes
        .iter()
        .map(|p| p.pid.to_string())
        .collect::<Vec<_>>()
        .join(", ")
}

impl Tree {
    /// Reads `/proc` once.
    pub fn now() -> io::Result<Self> {
        let mut all = BTreeMap::new();
        for entry in fs::read_dir("/proc")? {
            let name = entry?.file_name();
            let Some(pid) = name.to_str().and_then(|n| n.parse().ok()) else {
                continue;
            };
            if let Some(found) = stat(pid) {
                all.insert(pid, found);
            }
        }
        Ok(Self { all })
    }

    /// `roots` and everything below them, parents before children; those that are gone are left
    /// out.
    pub fn below(&self, roots: &[ProcessRef]) -> Vec<ProcessRef> {
        let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
        for found in self.all.values() {
            children
                .entry(found.parent)
                .or_default()
                .push(found.process.pid);
        }
        let mut next: Vec<i32> = Vec::new();
        for root in roots {
            if self.all.get(&root.pid).is_some_and(|s| s.process == *root) {
                next.push(root.pid);
            }
        }
        let mut ordered: Vec<ProcessRef> = Vec::new();
        let mut at = 0;
        while at < next.len() {
            let pid = next[at];
            at += 1;
            let Some(found) = self.all.get(&pid) else {
                continue;
            };
            if found.state == State::Gone || ordered.contains(&found.process) {
                continue;
            }
            ordered.push(found.process);
            next.extend(children.get(&pid).into_iter().flatten());
        }
        ordered
    }
}

/// Stops `roots` and all their descendants in one go, as near to one instant as signals allow.
///
/// Parents come first, so that none of them starts a child unseen; whoever was started in between
/// is found by looking again until nobody new appears.
pub fn freeze(roots: &[ProcessRef]) -> io::Result<Vec<ProcessRef>> {
    let mut frozen: Vec<ProcessRef> = Vec::new();
    for _ in 0..ROUNDS_MAX {
        let fresh: Vec<ProcessRef> = Tree::now()?
            .below(roots)
            .into_iter()
            .filter(|p| !frozen.contains(p))
            .collect();
        if fresh.is_empty() {
            return Ok(frozen);
        }
        for process in fresh {
            process.signal(Signal::SIGSTOP)?;
            frozen.push(process);
        }
    }
    Err(io::Error::other(
        "the processes kept starting new ones while they were being stopped",
    ))
}

/// Lets `roots` and all their descendants run again, children first.
pub fn thaw(roots: &[ProcessRef]) -> io::Result<Vec<ProcessRef>> {
    let mut all = Tree::now()?.below(roots);
    all.reverse();
    for process in &all {
        process.signal(Signal::SIGCONT)?;
    }
    Ok(all)
}

/// Kills `roots` and all their descendants with -9; they are frozen first, so that nothing is
/// started, answered or cleaned up while the others die. Returns who was hit.
pub fn kill(roots: &[ProcessRef]) -> io::Result<Vec<ProcessRef>> {
    let all = freeze(roots)?;
    for process in &all {
        process.signal(Signal::SIGKILL)?;
    }
    Ok(all)
}

/// Asks `roots` (not their children: those are their parents' affair) to end.
pub fn terminate(roots: &[ProcessRef]) -> io::Result<()> {
    for process in roots {
        process.signal(Signal::SIGTERM)?;
        // A frozen process would not see the request.
        process.signal(Signal::SIGCONT)?;
    }
    Ok(())
}

/// Waits until none of `processes` is alive.
pub async fn wait_gone(processes: &[ProcessRef], limit: Duration) -> Result<(), StillAlive> {
    let until = tokio::time::Instant::now() + limit;
    loop {
        let left: Vec<ProcessRef> = processes.iter().copied().filter(|p| p.is_alive()).collect();
        if left.is_empty() {
            return Ok(());
        }
        if tokio::time::Instant::now() >= until {
            return Err(StillAlive {
                left,
                waited: limit,
            });
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Every process whose current directory is `directory` or below it: how a world proves that it
/// left nothing behind, even where parents are long gone.
pub fn below_directory(directory: &Path) -> io::Result<Vec<ProcessRef>> {
    let mut found = Vec::new();
    for each in Tree::now()?.all.values().filter(|s| s.state != State::Gone) {
        let Ok(at) = fs::read_link(format!("/proc/{}/cwd", each.process.pid)) else {
            continue;
        };
        if at.starts_with(directory) {
            found.push(each.process);
        }
    }
    Ok(found)
}
