//! The one task runner: `cargo xtask test | check | demo | bench`.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a task runner talks to a person"
)]

mod arrows;
mod cargo;
mod check;
mod count;
mod metadata;
mod shipped;
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
        (`atoll-agent`), or one of `arrows` and `docs`.\n\n\
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
    /// Formatting, lints, dependency arrows, and what the shipped binary is built from
    Check,
}

fn main() -> ExitCode {
    let done = match Task::parse() {
        Task::Test { names, list } => test::run(&names, list),
        Task::Check => check::run_all(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
