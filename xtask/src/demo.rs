//! `cargo xtask demo`: a world, many users, four events, and the proof.
//!
//! The users' load is a program of its own (`bank load`), which also keeps the oracle; the events
//! are ordered through the same commands and the same API that a person has.

mod proof;
mod story;

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use atoll_runtime::{RealOptions, Runtime};
use atoll_world::{Disks, Store};

use crate::binaries;
use crate::cargo::target;
use crate::stage::{Setting, Stage, StoreKind};

/// What becomes of the world at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Afterwards {
    /// It ends, and nothing is left.
    End,
    /// It goes on, and the person is told how to look at it.
    Keep,
}

/// Which binaries play.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Build {
    /// Those of the source as it is now.
    Fresh,
    /// Those of the last build.
    Last,
}

pub(crate) fn run(afterwards: Afterwards, build: Build, store: StoreKind) -> Result<ExitCode> {
    println!("setting up");
    let postgres = atoll_programs::postgres()?;
    println!(
        "  PostgreSQL {} in {}",
        postgres.version,
        postgres.bin.display()
    );
    let store = store.found()?;
    let binaries = match build {
        Build::Fresh => {
            println!("  building atoll and bank");
            binaries::build()?
        }
        Build::Last => binaries::built()?,
    };
    let output = target().join("demo");
    fs::create_dir_all(&output).with_context(|| format!("{}", output.display()))?;
    // One world and one folder of reports: two demos at once would end each other's.
    let lock = fs::File::create(output.join("lock"))?;
    if lock.try_lock().is_err() {
        bail!("another demo is at work on this machine; wait for its end");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let runtime = Runtime::real(RealOptions::default());
        let setting = Setting {
            name: "demo",
            output,
            round_trip_ms: None,
            store: store.clone(),
            guard_window_seconds: None,
            disks: Disks::default(),
        };
        let mut stage = Stage::open(runtime, binaries, setting).await?;
        let told = play(&mut stage, &store).await;
        if told.is_err() {
            println!(
                "the world's logs are in {}/log",
                stage.directory().display()
            );
        }
        match afterwards {
            Afterwards::End => stage.end().await?,
            Afterwards::Keep => stage.keep(),
        }
        told
    })
}

async fn play(stage: &mut Stage, store: &Store) -> Result<ExitCode> {
    stage.begin_load().await?;
    let events = story::tell(stage).await?;
    println!("the users stop, and the books are read");
    let run = stage.end_load().await?;
    let rows = stage.rows().await?;
    let executions = stage.ask().executions().await?;
    let seen = proof::Seen {
        events,
        rows,
        executions,
        control: match store {
            Store::Redb => "one replica outside the three cities, which is not killed here",
            Store::Etcd { .. } => {
                "three replicas on three nodes of etcd, one of each in each city: the lost city's \
                 were lost with it"
            }
        },
    };
    proof::show(stage.output(), &run, &seen)
}
