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

/// What is asked for.
pub(crate) struct Wanted<'a> {
    pub(crate) rounds: u32,
    pub(crate) round_trips_ms: &'a [u32],
    pub(crate) planned: bool,
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

pub(crate) fn run(wanted: &Wanted<'_>) -> Result<ExitCode> {
    let postgres = atoll_programs::postgres()?;
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
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut lines = Vec::new();
    for round_trip_ms in wanted.round_trips_ms {
        let setting = Setting {
            name: "bench-switch",
            output: output.clone(),
            round_trip_ms: Some(*round_trip_ms),
            store: atoll_world::Store::Redb,
            guard_window_seconds: None,
        };
        println!("cities {round_trip_ms} ms apart, {} rounds", wanted.rounds);
        let (done, run) = runtime.block_on(measure(wanted, setting, binaries::built()?))?;
        ensure!(
            run.report.sound(),
            "something acknowledged is missing or doubled: {}",
            run.report.summary()
        );
        println!("  {}", run.report.summary());
        let told: Vec<Event> = done.iter().map(|(_, event, _)| event.clone()).collect();
        for (figures, (round, _, executions)) in analyse(&run, &told).into_iter().zip(&done) {
            lines.push(Line {
                round_trip_ms: *round_trip_ms,
                round: *round,
                figures,
                steps: steps(executions),
                version: env!("CARGO_PKG_VERSION"),
                postgres: postgres.version.clone(),
            });
        }
    }
    keep(&lines)?;
    show(&lines);
    Ok(ExitCode::SUCCESS)
}

async fn measure(
    wanted: &Wanted<'_>,
    setting: Setting,
    binaries: Binaries,
) -> Result<(Vec<Done>, bank::report::Run)> {
    let runtime = Runtime::real(RealOptions::default());
    let mut stage = Stage::open(runtime, binaries, setting).await?;
    let measured = async {
        stage.begin_load().await?;
        let mut done = Vec::new();
        for round in 1..=wanted.rounds {
            println!("  round {round}");
            let told = one_round(&mut stage, wanted.planned).await?;
            done.extend(told.into_iter().map(|(event, by)| (round, event, by)));
        }
        Ok::<_, anyhow::Error>((done, stage.end_load().await?))
    };
    let measured = measured.await;
    if measured.is_err() {
        println!(
            "the world's logs are in {}/log",
            stage.directory().display()
        );
    }
    stage.end().await?;
    measured
}

/// Every event once, and everything is at home again.
async fn one_round(stage: &mut Stage, planned: bool) -> Result<Vec<(Event, Vec<Execution>)>> {
    sleep(QUIET).await;
    let mut done = vec![events::switchover(stage, "hz-1", "shanghai").await?];
    sleep(QUIET).await;
    done.push(events::failback(stage).await?);
    if planned {
        return Ok(done);
    }
    sleep(QUIET).await;
    done.push(events::process_kill(stage, "sz-1").await?);
    events::made_good(stage).await?;
    sleep(QUIET).await;
    done.push(events::city_loss(stage, "shanghai").await?);
    events::come_back(stage, "shanghai").await?;
    sleep(QUIET).await;
    done.push(events::failback(stage).await?);
    Ok(done)
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
    println!("\nraw lines: {}", path.display());
    Ok(())
}

fn show(lines: &[Line]) {
    println!("\nleast / median / p90 / most over the rounds, in ms\n");
    println!(
        "{:<6}{:<14}{:<4}{:<24}{:<24}{:<24}{:<22}{:<22}{:<7}unknown",
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
            "{:<6}{:<14}{:<4}{:<24}{:<24}{:<24}{:<22}{:<22}{:<7}{}",
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
    println!("\nwhere the time of a planned switch goes (control's clock, the slowest group)\n");
    for ((rtt, name), lines) in kinds.iter().filter(|((_, name), _)| name == "switchover") {
        let mut names: Vec<&String> = Vec::new();
        for (step, _) in lines.iter().flat_map(|line| &line.steps) {
            if !names.contains(&step) {
                names.push(step);
            }
        }
        for step in names {
            let steps = lines.iter().flat_map(|line| &line.steps);
            let took = steps
                .filter(|(name, _)| name == step)
                .map(|(_, took)| *took);
            println!(
                "{rtt:<6}{name:<14}{step:<28}{}",
                spread(&took.collect::<Vec<f64>>())
            );
        }
    }
}
