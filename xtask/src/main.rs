//! The one task runner: `cargo xtask test | check | demo | bench`.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a task runner talks to a person"
)]

mod arrows;
mod bench;
mod binaries;
mod cargo;
mod check;
mod count;
mod demo;
mod fuzz;
mod metadata;
mod shipped;
mod stage;
mod test;

use std::process::ExitCode;

use clap::Parser;

/// Everything that is done with this repository, one command each.
#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    after_help = "A fresh machine needs Rust (rustup) and a C compiler; what else is needed is \
        installed by the task that needs it, and said.\n\n\
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
        store: demo::StoreKind,
    },
    /// Measure what is claimed somewhere
    Bench {
        #[command(subcommand)]
        bench: bench::Bench,
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
