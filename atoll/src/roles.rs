//! The long-running roles: read the configuration, set up what they share, serve.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use atoll_runtime::Runtime;
use serde::de::DeserializeOwned;

use crate::settings::Settings;
use crate::talk;

/// How a role is started.
#[derive(Debug, clap::Args)]
pub(crate) struct Start {
    /// Its configuration, in YAML
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Overrides one key of the configuration: `--set limits.clients_max=10`
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// The roles.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Run control: keeps intent, decides, publishes
    Control(Start),
    /// Run a mesh: serves tables to the data planes of a cell
    Mesh(Start),
    /// Run a gateway: takes a cell's user requests, or hands them to the owner's
    Gateway(Start),
    /// Run an SQL router: takes a cell's SQL to the primary of each shard
    SqlRouter(Start),
    /// Run an agent: looks after one PostgreSQL of a data group
    Agent(Start),
}

pub(crate) fn run(command: Command) -> ExitCode {
    match command {
        Command::Control(start) => serve("control", &start, |config, runtime| {
            atoll_control::serve(config, runtime, ready("control"))
        }),
        Command::Mesh(start) => serve("mesh", &start, |config, runtime| {
            atoll_mesh::serve(config, runtime, ready("mesh"))
        }),
        Command::Gateway(start) => serve("gateway", &start, |config, runtime| {
            atoll_gateway::serve(config, runtime, ready("gateway"))
        }),
        Command::SqlRouter(start) => serve("sql-router", &start, |config, runtime| {
            atoll_sql_router::serve(config, runtime, ready("sql-router"))
        }),
        Command::Agent(start) => serve("agent", &start, |config, runtime| {
            atoll_agent::serve(config, runtime, ready("agent"))
        }),
    }
}

/// Says that the role serves: the one line on standard output that whoever started it waits for.
pub(crate) fn ready(role: &'static str) -> impl FnOnce(&str) + Send {
    move |addresses| talk::data(&format!("ready {role} {addresses}"))
}

pub(crate) fn serve<C, F, E>(
    role: &str,
    start: &Start,
    serve: impl FnOnce(C, Runtime) -> F,
) -> ExitCode
where
    C: DeserializeOwned,
    F: Future<Output = Result<(), E>>,
    E: std::error::Error + Send + Sync + 'static,
{
    let settings = Settings::read(role, &start.config, std::env::vars(), &start.set);
    let (settings, config) =
        match settings.and_then(|s| Ok((s.own::<C>()?, s)).map(|(c, s)| (s, c))) {
            Ok(read) => read,
            Err(error) => return talk::fail(error.as_ref()),
        };
    let fields: Vec<(&str, &str)> = settings
        .fields
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    let logging = atoll_telemetry::init(role, &fields).context("logging cannot be set up");
    if let Err(error) = logging {
        return talk::fail(error.as_ref());
    }
    let options = settings.runtime.clone().into();
    atoll_runtime::main_with(role, options, async move |runtime| {
        serve(config, runtime).await
    })
}
