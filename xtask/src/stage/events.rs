//! What is done to a world under load, and the figures that come of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use atoll_api::{Execution, Phase, WorldStatus};
use atoll_hosts::{Signal, Tree};
use bank::analyse::Event;
use tokio::time::{Instant, sleep};

use super::Stage;

/// How long the users are watched after an event is over.
const AFTER: Duration = Duration::from_secs(5);
/// How long all users are watched after a city was lost.
const WATCHED: Duration = Duration::from_secs(10);
/// How long anything that is waited for may take.
const LIMIT: Duration = Duration::from_secs(60);
/// How often control is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// A cell moves to another city, on an order.
pub(crate) async fn switchover(
    stage: &mut Stage,
    cell: &str,
    to: &str,
) -> Result<(Event, Vec<Execution>)> {
    let cells = owned(&stage.ask().status().await?, |name, _| name == cell)?;
    let plan = stage.ask().plan(&["cell", cell, "--to", to]).await?;
    let hash = plan.status.context("the plan came back empty")?.hash;
    stage.mark("switchover", &format!("{cell} moves to {to}, as planned"))?;
    let at = stage.now_ms();
    let name = format!("switchover-{at}");
    let executions = vec![stage.ask().run(&hash, &name).await?];
    let event = event(stage, "switchover", at, cells, &executions).await?;
    Ok((event, executions))
}

/// A primary's PostgreSQL is killed, with all its children.
pub(crate) async fn process_kill(stage: &mut Stage, cell: &str) -> Result<(Event, Vec<Execution>)> {
    let status = stage.ask().status().await?;
    let cells = owned(&status, |name, _| name == cell)?;
    let group = status
        .groups
        .iter()
        .find(|g| {
            g.owners
                .iter()
                .any(|o| o.split(' ').any(|word| word == cell))
        })
        .context("no data group serves the cell")?;
    let open = group
        .open
        .as_ref()
        .context("the data group has no primary")?;
    let (name, term) = (group.name.clone(), open.term);
    let processes = stage.world.status()?.processes;
    let agent = processes
        .iter()
        .find(|p| p.place.member.as_ref() == Some(&open.primary))
        .and_then(|p| p.process)
        .context("the primary's agent does not run")?;
    let postgres: Vec<_> = Tree::now()?
        .below(&[agent])
        .into_iter()
        .filter(|p| *p != agent)
        .collect();
    ensure!(!postgres.is_empty(), "the agent has no PostgreSQL");
    let before = known(stage).await?;
    let text = format!(
        "PostgreSQL of {} is killed with -9: primary of {name}",
        open.primary
    );
    stage.mark("process-kill", &text)?;
    let at = stage.now_ms();
    for process in postgres {
        process.signal(Signal::SIGKILL)?;
    }
    let failed_over = |status: &WorldStatus| {
        let group = status.groups.iter().find(|g| g.name == name);
        let open = group.and_then(|g| g.open.as_ref());
        open.is_some_and(|open| open.term.supersedes(term)) && settled(status)
    };
    until(stage, "the data group fails over", failed_over).await?;
    let executions = new_ones(stage, &before).await?;
    let event = event(stage, "process-kill", at, cells, &executions).await?;
    Ok((event, executions))
}

/// Three members survive one loss at a time: the next one waits for the last to be made good.
pub(crate) async fn made_good(stage: &mut Stage) -> Result<()> {
    until(stage, "all members have joined again", complete).await?;
    stage.mark("re-join", "every data group is complete again")
}

/// A city is silent from one instant on, and dead a little later.
pub(crate) async fn city_loss(stage: &mut Stage, lost: &str) -> Result<(Event, Vec<Execution>)> {
    let cells = owned(&stage.ask().status().await?, |_, region| region == lost)?;
    let before = known(stage).await?;
    stage.mark(
        "city-loss",
        &format!("{lost} is lost: all its processes freeze"),
    )?;
    let frozen = stage.world.pause(lost).await?;
    let survived = |status: &WorldStatus| {
        let gone = |c: &atoll_api::CellStatus| c.region.as_str() == lost && !c.shards.is_empty();
        !status.cells.iter().any(gone) && settled(status)
    };
    until(stage, "other cities own its users", survived).await?;
    let executions = new_ones(stage, &before).await?;
    let since = Duration::from_millis(stage.now_ms().saturating_sub(frozen.at_ms));
    sleep(WATCHED.saturating_sub(since + AFTER)).await;
    let mut event = event(stage, "city-loss", frozen.at_ms, cells, &executions).await?;
    // What lost its power stays silent. The end of frozen processes is work, and here it would be
    // work for the machine that carries the other cities too, whose users were being watched.
    stage.world.kill(lost).await?;
    event.lost_region = Some(lost.to_owned());
    Ok((event, executions))
}

/// The city's processes start again, and its members catch up.
pub(crate) async fn come_back(stage: &mut Stage, lost: &str) -> Result<()> {
    stage.mark("return", &format!("{lost} starts again"))?;
    stage.world.start(lost).await?;
    made_good(stage).await?;
    sleep(AFTER).await;
    Ok(())
}

/// Everything goes back to where the topology prefers it, on an order.
pub(crate) async fn failback(stage: &mut Stage) -> Result<(Event, Vec<Execution>)> {
    let plan = stage.ask().plan(&["failback"]).await?;
    let plan = plan.status.context("the plan came back empty")?;
    let mut moving: BTreeSet<u16> = BTreeSet::new();
    for group in &plan.made_for {
        moving.extend(shards(&group.shards)?);
    }
    let mut cells = owned(&stage.ask().status().await?, |_, _| true)?;
    cells
        .values_mut()
        .for_each(|owned| owned.retain(|shard| moving.contains(shard)));
    cells.retain(|_, owned| !owned.is_empty());
    stage.mark("failback", "everything goes back to where it belongs")?;
    let at = stage.now_ms();
    let name = format!("failback-{at}");
    let executions = vec![stage.ask().run(&plan.hash, &name).await?];
    let event = event(stage, "failback", at, cells, &executions).await?;
    Ok((event, executions))
}

/// `0-24,30` as numbers.
fn shards(text: &str) -> Result<BTreeSet<u16>> {
    let ranges = atoll_topology::parse_shards(text).map_err(anyhow::Error::msg)?;
    Ok(ranges.into_iter().flatten().collect())
}

/// The cells that `chosen` (by name and region) says, with the shards that they own.
pub(crate) fn owned(
    status: &WorldStatus,
    chosen: impl Fn(&str, &str) -> bool,
) -> Result<BTreeMap<String, BTreeSet<u16>>> {
    let mut cells = BTreeMap::new();
    for cell in status.cells.iter().filter(|c| !c.shards.is_empty()) {
        if chosen(cell.name.as_str(), cell.region.as_str()) {
            cells.insert(cell.name.to_string(), shards(&cell.shards)?);
        }
    }
    ensure!(!cells.is_empty(), "no cell that owns shards is concerned");
    Ok(cells)
}

/// Every member of every data group leads or follows.
pub(crate) fn complete(status: &WorldStatus) -> bool {
    let mut members = status.groups.iter().flat_map(|g| &g.members);
    let at_work = |role: &str| ["primary", "replica"].contains(&role);
    settled(status) && members.all(|m| m.live && at_work(&m.role))
}

/// No op runs, nothing switches, every data group has a primary.
fn settled(status: &WorldStatus) -> bool {
    status.executions.is_empty()
        && status.cells.iter().all(|c| c.switching.is_empty())
        && status
            .groups
            .iter()
            .all(|g| g.op.is_none() && g.open.is_some())
}

async fn until(stage: &Stage, what: &str, fact: impl Fn(&WorldStatus) -> bool) -> Result<()> {
    let limit = Instant::now() + LIMIT;
    loop {
        let status = stage.ask().status().await?;
        if fact(&status) {
            return Ok(());
        }
        if Instant::now() >= limit {
            let last = serde_json::to_string_pretty(&status)?;
            anyhow::bail!("not seen within {LIMIT:?}: {what}; control last said\n{last}");
        }
        sleep(ASK_AGAIN).await;
    }
}

/// Names of all executions so far.
async fn known(stage: &Stage) -> Result<BTreeSet<String>> {
    Ok(stage
        .ask()
        .executions()
        .await?
        .into_iter()
        .map(|e| e.metadata.name)
        .collect())
}

/// Executions that verdicts have begun since.
async fn new_ones(stage: &Stage, before: &BTreeSet<String>) -> Result<Vec<Execution>> {
    let all = stage.ask().executions().await?;
    Ok(all
        .into_iter()
        .filter(|e| !before.contains(&e.metadata.name))
        .collect())
}

/// What the figures of an event are made from, once it is over.
async fn event(
    stage: &Stage,
    name: &str,
    at_unix_ms: u64,
    cells: BTreeMap<String, BTreeSet<u16>>,
    executions: &[Execution],
) -> Result<Event> {
    let mut detection_ms: Option<f64> = None;
    let mut convergence_ms: Option<f64> = None;
    for execution in executions {
        let Some(status) = &execution.status else {
            continue;
        };
        if execution.spec.automatic && status.phase == Phase::Aborted {
            // Overtaken by another verdict; whether the world is whole was waited for.
            continue;
        }
        ensure!(
            matches!(status.phase, Phase::Succeeded | Phase::Running),
            "{} {:?}: {}",
            execution.metadata.name,
            status.phase,
            status.message
        );
        // Control cannot know when it happened, only when it knew: its verdict begins an execution.
        if let (true, Some(begun)) = (execution.spec.automatic, &status.started) {
            detection_ms = later(detection_ms, Some(ms_between(at_unix_ms, begun.0)));
        }
        convergence_ms = later(convergence_ms, status.figures.convergence_ms);
    }
    sleep(AFTER).await;
    Ok(Event {
        name: name.to_owned(),
        at_unix_ms,
        until_unix_ms: stage.now_ms(),
        cells,
        lost_region: None,
        detection_ms,
        convergence_ms,
    })
}

/// Milliseconds from one wall-clock time to a later one; a day at most.
fn ms_between(from_unix_ms: u64, to_unix_ms: u64) -> f64 {
    u32::try_from(to_unix_ms.saturating_sub(from_unix_ms)).map_or(f64::MAX, f64::from)
}

fn later(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.max(b)),
        (a, b) => a.or(b),
    }
}
