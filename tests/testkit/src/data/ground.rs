//! What an agent's process stands on: a machine like any other, one with a small disk, one whose
//! files the test will not let grow.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use atoll_hosts::{Disk, on_own_disks, seen_by};

/// What an agent stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ground {
    /// A directory of the test's.
    #[default]
    Plain,
    /// A disk of its own for its whole directory: a tmpfs of so many MiB in a mount namespace of
    /// its own, which goes with the process. Where the test is not root, in a user namespace.
    Disk {
        /// Its size.
        mib: u32,
    },
    /// A directory of the test's; a write beyond the limit of a file's size is an error and not
    /// the end of the process, as on a full disk. See [`super::AgentProcess::limit_files`].
    Limited,
}

impl Ground {
    /// The command that becomes `program` on this ground.
    pub(super) fn command(self, root: &Path, program: &Path) -> Result<Command> {
        let mut command;
        match self {
            Self::Plain => command = Command::new(program),
            Self::Disk { mib } => {
                fs::create_dir_all(root)?;
                let at = root.to_owned();
                let words = on_own_disks(&[Disk { at, mib }], program);
                command = Command::new(&words[0]);
                command.args(&words[1..]);
            }
            Self::Limited => {
                command = Command::new("sh");
                let ignored = "trap '' XFSZ; exec \"$0\" \"$@\"";
                command.args(["-c", ignored]).arg(program);
            }
        }
        Ok(command)
    }

    /// Where the test finds a process's directory.
    pub(super) fn seen(self, root: &Path, pid: Option<u32>) -> PathBuf {
        match (self, pid) {
            (Self::Disk { .. }, Some(pid)) => seen_by(pid.cast_signed(), root),
            _ => root.to_owned(),
        }
    }
}

impl super::AgentProcess {
    /// Takes all that is left of its disk.
    pub fn fill_disk(&self) -> Result<()> {
        atoll_hosts::fill(&self.folder()).context("the disk cannot be filled")
    }

    /// Gives back what [`Self::fill_disk`] took.
    pub fn free_disk(&self) -> Result<()> {
        atoll_hosts::free(&self.folder()).context("the disk cannot be freed")
    }
}
