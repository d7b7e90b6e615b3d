//! etcd and etcdctl, built from their Go modules: distributions carry versions with known faults.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::install::{alone, debian_packages, on_path, tools};
use crate::say;

/// Names the modules and their versions; a change makes a new build.
const MODULES: &str = include_str!("../etcd/go.mod");
/// The module that carries the server.
const SERVER: &str = "go.etcd.io/etcd/server/v3";
/// The module that carries the command line.
const CLIENT: &str = "go.etcd.io/etcd/etcdctl/v3";
/// From this version on Go fetches a newer toolchain by itself where a module asks for one.
const GO_MINOR_MIN: u32 = 21;

/// etcd's programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Etcd {
    /// The server.
    pub etcd: PathBuf,
    /// The command line.
    pub etcdctl: PathBuf,
    /// Its version: `3.6.16`.
    pub version: String,
}

/// Finds the build of an earlier run, or makes it and says so.
pub fn etcd() -> Result<Etcd> {
    let version = version().context("tests/programs/etcd/go.mod does not name etcd's server")?;
    let home = tools()?.join(format!("etcd-{version}"));
    let found = Etcd {
        etcd: home.join("etcd"),
        etcdctl: home.join("etcdctl"),
        version,
    };
    if found.is_there() {
        return Ok(found);
    }
    let _alone = alone()?;
    // Somebody else may have built it while we waited.
    if !found.is_there() {
        build(&found, &home)?;
    }
    Ok(found)
}

impl Etcd {
    fn is_there(&self) -> bool {
        self.etcd.is_file() && self.etcdctl.is_file()
    }
}

/// `go.etcd.io/etcd/server/v3 v3.6.16 // indirect` → `3.6.16`.
fn version() -> Option<String> {
    let mut words = MODULES.split_whitespace();
    // The module is named twice: as a tool, and with its version.
    words.by_ref().find(|word| *word == SERVER)?;
    words.by_ref().find(|word| *word == SERVER)?;
    words.next()?.strip_prefix('v').map(str::to_owned)
}

fn build(wanted: &Etcd, home: &Path) -> Result<()> {
    let go = go()?;
    say(&format!(
        "building etcd {} from its Go module, once (one to three minutes), into {}",
        wanted.version,
        home.display()
    ));
    let half = home.with_extension("half");
    if half.try_exists()? {
        fs::remove_dir_all(&half)?;
    }
    fs::create_dir_all(&half)?;
    let output = Command::new(&go)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("etcd"))
        .args(["build", "-trimpath", "-o"])
        .arg(format!("{}/", half.display()))
        .args([SERVER, CLIENT])
        // A workspace or flags of the person's own are not for this.
        .env("GOWORK", "off")
        .env("GOFLAGS", "-mod=readonly -buildvcs=false")
        .env("CGO_ENABLED", "0")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{} cannot be run", go.display()))?;
    ensure!(
        output.status.success(),
        "etcd could not be built ({}); the Go module proxy must be reachable (`go env GOPROXY`):\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    fs::rename(half.join("server"), half.join("etcd"))?;
    if home.try_exists()? {
        fs::remove_dir_all(home)?;
    }
    fs::rename(&half, home)?;
    Ok(())
}

/// A Go that is new enough; Debian's package where there is none.
fn go() -> Result<PathBuf> {
    if let Some(found) = find_go() {
        return Ok(found);
    }
    if !on_path("go") {
        let what = format!("Go (1.{GO_MINOR_MIN} or newer; https://go.dev/dl has it too)");
        debian_packages(&["golang-go"], &what)?;
    }
    find_go().with_context(|| {
        format!(
            "etcd is built with Go 1.{GO_MINOR_MIN} or newer, and this machine has an older one; \
             install it from https://go.dev/dl (or Debian's backports: golang-go) and run this \
             again"
        )
    })
}

fn find_go() -> Option<PathBuf> {
    let places = ["go", "/usr/local/go/bin/go", "/usr/lib/go/bin/go"];
    places.into_iter().map(PathBuf::from).find(|go| {
        let output = Command::new(go).args(["env", "GOVERSION"]).output();
        output.is_ok_and(|output| {
            minor(&String::from_utf8_lossy(&output.stdout)).is_some_and(|m| m >= GO_MINOR_MIN)
        })
    })
}

/// `go1.26.8` → 26.
fn minor(text: &str) -> Option<u32> {
    let rest = text.trim().strip_prefix("go1.")?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_go_says() {
        assert_eq!(minor("go1.26.8\n"), Some(26));
        assert_eq!(minor("go1.19"), Some(19));
        assert_eq!(minor("devel"), None);
        assert!(version().unwrap().starts_with("3.6."));
    }

    #[test]
    fn etcd_is_found_or_built() {
        let found = etcd().expect("etcd");
        let output = Command::new(&found.etcd).arg("--version").output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains(&found.version), "{text}");
    }
}
