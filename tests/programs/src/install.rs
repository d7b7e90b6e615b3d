//! Packages of a Debian-like machine, installed once, by one process at a time.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::say;

/// Where tools that we make ourselves are kept between runs: `target/tools` of this workspace.
pub(crate) fn tools() -> Result<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let tools = workspace
        .canonicalize()
        .context("the workspace is gone")?
        .join("target/tools");
    fs::create_dir_all(&tools).with_context(|| format!("{} cannot be made", tools.display()))?;
    Ok(tools)
}

/// Holds everybody else's installations off until it is dropped.
pub(crate) fn alone() -> Result<File> {
    let path = tools()?.join("lock");
    let file = File::create(&path).with_context(|| format!("{} cannot be made", path.display()))?;
    file.lock()
        .with_context(|| format!("{} cannot be locked", path.display()))?;
    Ok(file)
}

/// Whether `program` is found by the shell.
pub(crate) fn on_path(program: &str) -> bool {
    Command::new("sh")
        .args(["-c", "command -v \"$1\"", "sh", program])
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Installs Debian packages, as root or by sudo without a password; where neither is possible the
/// error says what a person has to install.
pub(crate) fn debian_packages(packages: &[&str], what_for: &str) -> Result<()> {
    let list = packages.join(" ");
    let by_hand = format!(
        "{what_for} is missing; install it (Debian and Ubuntu: apt-get install {list}; \
         Fedora: dnf install postgresql-server postgresql-contrib python3; \
         macOS: brew install postgresql@17 python3) and run this again"
    );
    ensure!(on_path("apt-get"), "{by_hand}");
    let mut prefix: Vec<&str> = Vec::new();
    if !nix::unistd::geteuid().is_root() {
        let sudo = Command::new("sudo")
            .args(["-n", "true"])
            .stderr(Stdio::null())
            .status();
        ensure!(sudo.is_ok_and(|s| s.success()), "{by_hand}");
        prefix.push("sudo");
    }
    say(&format!(
        "installing {list} (Debian packages), for {what_for}"
    ));
    // An old or empty list of packages is the usual reason for a first failure.
    let install = ["apt-get", "install", "-y", "-q", "--no-install-recommends"];
    let env = ["env", "DEBIAN_FRONTEND=noninteractive"];
    if run(&prefix, &env, &[&install[..], packages].concat()).is_ok() {
        return Ok(());
    }
    run(&prefix, &env, &["apt-get", "update", "-q"])?;
    run(&prefix, &env, &[&install[..], packages].concat()).with_context(|| by_hand)
}

fn run(prefix: &[&str], env: &[&str], command: &[&str]) -> Result<()> {
    let line = [prefix, env, command].concat();
    let Some((program, args)) = line.split_first() else {
        bail!("nothing to run")
    };
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{program} cannot be run"))?;
    ensure!(
        output.status.success(),
        "`{}` failed ({}):\n{}",
        line.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
