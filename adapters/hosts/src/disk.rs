//! Disks that a test can fill: a small file system for a process alone, without a loop device and,
//! where the kernel allows user namespaces, without root.
//!
//! A tmpfs in a mount namespace of its own, which ends with the last process in it. Nobody outside
//! sees it but through a process inside.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A disk of a process's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The directory that it stands for; must be there.
    pub at: PathBuf,
    /// Its size.
    pub mib: u32,
}

/// Mounts what comes before `--`, in pairs of size and directory, and becomes what comes after it.
const MOUNT: &str = "while [ \"$1\" != -- ]; do \
    mount -t tmpfs -o size=\"$1\"m,mode=755 tmpfs \"$2\" || exit 1; shift 2; done; \
    shift; exec \"$@\"";

/// Takes what is left of a disk.
const FILLER: &str = "filler";

/// The words of a command that becomes `program`, with the same pid, where it and its children have
/// these disks. Its arguments are to be added.
pub fn on_own_disks(disks: &[Disk], program: &Path) -> Vec<OsString> {
    let mut words: Vec<OsString> = vec!["unshare".into(), "--mount".into()];
    if !nix::unistd::geteuid().is_root() {
        words.extend(["--user", "--map-current-user", "--keep-caps"].map(OsString::from));
    }
    words.extend(["sh", "-c", MOUNT, "sh"].map(OsString::from));
    for disk in disks {
        words.extend([disk.mib.to_string().into(), disk.at.clone().into()]);
    }
    words.extend(["--".into(), program.into()]);
    words
}

/// Whether this machine lets us have such disks; if not, what it said.
pub fn own_disks_are_possible() -> Result<(), String> {
    let at = std::env::temp_dir();
    let words = on_own_disks(&[Disk { at, mib: 1 }], Path::new("true"));
    let tried = Command::new(&words[0])
        .args(&words[1..])
        .stdin(Stdio::null())
        .output();
    match tried {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Err(format!("unshare: {error}")),
    }
}

/// The way to a directory as the process `pid` sees it.
pub fn seen_by(pid: i32, directory: &Path) -> PathBuf {
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    root.join(directory.strip_prefix("/").unwrap_or(directory))
}

/// Takes all that is left of the disk of `directory`.
pub fn fill(directory: &Path) -> io::Result<()> {
    let mut file = File::create(directory.join(FILLER))?;
    // Down to the last page, so that nothing of anybody's finds room.
    for piece in [1 << 20, 4096] {
        let zeros = vec![0; piece];
        loop {
            match file.write_all(&zeros) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::StorageFull => break,
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// Gives back what [`fill`] took, if it took anything.
pub fn free(directory: &Path) -> io::Result<()> {
    match fs::remove_file(directory.join(FILLER)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_of_a_process_is_filled_and_freed_from_outside() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk {
            at: folder.path().to_owned(),
            mib: 1,
        };
        let words = on_own_disks(&[disk], Path::new("sh"));
        let mut inside = Command::new(&words[0])
            .args(&words[1..])
            .args(["-c", "echo there; exec sleep 60"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = [0; 6];
        io::Read::read_exact(inside.stdout.as_mut().unwrap(), &mut said).unwrap();
        let seen = seen_by(inside.id().cast_signed(), folder.path());
        fs::write(seen.join("a"), "room").unwrap();
        fill(&seen).unwrap();
        let refused = fs::write(seen.join("b"), "no room").unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
        free(&seen).unwrap();
        free(&seen).unwrap();
        fs::write(seen.join("b"), "room again").unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "outside");
        inside.kill().unwrap();
        inside.wait().unwrap();
    }
}
