//! Disks that a test can slow down, where the kernel has no means for it: a library that the loader
//! puts under a process and its children (`LD_PRELOAD`), and that delays their calls that wait for
//! the disk.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use thiserror::Error;

/// What the loader puts under a program.
pub const PRELOAD: &str = "LD_PRELOAD";
/// Names the file that holds the delay.
pub const DELAY_FILE: &str = "ATOLL_SLOW_DISK";

const SOURCE: &str = include_str!("slow_disk.c");

/// Why a disk cannot be slowed down.
#[derive(Debug, Error)]
pub enum NoSlowDisk {
    /// A file could not be written, or a program not be started.
    #[error("{what} {}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The compiler or the tool said no.
    #[error("{0}")]
    Refused(String),
}

/// A library and the folder of the files that hold the delays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlowDisks {
    folder: PathBuf,
}

impl SlowDisks {
    /// In a folder that all processes concerned can enter.
    pub fn in_folder(folder: &Path) -> Self {
        Self {
            folder: folder.to_path_buf(),
        }
    }

    /// The library.
    pub fn library(&self) -> PathBuf {
        self.folder.join("slow_disk.so")
    }

    fn delay_of(&self, process: &str) -> PathBuf {
        self.folder.join(process)
    }

    /// Makes the folder and the library, with the C compiler of this machine; takes back all delays.
    pub fn build(&self) -> Result<(), NoSlowDisk> {
        let io = |what: &'static str, path: &Path| {
            let path = path.to_path_buf();
            move |source| NoSlowDisk::Io { what, path, source }
        };
        match fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io("could not empty", &self.folder)(error));
            }
            Ok(()) | Err(_) => {}
        }
        fs::create_dir(&self.folder).map_err(io("could not make", &self.folder))?;
        let source = self.folder.join("slow_disk.c");
        fs::write(&source, SOURCE).map_err(io("could not write", &source))?;
        let made = Command::new("cc")
            .args(["-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o"])
            .arg(self.library())
            .arg(&source)
            .arg("-ldl")
            .stdin(Stdio::null())
            .output()
            .map_err(io("no C compiler to build", &source))?;
        said(&made)
    }

    /// What must be in the environment of a process whose disk is to be slowed down.
    pub fn environment(&self, process: &str) -> [(String, String); 2] {
        [
            (PRELOAD.to_owned(), self.library().display().to_string()),
            (
                DELAY_FILE.to_owned(),
                self.delay_of(process).display().to_string(),
            ),
        ]
    }

    /// Every call of this process and its children that waits for the disk takes so much longer.
    pub fn slow(&self, process: &str, delay: Duration) -> io::Result<()> {
        let (file, beside) = (
            self.delay_of(process),
            self.delay_of(&format!("{process}.new")),
        );
        // Replaced, not written over: a reader sees the old delay or the new one.
        fs::write(&beside, delay.as_millis().to_string())?;
        fs::rename(beside, file)
    }

    /// How long it takes such a process to write a few bytes below `directory` and to wait for the
    /// disk (coreutils' `dd`, in the process's environment).
    pub async fn latency(&self, process: &str, directory: &Path) -> Result<Duration, NoSlowDisk> {
        let file = directory.join("sync-probe");
        let mut target = std::ffi::OsString::from("of=");
        target.push(&file);
        let begun = tokio::time::Instant::now();
        let wrote = tokio::process::Command::new("dd")
            .args(["if=/dev/zero", "bs=64", "count=1", "conv=fdatasync"])
            .arg(target)
            .envs(self.environment(process))
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .map_err(|source| NoSlowDisk::Io {
                what: "could not measure",
                path: file.clone(),
                source,
            })?;
        let took = begun.elapsed();
        drop(fs::remove_file(file));
        said(&wrote).map(|()| took)
    }

    /// Whether a process has the library; none for one that has ended.
    pub fn is_under(&self, pid: i32) -> Option<bool> {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
        // One that has ended and is not waited for yet maps nothing.
        (!maps.is_empty()).then(|| maps.contains(&*self.library().to_string_lossy()))
    }
}

fn said(output: &Output) -> Result<(), NoSlowDisk> {
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(NoSlowDisk::Refused(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_disk_is_slow_for_as_long_as_the_file_says_so() {
        const DELAY: Duration = Duration::from_millis(300);
        let folder = tempfile::tempdir().unwrap();
        let disks = SlowDisks::in_folder(&folder.path().join("slow"));
        disks.build().unwrap();
        let latency = async |process| disks.latency(process, folder.path()).await.unwrap();
        assert!(latency("a").await < DELAY);
        disks.slow("a", DELAY).unwrap();
        assert!(latency("a").await >= DELAY);
        assert!(latency("b").await < DELAY, "another process's disk");
        disks.slow("a", Duration::ZERO).unwrap();
        assert!(latency("a").await < DELAY);
    }
}
