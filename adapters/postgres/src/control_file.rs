//! What a stopped instance says about itself: `pg_controldata`.

use std::process::Command;

use atoll_topology::Lsn;

use crate::{Binaries, Error, Layout};

/// The parts of the control file that decide how a member may come back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlFile {
    /// Which cluster its blocks belong to.
    pub system: u64,
    /// The highest timeline that it has replayed or written.
    pub timeline: u32,
    /// Redo point of its last checkpoint.
    pub redo: Lsn,
}

impl ControlFile {
    /// Reads it. Blocks for some milliseconds.
    pub fn read(binaries: &Binaries, layout: &Layout) -> Result<Self, Error> {
        let data = layout.data();
        let output = Command::new(binaries.program("pg_controldata"))
            .arg("-D")
            .arg(&data)
            .env("LC_ALL", "C")
            .output()
            .map_err(Error::file("run pg_controldata on", &data))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Self::parse(&text).ok_or(Error::Garbled {
            what: "pg_controldata",
            text,
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let field = |label: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(label)?.strip_prefix(':').map(str::trim))
        };
        let checkpoint: u32 = field("Latest checkpoint's TimeLineID")?.parse().ok()?;
        // Zero where the instance was a primary.
        let recovery: u32 = field("Min recovery ending loc's timeline")?.parse().ok()?;
        Some(Self {
            system: field("Database system identifier")?.parse().ok()?,
            timeline: checkpoint.max(recovery),
            redo: field("Latest checkpoint's REDO location")?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timeline_is_the_highest_that_was_replayed() {
        let text = "Database system identifier:           7301\n\
                    Latest checkpoint's REDO location:    0/2000028\n\
                    Latest checkpoint's TimeLineID:       1\n\
                    Min recovery ending loc's timeline:   3\n";
        let read = ControlFile::parse(text).unwrap();
        assert_eq!(
            (read.system, read.timeline, read.redo.0),
            (7301, 3, 0x0200_0028)
        );
    }
}
