//! The one binary: every role of Atoll, a whole world on one machine, and the command line.

mod dev;
mod nearest;
mod roles;
mod settings;
mod status;
mod talk;

use std::process::ExitCode;

use clap::Parser;

/// Cells that survive: users' shards, the data that belongs to them, and the traffic that follows.
#[derive(Parser)]
#[command(
    name = "atoll",
    version,
    propagate_version = true,
    after_help = "Begin with a world on this machine:\n  \
        atoll dev up -f examples/topologies/three-cities.yaml\n  \
        atoll dev status\n  \
        atoll dev down"
)]
enum Command {
    /// Keep a whole world on this machine: processes, addresses, links
    #[command(subcommand)]
    Dev(dev::Command),
    #[command(flatten)]
    Ask(Box<atoll_cli::Command>),
    #[command(flatten)]
    Role(roles::Command),
}

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    // Not for people: how an agent starts its PostgreSQL, before anything of ours is set up.
    if words.next().is_some_and(|word| word == "postgres-exec") {
        return atoll_postgres::exec_main(words);
    }
    match Command::parse_from(nearest::with_server(std::env::args_os())) {
        Command::Dev(command) => dev::run(command),
        Command::Ask(command) => atoll_cli::run(*command),
        Command::Role(command) => roles::run(command),
    }
}
