//! Finds PostgreSQL's programs.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Error;

/// Where Debian puts server binaries, one folder a major version.
const DEBIAN: &str = "/usr/lib/postgresql";

/// The oldest minor release of each major that has the fixes we rely on.
const OLDEST: [(u32, u32); 3] = [(15, 13), (16, 9), (17, 5)];

/// A folder with `postgres`, `initdb`, `pg_rewind` and `pg_basebackup`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries {
    folder: PathBuf,
    version: String,
}

impl Binaries {
    /// The folder named in the configuration, else the newest one of Debian's.
    pub fn find(named: Option<&Path>) -> Result<Self, Error> {
        let folder = match named {
            Some(folder) => folder.to_owned(),
            None => newest(Path::new(DEBIAN)).ok_or_else(|| Error::NoBinaries {
                searched: DEBIAN.into(),
            })?,
        };
        let program = folder.join("postgres");
        let output = Command::new(&program)
            .arg("--version")
            .output()
            .map_err(|_| Error::NoBinaries {
                searched: folder.clone(),
            })?;
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let version = version_of(&said).ok_or_else(|| Error::Version {
            found: said.clone(),
        })?;
        Ok(Self { folder, version })
    }

    /// One program of the folder.
    pub fn program(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// `15.18`.
    pub fn version(&self) -> &str {
        &self.version
    }
}

fn newest(root: &Path) -> Option<PathBuf> {
    let mut majors: Vec<u32> = std::fs::read_dir(root)
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    majors.sort_unstable();
    majors
        .into_iter()
        .rev()
        .map(|major| root.join(major.to_string()).join("bin"))
        .find(|folder| folder.join("postgres").is_file())
}

/// `postgres (PostgreSQL) 15.18 (Debian …)` → `15.18`, if it is recent enough.
fn version_of(said: &str) -> Option<String> {
    let number = said.split_whitespace().find(|word| word.contains('.'))?;
    let mut parts = number.split('.');
    let major: u32 = parts.next()?.parse().ok()?;
    let minor: u32 = parts.next()?.parse().ok()?;
    let recent = match OLDEST.iter().find(|(known, _)| *known == major) {
        Some((_, oldest)) => minor >= *oldest,
        None => OLDEST.last().is_some_and(|(last, _)| major > *last),
    };
    recent.then(|| number.to_owned())
}

#[cfg(test)]
mod tests {
    use super::version_of;

    #[test]
    fn a_release_without_the_fixes_is_refused() {
        assert_eq!(
            version_of("postgres (PostgreSQL) 15.18 (Debian 15.18-0)").unwrap(),
            "15.18"
        );
        assert_eq!(version_of("postgres (PostgreSQL) 15.12"), None);
        assert_eq!(version_of("postgres (PostgreSQL) 14.20"), None);
        assert!(version_of("postgres (PostgreSQL) 18.0").is_some());
    }
}
