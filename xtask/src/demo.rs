//! `cargo xtask demo`: a world, many users, four events, and the proof.
//!
//! The users' load is a program of its own (`bank load`), which also keeps the oracle; the events
//! are ordered through the same commands and the same API that a person has.

mod ask;
mod proof;
mod stage;
mod story;

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use atoll_runtime::{RealOptions, Runtime};

use crate::binaries;
use crate::cargo::target;

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

pub(crate) fn run(afterwards: Afterwards, build: Build) -> Result<ExitCode> {
    println!("setting up");
    let postgres = atoll_programs::postgres()?;
    println!(
        "  PostgreSQL {} in {}",
        postgres.version,
        postgres.bin.display()
    );
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
        let mut stage = stage::Stage::open(runtime, binaries, output).await?;
        let told = play(&mut stage).await;
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

async fn play(stage: &mut stage::Stage) -> Result<ExitCode> {
    stage.begin_load().await?;
    let events = story::tell(stage).await?;
    println!("the users stop, and the books are read");
    let run = stage.end_load().await?;
    let rows = stage.ask().rows().await?;
    let executions = stage.ask().executions().await?;
    let seen = proof::Seen {
        events,
        rows,
        executions,
    };
    proof::show(stage.output(), &run, &seen)
}
