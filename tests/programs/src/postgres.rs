//! PostgreSQL's server programs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::install::{alone, debian_packages};
use crate::say;

/// The oldest major version that will do.
pub const POSTGRES_VERSION_MIN: u32 = 15;

/// Programs that must lie together for an installation to count.
const PROGRAMS: [&str; 6] = [
    "postgres",
    "initdb",
    "pg_ctl",
    "pg_rewind",
    "pg_basebackup",
    "pg_amcheck",
];

/// Keeps Debian from making and starting a cluster of its own while the package is installed.
const NO_CLUSTER: &str = "/etc/postgresql-common/createcluster.conf";

/// An installation of PostgreSQL's server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Postgres {
    /// The directory with `postgres`, `initdb`, `pg_rewind`…
    pub bin: PathBuf,
    /// What `postgres --version` says after the name: `15.18`.
    pub version: String,
    /// The number before the first dot.
    pub major: u32,
}

/// Finds PostgreSQL's server programs, or installs them and says so.
pub fn postgres() -> Result<Postgres> {
    if let Some(found) = find() {
        return Ok(found);
    }
    let _alone = alone()?;
    // Somebody else may have installed it while we waited.
    if let Some(found) = find() {
        return Ok(found);
    }
    install()?;
    let found =
        find().context("postgresql was installed, but its server programs are not found")?;
    say(&format!(
        "PostgreSQL {} in {}",
        found.version,
        found.bin.display()
    ));
    Ok(found)
}

/// The newest usable installation.
fn find() -> Option<Postgres> {
    candidates()
        .into_iter()
        .filter_map(|bin| inspect(&bin))
        .max_by_key(|p| p.major)
}

fn candidates() -> Vec<PathBuf> {
    let mut bins = Vec::new();
    for root in [
        "/usr/lib/postgresql",
        "/usr/pgsql",
        "/opt/homebrew/opt",
        "/usr/local/opt",
    ] {
        for entry in fs::read_dir(root).into_iter().flatten().flatten() {
            bins.push(entry.path().join("bin"));
        }
    }
    let answer = Command::new("pg_config").arg("--bindir").output();
    if let Ok(output) = answer {
        bins.push(PathBuf::from(
            String::from_utf8_lossy(&output.stdout).trim(),
        ));
    }
    bins.push("/usr/bin".into());
    bins.push("/usr/local/bin".into());
    bins
}

fn inspect(bin: &Path) -> Option<Postgres> {
    if !PROGRAMS.iter().all(|program| bin.join(program).is_file()) {
        return None;
    }
    let output = Command::new(bin.join("postgres"))
        .arg("--version")
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (version, major) = parse_version(&text)?;
    (major >= POSTGRES_VERSION_MIN).then(|| Postgres {
        bin: bin.to_path_buf(),
        version,
        major,
    })
}

/// `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)` → `15.18`, 15.
fn parse_version(text: &str) -> Option<(String, u32)> {
    let version = text
        .split_whitespace()
        .find(|w| w.starts_with(|c: char| c.is_ascii_digit()))?;
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    Some((version.to_owned(), digits.parse().ok()?))
}

fn install() -> Result<()> {
    let packages = ["postgresql", "postgresql-contrib", "postgresql-client"];
    let what = format!("PostgreSQL (server, {POSTGRES_VERSION_MIN} or newer)");
    debian_packages(&["postgresql-common"], &what)?;
    ensure!(
        Path::new("/usr/share/postgresql-common").is_dir(),
        "postgresql-common is incomplete"
    );
    match no_cluster() {
        Ok(()) => {}
        Err(error) => say(&format!(
            "Debian will also start a PostgreSQL of its own ({error:#})"
        )),
    }
    debian_packages(&packages, &what)
}

/// Asks Debian not to start a server of its own: nobody here wants it.
fn no_cluster() -> Result<()> {
    let old = fs::read_to_string(NO_CLUSTER).unwrap_or_default();
    let set = old
        .lines()
        .any(|line| line.trim_start().starts_with("create_main_cluster"));
    if set {
        return Ok(());
    }
    say(&format!(
        "setting create_main_cluster = false in {NO_CLUSTER}: no server is started by Debian"
    ));
    fs::write(NO_CLUSTER, format!("{old}\ncreate_main_cluster = false\n"))
        .with_context(|| format!("{NO_CLUSTER} cannot be written"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_from_every_packager_s_way_to_print_it() {
        let debian = parse_version("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n");
        assert_eq!(debian, Some(("15.18".to_owned(), 15)));
        assert_eq!(
            parse_version("postgres (PostgreSQL) 18beta1"),
            Some(("18beta1".to_owned(), 18))
        );
        assert_eq!(parse_version("nothing"), None);
    }

    #[test]
    fn postgresql_is_found_or_installed() {
        let found = postgres().expect("PostgreSQL");
        assert!(found.major >= POSTGRES_VERSION_MIN);
        assert!(found.bin.join("pg_rewind").is_file());
    }
}
