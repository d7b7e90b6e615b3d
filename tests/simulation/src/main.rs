//! `atoll-simulation --seeds N [--seed S]`: runs seeds, prints what each came to, and the trace of
//! those that broke something.
#![expect(clippy::print_stdout, reason = "a tool that talks to a person")]

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
    /// Print the trace of every seed, not only of those that broke something
    #[arg(long)]
    trace: bool,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let mut broken = Vec::new();
    for seed in args.seed..args.seed + args.seeds {
        let begun = Instant::now();
        let history = run(&Setup::of(seed))?;
        if args.trace || !history.violations.is_empty() {
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
        }
    }
    if broken.is_empty() {
        println!("{} seeds, nothing broken", args.seeds);
        return Ok(ExitCode::SUCCESS);
    }
    println!("broken by seeds {broken:?}; repeat one: --seeds 1 --seed S");
    Ok(ExitCode::FAILURE)
}
