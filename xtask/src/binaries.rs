//! The binaries under test: built as they are shipped, and put where no build of tests replaces
//! them.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::cargo::{cargo, run, target};

/// Where they are.
pub(crate) struct Binaries {
    pub(crate) atoll: PathBuf,
    pub(crate) bank: PathBuf,
}

/// Builds them without the features of tests.
pub(crate) fn build() -> Result<Binaries> {
    run(&mut cargo(&[
        "build", "--quiet", "-p", "atoll", "-p", "bank",
    ]))?;
    built()
}

/// Those of the last build.
pub(crate) fn built() -> Result<Binaries> {
    let kept = target().join("xtask/bin");
    fs::create_dir_all(&kept).with_context(|| format!("{} cannot be made", kept.display()))?;
    let keep = |name: &str| -> Result<PathBuf> {
        let (from, to) = (target().join("debug").join(name), kept.join(name));
        // Beside first: a program that still runs cannot be written to, but can be replaced.
        let beside = kept.join(format!("{name}.new"));
        fs::copy(&from, &beside).with_context(|| format!("{} is missing", from.display()))?;
        fs::rename(&beside, &to)?;
        Ok(to)
    };
    Ok(Binaries {
        atoll: keep("atoll")?,
        bank: keep("bank")?,
    })
}
