//! What an agent's process stands on: a machine like any other, one with a small disk, one whose
//! files the test will not let grow.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

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

/// Fills what is left of a disk.
const FILLER: &str = "filler";

impl Ground {
    /// The command that becomes `program` on this ground.
    pub(super) fn command(self, root: &Path, program: &Path) -> Result<Command> {
        let mut command;
        match self {
            Self::Plain => command = Command::new(program),
            Self::Disk { mib } => {
                fs::create_dir_all(root)?;
                command = Command::new("unshare");
                command.arg("--mount");
                if !nix::unistd::geteuid().is_root() {
                    command.args(["--user", "--map-current-user", "--keep-caps"]);
                }
                let mount =
                    format!("mount -t tmpfs -o size={mib}m,mode=755 tmpfs \"$0\" && exec \"$@\"");
                command.args(["sh", "-c", &mount]).arg(root).arg(program);
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
            (Self::Disk { .. }, Some(pid)) => {
                let through = PathBuf::from(format!("/proc/{pid}/root"));
                through.join(root.strip_prefix("/").unwrap_or(root))
            }
            _ => root.to_owned(),
        }
    }
}

impl super::AgentProcess {
    /// Takes all that is left of its disk.
    pub fn fill_disk(&self) -> Result<()> {
        let path = self.folder().join(FILLER);
        let mut file = fs::File::create(&path).with_context(|| format!("{}", path.display()))?;
        // Down to the last page, so that nothing of anybody's finds room.
        for piece in [1 << 20, 4096] {
            let zeros = vec![0; piece];
            while std::io::Write::write_all(&mut file, &zeros).is_ok() {}
        }
        Ok(())
    }

    /// Gives back what [`Self::fill_disk`] took.
    pub fn free_disk(&self) -> Result<()> {
        fs::remove_file(self.folder().join(FILLER)).context("the filler")
    }
}
