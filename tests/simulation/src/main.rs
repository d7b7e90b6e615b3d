//! `atoll-simulation --seeds N [--seed S]`: runs seeds, prints what each came to, and keeps the trace
//! of those that broke something. `cargo xtask simulate --seeds N` runs it on every core.
#![expect(clippy::print_stdout, reason = "a tool that talks to a person")]

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use atoll_simulation::{Setup, run};
use clap::Parser;
use tokio::time::Instant;

/// Runs simulations of whole worlds, one for each seed.
#[derive(Parser)]
struct Args {
    /// How many seeds
    #[arg(long, default_value_t = 20)]
    seeds: u64,
    /// The first one
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print the trace of every seed
    #[arg(long)]
    trace: bool,
    /// Where the traces of those go that broke something
    #[arg(long, default_value = "target/simulation")]
    traces: PathBuf,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let mut broken = Vec::new();
    for seed in args.seed..args.seed + args.seeds {
        let begun = Instant::now();
        let history = run(&Setup::of(seed))?;
        if args.trace {
            history.trace.iter().for_each(|line| println!("{line}"));
        }
        println!(
            "seed {seed}: {:?}, {} executions, {} events, {:.1} s",
            history.counts,
            history.executions,
            history.trace.len(),
            begun.elapsed().as_secs_f64()
        );
        history
            .violations
            .iter()
            .for_each(|v| println!("  BROKEN {v}"));
        if !history.violations.is_empty() {
            broken.push(seed);
            fs::create_dir_all(&args.traces)?;
            let path = args.traces.join(format!("seed-{seed}.txt"));
            fs::write(&path, history.trace.join("\n"))?;
            println!("  its trace: {}", path.display());
        }
    }
    if broken.is_empty() {
        println!("{} seeds from {}: nothing broken", args.seeds, args.seed);
        return Ok(ExitCode::SUCCESS);
    }
    println!("broken by seeds {broken:?}");
    Ok(ExitCode::FAILURE)
}
