//! A Python of our own with the client libraries that tests need, in `target/tools`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::install::{alone, debian_packages, on_path, tools};
use crate::say;

/// What is installed from PyPI; a change makes a new environment.
const REQUIREMENTS: [&str; 1] = ["psycopg[binary]>=3.1,<4"];

/// A Python with its libraries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Python {
    /// The interpreter; run it by this path and the libraries are found.
    pub program: PathBuf,
}

/// Finds the environment of an earlier run, or makes it and says so.
pub fn python() -> Result<Python> {
    let _alone = alone()?;
    let home = tools()?.join("python");
    let mark = home.join("requirements.txt");
    let wanted = REQUIREMENTS.join("\n");
    let program = home.join("bin/python3");
    if fs::read_to_string(&mark).is_ok_and(|had| had == wanted) && works(&program) {
        return Ok(Python { program });
    }
    say(&format!(
        "making a Python environment with {} in {}",
        REQUIREMENTS.join(" "),
        home.display()
    ));
    if !on_path("python3") {
        debian_packages(&["python3", "python3-venv"], "Python 3")?;
    }
    let make = || {
        run(Command::new("python3")
            .args(["-m", "venv", "--clear"])
            .arg(&home))
    };
    if make().is_err() {
        // Debian keeps `venv` in a package of its own.
        debian_packages(&["python3-venv"], "Python's venv module")?;
        make()?;
    }
    let pip = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ];
    run(Command::new(&program).args(pip).args(REQUIREMENTS))?;
    ensure!(
        works(&program),
        "psycopg was installed but cannot be imported"
    );
    fs::write(&mark, wanted).with_context(|| format!("{} cannot be written", mark.display()))?;
    Ok(Python { program })
}

fn works(program: &Path) -> bool {
    Command::new(program)
        .args(["-c", "import psycopg"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn run(command: &mut Command) -> Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .context("Python cannot be run")?;
    ensure!(
        output.status.success(),
        "{command:?} failed:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_python_of_our_own_can_import_its_libraries() {
        let python = python().expect("a Python");
        assert!(works(&python.program));
    }
}
