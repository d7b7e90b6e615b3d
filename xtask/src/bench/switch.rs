//! How long users wait when a cell moves, a primary dies, a city is lost; at several distances.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use atoll_api::Execution;
use atoll_runtime::{RealOptions, Runtime};
use bank::analyse::{Event, EventFigures, analyse};
use serde::Serialize;
use tokio::time::sleep;

use super::table::spread;
use crate::binaries::{self, Binaries};
use crate::cargo::{root, target};
use crate::stage::{Setting, Stage, events};

/// What figures are compared with, and time for the last event's effects to end.
const QUIET: Duration = Duration::from_secs(10);
/// Automation refuses the fourth failover of a group within its window; rounds follow one another
/// faster than in any real world, and the guard is not what is measured.
const GUARD_WINDOW_SECONDS: u64 = 5;

/// What is asked for.
pub(crate) struct Wanted<'a> {
    /// Rounds of all events at each distance.
    pub(crate) rounds: u32,
    /// Planned switches, there and back, before them.
    pub(crate) planned: u32,
    pub(crate) round_trips_ms: &'a [u32],
    pub(crate) build: bool,
}

/// One event, as it is kept.
#[derive(Debug, Serialize)]
struct Line {
    round_trip_ms: u32,
    round: u32,
    #[serde(flatten)]
    figures: EventFigures,
    /// Control's own steps, the slowest group: name and milliseconds.
    steps: Vec<(String, f64)>,
    version: &'static str,
    postgres: String,
}

/// What was done in one round, with what control tells of it.
type Done = (u32, Event, Vec<Execution>);

/// All that was done at one distance, what the users saw of it, and what broke it off.
struct Measured {
    done: Vec<Done>,
    run: bank::report::Run,
    ended: Result<()>,
}

pub(crate) fn run(wanted: &Wanted<'_>) -> Result<ExitCode> {
    ensure!(
        wanted.rounds > 0 || wanted.planned > 0,
        "nothing to measure: neither rounds nor planned switches"
    );
    let postgres = atoll_programs::postgres()?.version;
    if wanted.build {
        println!("building atoll and bank");
        binaries::build()?;
    }
    let output = target().join("bench/switch");
    fs::create_dir_all(&output).with_context(|| output.display().to_string())?;
    let lock = fs::File::create(output.join("lock"))?;
    ensure!(
        lock.try_lock().is_ok(),
        "another bench is at work on this machine; wait for its end"
    );
    let mut lines = Vec::new();
    let mut distances = wanted.round_trips_ms.iter();
    let ended = distances.try_for_each(|rtt| at_distance(wanted, *rtt, &postgres, &mut lines));
    // What was measured before a failure was measured.
    if !lines.is_empty() {
        show(&lines);
    }
    ended.map(|()| ExitCode::SUCCESS)
}

/// Measures one distance; what is known of it is kept, whatever becomes of the next one.
fn at_distance(
    wanted: &Wanted<'_>,
    round_trip_ms: u32,
    postgres: &str,
    lines: &mut Vec<Line>,
) -> Result<()> {
    let setting = Setting {
        name: "bench-switch",
        output: target().join("bench/switch"),
        round_trip_ms: Some(round_trip_ms),
        store: atoll_world::Store::Redb,
        guard_window_seconds: Some(GUARD_WINDOW_SECONDS),
        disks: atoll_world::Disks::default(),
    };
    println!(
        "cities {round_trip_ms} ms apart: {} planned switches and {} rounds",
        wanted.planned, wanted.rounds
    );
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let Measured { done, run, ended } =
        runtime.block_on(measure(wanted, setting, binaries::built()?))?;
    println!("  {}", run.report.summary());
    let told: Vec<Event> = done.iter().map(|(_, event, _)| event.clone()).collect();
    let figures = analyse(&run, &told).into_iter().zip(&done);
    let new: Vec<Line> = figures
        .map(|(figures, (round, _, executions))| Line {
            round_trip_ms,
            round: *round,
            figures,
            steps: steps(executions),
            version: env!("CARGO_PKG_VERSION"),
            postgres: postgres.to_owned(),
        })
        .collect();
    keep(&new)?;
    lines.extend(new);
    ended?;
    ensure!(
        run.report.sound(),
        "something acknowledged is missing or doubled: {}",
        run.report.summary()
    );
    Ok(())
}

async fn measure(wanted: &Wanted<'_>, setting: Setting, binaries: Binaries) -> Result<Measured> {
    let runtime = Runtime::real(RealOptions::default());
    let mut stage = Stage::open(runtime, binaries, setting).await?;
    let measured = async {
        stage.begin_load().await?;
        let mut done = Vec::new();
        let ended = all_rounds(&mut stage, wanted, &mut done).await;
        let run = stage.end_load().await?;
        Ok::<_, anyhow::Error>(Measured { done, run, ended })
    };
    let measured = measured.await;
    if !matches!(&measured, Ok(measured) if measured.ended.is_ok()) {
        println!(
            "the world's logs are in {}/log",
            stage.directory().display()
        );
    }
    stage.end().await?;
    measured
}

async fn all_rounds(stage: &mut Stage, wanted: &Wanted<'_>, done: &mut Vec<Done>) -> Result<()> {
    for round in 1..=wanted.planned + wanted.rounds {
        println!("  round {round}");
        let mut tell = |(event, by)| done.push((round, event, by));
        there_and_back(stage, &mut tell).await?;
        if round > wanted.planned {
            losses(stage, &mut tell).await?;
        }
    }
    Ok(())
}

/// Takes an event with its executions.
type Tell<'a> = &'a mut dyn FnMut((Event, Vec<Execution>));

async fn there_and_back(stage: &mut Stage, tell: Tell<'_>) -> Result<()> {
    sleep(QUIET).await;
    tell(events::switchover(stage, "hz-1", "shanghai").await?);
    sleep(QUIET).await;
    tell(events::failback(stage).await?);
    Ok(())
}

/// A primary and a city are lost, and everything is at home again.
async fn losses(stage: &mut Stage, tell: Tell<'_>) -> Result<()> {
    sleep(QUIET).await;
    tell(events::process_kill(stage, "sz-1").await?);
    events::made_good(stage).await?;
    sleep(QUIET).await;
    tell(events::city_loss(stage, "shanghai").await?);
    events::come_back(stage, "shanghai").await?;
    sleep(QUIET).await;
    tell(events::failback(stage).await?);
    Ok(())
}

/// The steps of the group that took longest.
fn steps(executions: &[Execution]) -> Vec<(String, f64)> {
    let mut by_group: BTreeMap<String, Vec<(String, f64)>> = BTreeMap::new();
    for execution in executions {
        for step in execution.status.iter().flat_map(|status| &status.steps) {
            let (Some(group), Some(from), Some(to)) =
                (&step.group, step.started_unix_ms, step.finished_unix_ms)
            else {
                continue;
            };
            let took = u32::try_from(to.saturating_sub(from)).map_or(f64::MAX, f64::from);
            let name = step.name.split(',').next().unwrap_or_default().to_owned();
            by_group
                .entry(group.to_string())
                .or_default()
                .push((name, took));
        }
    }
    let total = |steps: &Vec<(String, f64)>| steps.iter().map(|(_, took)| took).sum::<f64>();
    let slowest = by_group
        .into_values()
        .max_by(|a, b| total(a).total_cmp(&total(b)));
    slowest.unwrap_or_default()
}

fn keep(lines: &[Line]) -> Result<()> {
    let path = root().join("docs/bench/switch.jsonl");
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| path.display().to_string())?;
    for line in lines {
        writeln!(file, "{}", serde_json::to_string(line)?)?;
    }
    println!("  {} raw lines added to {}", lines.len(), path.display());
    Ok(())
}

fn show(lines: &[Line]) {
    println!("\nleast / median / p90 / most over the rounds, in ms\n");
    println!(
        "{:<6}{:<14}{:<4}{:<30}{:<30}{:<30}{:<30}{:<26}{:<7}unknown",
        "rtt", "event", "n", "hold p50", "hold p99", "rto", "detection", "convergence", "failed"
    );
    let mut kinds: BTreeMap<(u32, String), Vec<&Line>> = BTreeMap::new();
    for line in lines {
        let kind = (line.round_trip_ms, line.figures.name.clone());
        kinds.entry(kind).or_default().push(line);
    }
    for ((rtt, name), lines) in &kinds {
        let of = |value: fn(&EventFigures) -> Option<f64>| {
            let values = lines.iter().filter_map(|line| value(&line.figures));
            spread(&values.collect::<Vec<f64>>())
        };
        let failed: u64 = lines.iter().map(|line| line.figures.failed).sum();
        let unknown: u64 = lines.iter().map(|line| line.figures.unknown).sum();
        println!(
            "{:<6}{:<14}{:<4}{:<30}{:<30}{:<30}{:<30}{:<26}{:<7}{}",
            rtt,
            name,
            lines.len(),
            of(|f| f.hold_ms.map(|hold| hold.p50)),
            of(|f| f.hold_ms.map(|hold| hold.p99)),
            of(|f| f.rto_ms),
            of(|f| f.detection_ms),
            of(|f| f.convergence_ms),
            failed,
            unknown
        );
    }
    println!("\nwhere the time goes (control's clock, the slowest group)\n");
    for ((rtt, name), lines) in &kinds {
        show_steps(*rtt, name, lines);
    }
}

/// Every step of one event, in the order in which they were first seen.
fn show_steps(rtt: u32, event: &str, lines: &[&Line]) {
    let steps = || lines.iter().flat_map(|line| &line.steps);
    let mut names: Vec<&String> = Vec::new();
    for (step, _) in steps() {
        if !names.contains(&step) {
            names.push(step);
        }
    }
    for step in names {
        let took = steps()
            .filter(|(name, _)| name == step)
            .map(|(_, took)| *took);
        println!(
            "{rtt:<6}{event:<14}{step:<28}{}",
            spread(&took.collect::<Vec<f64>>())
        );
    }
}
