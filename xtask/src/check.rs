//! `cargo xtask check`: what must be true of the text before any test runs.

use anyhow::Result;

use crate::cargo::{cargo, run};
use crate::{arrows, shipped};

pub(crate) fn run_all() -> Result<()> {
    println!("formatting");
    run(&mut cargo(&["fmt", "--all", "--check"]))?;
    // A workspace of its own; without `--all`, which would format what it depends on as well.
    run(&mut cargo(&[
        "fmt",
        "--check",
        "--manifest-path",
        "fuzz/Cargo.toml",
    ]))?;
    println!(
        "arrows: {} packages depend in the right direction",
        arrows::check()?
    );
    shipped::check()?;
    println!("shipped: `atoll` resolves without the features of tests");
    println!("lints");
    run(&mut cargo(&[
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))?;
    println!("all is well");
    Ok(())
}
