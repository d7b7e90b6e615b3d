//! What the members of data groups stand on: disks of their own, which can be filled, and disks that
//! can be slowed down.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use atoll_hosts::{Disk, NoSlowDisk, SlowDisks, on_own_disks};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::directory::Directory;
use crate::plan::{Place, Plan, Role};

/// What members stand on; without any of it, on this machine's disk.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Disks {
    /// Disks of their own, of so many MiB each, for the members that a name means (a process, a data
    /// group, a region …). They are in memory, and end with the world.
    pub own_mib: BTreeMap<String, u32>,
    /// Whether the members' disks can be slowed down.
    pub slow: bool,
}

/// Why members do not have the disks that were asked for.
#[derive(Debug, Error)]
pub enum DiskError {
    /// A name means no member.
    #[error("{0:?} means no member of a data group of this world")]
    NoMember(String),
    /// Asked of members that stand on the machine's own disk.
    #[error("{0} has no disk of its own; bring the world up with --disk {0}=MIB")]
    NotItsOwn(String),
    /// The world was brought up without.
    #[error("the disks of this world cannot be slowed down; bring it up with --slow-disks")]
    NeverSlow,
    /// What was on them is gone.
    #[error(
        "the world in {} had disks of its own, and what was on them ended with it: begin another one \
         with --dir",
        path.display()
    )]
    Gone {
        /// The world's directory.
        path: PathBuf,
    },
    /// The library that slows disks down is of no use.
    #[error("disks cannot be slowed down here: {0}")]
    Slow(#[from] NoSlowDisk),
    /// A file could not be written.
    #[error("a disk cannot be changed")]
    Io(#[from] io::Error),
}

impl Disks {
    /// The disk of one member, if it has one of its own; the most particular name wins.
    fn of(&self, place: &Place) -> Option<u32> {
        let group = place.group.as_ref().map(ToString::to_string);
        let names = [
            Some(place.id.to_string()),
            place.zone.as_ref().map(ToString::to_string),
            group,
            place.region.as_ref().map(ToString::to_string),
        ];
        let mut named = names.iter().flatten();
        named.find_map(|name| self.own_mib.get(name)).copied()
    }

    /// Every member that has a disk of its own.
    fn own<'p>(&self, plan: &'p Plan) -> Vec<(&'p Place, u32)> {
        let agents = plan.places.iter().filter(|p| p.role == Role::Agent);
        agents.filter_map(|p| Some((p, self.of(p)?))).collect()
    }

    /// The command that becomes `program` where the members have their disks, without its arguments.
    pub(crate) fn command(
        &self,
        directory: &Directory,
        plan: &Plan,
        program: &Path,
    ) -> Result<Vec<String>, DiskError> {
        for name in self.own_mib.keys() {
            let meant = plan.meant_by(name);
            if !meant
                .iter()
                .any(|p| p.role == Role::Agent && self.of(p).is_some())
            {
                return Err(DiskError::NoMember(name.clone()));
            }
        }
        let own = self.own(plan);
        if own.is_empty() {
            return Ok(vec![program.display().to_string()]);
        }
        let mut disks = Vec::new();
        for (place, mib) in own {
            let at = directory.data_of(place.id.as_str());
            fs::create_dir_all(&at)?;
            disks.push(Disk { at, mib });
        }
        let words = on_own_disks(&disks, program).into_iter();
        Ok(words
            .map(|word| word.to_string_lossy().into_owned())
            .collect())
    }

    /// What a member's process needs in its environment.
    pub(crate) fn environment(
        &self,
        directory: &Directory,
        place: &Place,
    ) -> Vec<(String, String)> {
        if !self.slow || place.role != Role::Agent {
            return Vec::new();
        }
        let disks = SlowDisks::in_folder(&directory.slow_disks());
        disks.environment(place.id.as_str()).into()
    }

    /// The directories, on disks of their own, of the members that a name means.
    pub(crate) fn meant(
        &self,
        directory: &Directory,
        plan: &Plan,
        target: &str,
    ) -> Result<Vec<(String, PathBuf)>, DiskError> {
        let own = members(plan, target)?.into_iter();
        let own: Vec<_> = own
            .filter(|place| self.of(place).is_some())
            .map(|place| (place.id.to_string(), directory.data_of(place.id.as_str())))
            .collect();
        if own.is_empty() {
            return Err(DiskError::NotItsOwn(target.to_owned()));
        }
        Ok(own)
    }
}

/// The members that a name means.
pub(crate) fn members<'p>(plan: &'p Plan, target: &str) -> Result<Vec<&'p Place>, DiskError> {
    let mut meant = plan.meant_by(target);
    meant.retain(|place| place.role == Role::Agent);
    if meant.is_empty() {
        return Err(DiskError::NoMember(target.to_owned()));
    }
    Ok(meant)
}

#[cfg(test)]
mod tests {
    use atoll_topology::Topology;

    use super::*;
    use crate::options::Store;

    const TOPOLOGY: &str = include_str!("../../examples/topologies/three-cities.yaml");

    fn plan() -> Plan {
        let topology = Topology::parse(TOPOLOGY).expect("a topology");
        Plan::lay_out(&topology, 1, &Store::Redb).expect("a plan")
    }

    fn disks(own: &[(&str, u32)]) -> Disks {
        let own_mib = own.iter().map(|(name, mib)| ((*name).to_owned(), *mib));
        Disks {
            own_mib: own_mib.collect(),
            slow: false,
        }
    }

    #[test]
    fn the_most_particular_name_says_how_large_a_members_disk_is() {
        let plan = plan();
        let disks = disks(&[("g1", 100), ("g1-agent-2", 50), ("hangzhou", 200)]);
        let own = disks.own(&plan).into_iter();
        let own: Vec<_> = own.map(|(place, mib)| (place.id.as_str(), mib)).collect();
        assert!(own.contains(&("g1-agent-1", 100)), "{own:?}");
        assert!(own.contains(&("g1-agent-2", 50)), "{own:?}");
        assert!(own.contains(&("g2-agent-1", 200)), "in hangzhou: {own:?}");
        assert!(own.iter().all(|(name, _)| *name != "g4-agent-1"), "{own:?}");
    }

    #[test]
    fn a_disk_for_nobody_is_refused_and_so_is_filling_the_machines_own() {
        let folder = tempfile::tempdir().expect("a folder");
        let directory = Directory::make(folder.path()).expect("a directory");
        let plan = plan();
        let nobody = disks(&[("hz-1-gateway", 100)]).command(&directory, &plan, Path::new("atoll"));
        assert!(matches!(nobody, Err(DiskError::NoMember(name)) if name == "hz-1-gateway"));
        let machines = disks(&[("g1", 100)]).meant(&directory, &plan, "g2");
        assert!(matches!(machines, Err(DiskError::NotItsOwn(_))));
        let plain = disks(&[]).command(&directory, &plan, Path::new("atoll"));
        assert_eq!(plain.expect("a command"), ["atoll"]);
    }
}
