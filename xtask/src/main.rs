//! The one task runner: `cargo xtask test | check | demo | bench | fuzz | simulate | campaign`.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a task runner talks to a person"
)]

mod arrows;
mod bench;
mod binaries;
mod campaign;
mod cargo;
mod check;
mod count;
mod demo;
mod fuzz;
mod metadata;
mod shipped;
mod simulate;
mod stage;
mod test;

use std::process::ExitCode;

use clap::Parser;

/// Seeds that are taken where none is named: beyond those of the tests.
const FIRST_WALK: u64 = 1_000_000;
/// See [`FIRST_WALK`].
const FIRST_WORLD: u64 = 1_001;

/// Everything that is done with this repository, one command each.
#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    after_help = "A fresh machine needs Rust (rustup) and a C and C++ compiler (C++ for libFuzzer \
        alone); what else is needed is installed by the task that needs it, and said.\n\n\
        Before a change is handed in:\n  cargo xtask check && cargo xtask test"
)]
enum Task {
    /// Run all tests, or the parts that are named
    #[command(
        after_help = "A NAME is a folder (`domain`, `services/agent`), a package \
        (`atoll-agent`), or one of `arrows`, `docs` and `fuzz`.\n\n\
        Examples:\n  cargo xtask test\n  cargo xtask test domain arrows\n  \
        cargo xtask test end-to-end\n\n\
        One crate while you work on it: cargo test -p atoll-routing"
    )]
    Test {
        /// Parts to run; all without one
        #[arg(value_name = "NAME")]
        names: Vec<String>,
        /// Show the parts and run none
        #[arg(long)]
        list: bool,
    },
    /// Bring up three cities, lose one under load, and prove that nothing acknowledged was lost
    #[command(after_help = "Takes under three minutes after the build. Leaves \
        target/demo/report.html and target/demo/report.json; fails where anything acknowledged is \
        missing or doubled.")]
    Demo {
        /// Leave the world running, and say how to look at it
        #[arg(long)]
        keep: bool,
        /// Use the binaries of the last build, whatever has changed since
        #[arg(long)]
        no_build: bool,
        /// Where control keeps its records
        #[arg(long, value_name = "STORE", value_enum, default_value = "redb")]
        store: stage::StoreKind,
    },
    /// Measure what is claimed somewhere
    Bench {
        #[command(subcommand)]
        bench: bench::Bench,
    },
    /// Faults drawn from a seed against a world under load, judged by oracles
    #[command(
        after_help = "Leaves target/campaign/report.json and report.md; fails where an \
        oracle found anything, or where a lie that every oracle is told was not found out. A run \
        with an anomaly keeps all logs and says how to repeat it.\n\nExamples:\n  \
        cargo xtask campaign --minutes 10 --seed 7\n  \
        cargo xtask campaign --minutes 120 --store etcd"
    )]
    Campaign {
        /// How long faults are drawn
        #[arg(long, value_name = "N", default_value_t = 10)]
        minutes: u64,
        /// Where all chance comes from; the time without
        #[arg(long, value_name = "S")]
        seed: Option<u64>,
        /// Where control keeps its records
        #[arg(long, value_name = "STORE", value_enum, default_value = "redb")]
        store: stage::StoreKind,
        /// Use the binaries of the last build, whatever has changed since
        #[arg(long)]
        no_build: bool,
    },
    /// Walk the ownership protocol through random schedules, by the million, on every core; or run
    /// whole worlds on virtual time
    #[command(
        after_help = "A walk is a few hundred steps of the state machines that the services \
        run: crashes, lost and repeated messages, late statements, two drivers, changed members. \
        A step that breaks an invariant ends it with the shortest schedule that does, as readable \
        steps, and exit code 1.\n\nA seed is a world on virtual time: the services' own code, \
        three cities, faults and switches drawn from the seed, users, and oracles. The trace of \
        one that breaks something is in target/simulation.\n\nExamples:\n  \
        cargo xtask simulate --walks 1000000\n  cargo xtask simulate --walks 1 --seed 4171\n  \
        cargo xtask simulate --seeds 100\n  cargo xtask simulate --seeds 1 --seed 17"
    )]
    Simulate {
        /// How many walks
        #[arg(long, value_name = "N", default_value_t = 1_000_000)]
        walks: u64,
        /// How many worlds instead
        #[arg(long, value_name = "N", conflicts_with = "walks")]
        seeds: Option<u64>,
        /// The first one's seed; the others count on from it. Tests walk those from 0, and run the
        /// worlds from 1
        #[arg(long, value_name = "S")]
        seed: Option<u64>,
    },
    /// Feed every parser with bytes that nobody would send, for a while
    #[command(after_help = "Corpora are in fuzz/corpus. What fails is kept in \
        target/fuzz/artifacts.\n\nExamples:\n  cargo xtask fuzz\n  \
        cargo xtask fuzz pgwire sql --seconds 600")]
    Fuzz {
        /// Targets; all without one
        #[arg(value_name = "TARGET")]
        names: Vec<String>,
        /// How long each one runs
        #[arg(long, value_name = "N", default_value_t = 60)]
        seconds: u32,
    },
    /// Formatting, lints, dependency arrows, and what the shipped binary is built from
    Check,
}

fn main() -> ExitCode {
    let done = match Task::parse() {
        Task::Test { names, list } => test::run(&names, list).map(|()| ExitCode::SUCCESS),
        Task::Check => check::run_all().map(|()| ExitCode::SUCCESS),
        Task::Fuzz { names, seconds } => {
            fuzz::run_targets(&names, seconds).map(|count| match count.failed {
                0 => ExitCode::SUCCESS,
                _ => ExitCode::FAILURE,
            })
        }
        Task::Bench { bench } => bench::run(&bench),
        Task::Simulate { walks, seeds, seed } => match seeds {
            Some(seeds) => simulate::seeds::run(seeds, seed.unwrap_or(FIRST_WORLD)),
            None => simulate::run(walks, seed.unwrap_or(FIRST_WALK)),
        }
        .map(|()| ExitCode::SUCCESS),
        Task::Campaign {
            minutes,
            seed,
            store,
            no_build,
        } => store.found().and_then(|store| {
            campaign::run(&campaign::Wanted {
                minutes,
                seed: seed.unwrap_or_else(campaign::seed_of_now),
                store,
                build: !no_build,
            })
        }),
        Task::Demo {
            keep,
            no_build,
            store,
        } => demo::run(
            if keep {
                demo::Afterwards::Keep
            } else {
                demo::Afterwards::End
            },
            if no_build {
                demo::Build::Last
            } else {
                demo::Build::Fresh
            },
            store,
        ),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
