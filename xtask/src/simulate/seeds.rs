//! `cargo xtask simulate --seeds N`: whole worlds on virtual time, one for each seed, on every core.
//!
//! A simulation has one thread, so the seeds are shared out to one process a core.

use std::process::{Child, Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail, ensure};

use super::executable;
use crate::cargo::{cargo, output, target};

/// Simulates; fails where a seed breaks something.
pub(crate) fn run(seeds: u64, seed: u64) -> Result<()> {
    ensure!(seeds > 0, "--seeds must be at least 1");
    let mut build = cargo(&["build", "--quiet", "--message-format=json"]);
    let built = output(build.args(["-p", "atoll-simulation"]))?;
    let program = executable(&built).context("cargo named no program")?;
    let traces = target().join("simulation");
    let cores = thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let cores = cores.min(seeds);
    println!("{seeds} seeds from {seed} on {cores} cores");
    let (mut children, mut first): (Vec<Child>, u64) = (Vec::new(), seed);
    for core in 0..cores {
        let share = seeds / cores + u64::from(core < seeds % cores);
        let child = Command::new(&program)
            .args(["--seeds", &share.to_string(), "--seed", &first.to_string()])
            .arg("--traces")
            .arg(&traces)
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| format!("{} cannot be run", program.display()))?;
        children.push(child);
        first = first.wrapping_add(share);
    }
    let mut well = true;
    for mut child in children {
        well &= child.wait()?.success();
    }
    if !well {
        println!("again: cargo xtask simulate --seeds 1 --seed SEED");
        println!("kept for ever: a line in tests/seeds/simulation.txt");
        bail!("something that must hold was broken");
    }
    Ok(())
}
