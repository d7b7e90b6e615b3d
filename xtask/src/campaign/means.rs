//! What this machine lets a campaign do to disks, found out before it begins.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use atoll_hosts::{SlowDisks, own_disks_are_possible};
use atoll_world::{Disks, Role};
use serde::Serialize;

use crate::stage::Stage;

/// Whose members have disks of their own: one group, with a member in each city. They are in memory.
const ON_OWN_DISKS: &str = "g1";
/// PostgreSQL's data and log, and a second copy of both while a member is cloned.
const DISK_MIB: u32 = 1_536;

/// What can be done, or why not.
pub(crate) struct Means {
    pub(crate) full_disks: Result<(), String>,
    pub(crate) slow_disks: Result<(), String>,
}

/// How a disk is slowed down, for the report.
pub(crate) const SLOW_DISK_MECHANISM: &str = "a library that the loader puts under a member's processes \
    (LD_PRELOAD) delays their fsync, fdatasync, sync_file_range and syncfs";

/// A disk that was slowed down, and the proof of it: a write of a few bytes with fdatasync to the
/// member's disk, before and meanwhile.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Slowed {
    pub(crate) member: String,
    pub(crate) delay_ms: u32,
    pub(crate) before_ms: f64,
    pub(crate) meanwhile_ms: f64,
    /// Processes of the member, PostgreSQL's among them, that have the library.
    pub(crate) processes: usize,
    /// Those that do not have it.
    pub(crate) without: usize,
}

impl Slowed {
    /// Whether what was to be slow was slow, and for the member's own processes, PostgreSQL's among
    /// them: most, because one that is being started has no library yet.
    pub(crate) fn is_shown(&self) -> bool {
        self.meanwhile_ms >= f64::from(self.delay_ms) && self.without <= self.processes
    }
}

pub(crate) fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}

impl Means {
    /// Tries both.
    pub(crate) fn of_this_machine(output: &Path) -> Self {
        let tried = SlowDisks::in_folder(&output.join("slow-disk")).build();
        Self {
            full_disks: own_disks_are_possible()
                .map_err(|why| format!("no file system of its own for a member: {why}")),
            slow_disks: tried.map_err(|error| error.to_string()),
        }
    }

    /// What the world's members stand on.
    pub(crate) fn disks(&self) -> Disks {
        let own = self.full_disks.is_ok();
        let own_mib = own.then(|| (ON_OWN_DISKS.to_owned(), DISK_MIB));
        Disks {
            own_mib: own_mib.into_iter().collect(),
            slow: self.slow_disks.is_ok(),
        }
    }

    /// The members whose disks can be filled.
    pub(crate) fn own_disks(&self, stage: &Stage) -> Result<Vec<String>> {
        if self.full_disks.is_err() {
            return Ok(Vec::new());
        }
        let processes = stage.world.status()?.processes;
        let own = processes.iter().filter(|p| {
            let group = p.place.group.as_ref().map(ToString::to_string);
            p.place.role == Role::Agent && group.as_deref() == Some(ON_OWN_DISKS)
        });
        Ok(own.map(|p| p.name.to_string()).collect())
    }

    /// The members whose disks can be slowed down.
    pub(crate) fn slow_disks(&self, stage: &Stage) -> Result<Vec<String>> {
        if self.slow_disks.is_err() {
            return Ok(Vec::new());
        }
        let processes = stage.world.status()?.processes;
        let members = processes.iter().filter(|p| p.place.role == Role::Agent);
        Ok(members.map(|p| p.name.to_string()).collect())
    }

    /// What is not done here, and why.
    pub(crate) fn skipped(&self) -> BTreeMap<&'static str, String> {
        let both = [
            ("disk-full", &self.full_disks),
            ("slow-disk", &self.slow_disks),
        ];
        both.into_iter()
            .filter_map(|(kind, means)| Some((kind, means.as_ref().err()?.clone())))
            .collect()
    }
}
