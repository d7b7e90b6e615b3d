//! The links between a world's regions: `run/links.json`, read by every process of the world.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use atoll_runtime::{LinkRule, LinksFile};
use atoll_topology::{RegionId, Topology};
use thiserror::Error;

use crate::plan::OUTSIDE;

/// Which ways a cut or a repair is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ways {
    /// From the first to the second and back.
    Both,
    /// From the first to the second only.
    OneWay,
}

/// What is done to a way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Nothing arrives any more; nobody is told.
    Cut,
    /// It works again.
    Heal,
}

/// Why a link could not be changed.
#[derive(Debug, Error)]
pub enum LinkError {
    /// No such region.
    #[error("{name:?} is no region of this world; it has {}", regions.join(", "))]
    UnknownRegion {
        /// The name as given.
        name: String,
        /// Those that there are.
        regions: Vec<String>,
    },
    /// A link leads to another region.
    #[error("a link joins two regions; both names are {0:?}")]
    SameRegion(String),
    /// The file cannot be read or written.
    #[error("the links file cannot be read or written")]
    File(#[from] io::Error),
    /// The file is not ours any more.
    #[error("the links file is not valid")]
    Format(#[from] serde_json::Error),
}

/// Half of each round trip for each way; to and from outside as told.
pub fn links_of(topology: &Topology, outside_round_trip_ms: f64) -> LinksFile {
    let mut regions = vec![OUTSIDE.to_owned()];
    regions.extend(topology.regions.keys().map(ToString::to_string));
    let mut links = Vec::new();
    for from in &regions {
        for to in regions.iter().filter(|to| *to != from) {
            let round_trip_ms = if from == OUTSIDE || to == OUTSIDE {
                outside_round_trip_ms
            } else {
                between(topology, from, to)
                    .or_else(|| between(topology, to, from))
                    .unwrap_or(0.0)
            };
            links.push(LinkRule {
                from: from.clone(),
                to: to.clone(),
                delay_ms: round_trip_ms / 2.0,
                jitter_ms: 0.0,
                cut: false,
            });
        }
    }
    LinksFile { regions, links }
}

/// Cuts or heals the ways between two regions.
pub fn change_link(
    links: &mut LinksFile,
    [a, b]: [&str; 2],
    ways: Ways,
    change: Change,
) -> Result<(), LinkError> {
    for name in [a, b] {
        if !links.regions.iter().any(|r| r == name) {
            let regions = links.regions.clone();
            return Err(LinkError::UnknownRegion {
                name: name.to_owned(),
                regions,
            });
        }
    }
    if a == b {
        return Err(LinkError::SameRegion(a.to_owned()));
    }
    for link in &mut links.links {
        let forth = link.from == a && link.to == b;
        let back = link.from == b && link.to == a && ways == Ways::Both;
        if forth || back {
            link.cut = change == Change::Cut;
        }
    }
    Ok(())
}

/// Reads the file.
pub fn read_links(path: &Path) -> Result<LinksFile, LinkError> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

/// Writes the file whole: a reader sees the old links or the new ones.
pub fn write_links(path: &Path, links: &LinksFile) -> Result<(), LinkError> {
    write_whole(path, &serde_json::to_vec_pretty(links)?)?;
    Ok(())
}

/// Reads, changes and writes the file while nobody else changes it.
pub fn edit_links(
    path: &Path,
    change: impl FnOnce(&mut LinksFile) -> Result<(), LinkError>,
) -> Result<LinksFile, LinkError> {
    let lock = File::create(path.with_extension("lock"))?;
    lock.lock()?;
    let mut links = read_links(path)?;
    change(&mut links)?;
    write_links(path, &links)?;
    Ok(links)
}

fn between(topology: &Topology, from: &str, to: &str) -> Option<f64> {
    let ids: BTreeMap<&str, &RegionId> = topology
        .regions
        .keys()
        .map(|id| (id.as_str(), id))
        .collect();
    let from = topology.regions.get(*ids.get(from)?)?;
    from.round_trip_ms
        .get(*ids.get(to)?)
        .map(|ms| f64::from(*ms))
}

/// Replaces a file's content so that no reader ever sees half of it.
pub(crate) fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    let beside = path.with_extension(format!("new-{}", std::process::id()));
    let mut file = File::create(&beside)?;
    file.write_all(content)?;
    drop(file);
    fs::rename(&beside, path)
}
