//! `cargo xtask bench NAME`: figures that are claimed somewhere come from here.

mod switch;
mod table;

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;

/// What can be measured.
#[derive(Subcommand)]
pub(crate) enum Bench {
    /// Planned switches, primaries killed and cities lost, at several distances between the cities
    #[command(
        after_help = "Each round: a cell moves to another city and back, a primary's \
        PostgreSQL is killed with -9 and joins again, a city is frozen and killed, comes back, and \
        everything goes home; about 80 s. A planned switch alone, there and back, takes about 35 s. \
        Prints percentiles and where the time goes, step by step; raw lines are added to \
        docs/bench/switch.jsonl after each distance. Nothing else should run meanwhile.\n\n\
        Examples:\n  cargo xtask bench switch\n  cargo xtask bench switch --rounds 10 --rtt 10\n  \
        cargo xtask bench switch --rounds 0 --planned 20 --rtt 0,10,30"
    )]
    Switch {
        /// Rounds at each distance
        #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(..=1000))]
        rounds: u32,
        /// Round trips between the cities, in milliseconds
        #[arg(
            long,
            value_name = "MS,…",
            value_delimiter = ',',
            default_value = "0,10,30",
            value_parser = clap::value_parser!(u32).range(..=10_000)
        )]
        rtt: Vec<u32>,
        /// Planned switches, there and back, before the rounds
        #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=1000))]
        planned: u32,
        /// Use the binaries of the last build, whatever has changed since
        #[arg(long)]
        no_build: bool,
    },
}

pub(crate) fn run(bench: &Bench) -> Result<ExitCode> {
    match bench {
        Bench::Switch {
            rounds,
            rtt,
            planned,
            no_build,
        } => switch::run(&switch::Wanted {
            rounds: *rounds,
            round_trips_ms: rtt,
            planned: *planned,
            build: !no_build,
        }),
    }
}
