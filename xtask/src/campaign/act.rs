//! Faults, performed and taken back.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result};
use atoll_hosts::{Signal, Tree};
use atoll_runtime::LinksFile;
use atoll_world::{Doing, Role, Ways};
use tokio::time::{sleep, timeout};

use super::draw::{Fault, Ordered};
use super::means::{Means, Slowed, millis};
use crate::stage::Stage;

/// What stands outside the regions.
const OUTSIDE: &str = "outside";
/// How long an order may take; under a fault it may well not succeed.
const ORDER_LIMIT: Duration = Duration::from_secs(45);

/// How an order that a person gave ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ended {
    Done,
    /// Planned and not carried out, or not to be planned: no anomaly by itself.
    Not(String),
}

/// Performs a fault and takes it back; returns when the cause is gone, whatever its effects. Disks
/// that were slowed down are noted.
pub(crate) async fn perform(
    stage: &Stage,
    fault: &Fault,
    slowed: &RefCell<Vec<Slowed>>,
) -> Result<()> {
    let world = &stage.world;
    match fault {
        Fault::Kill { process, down } => {
            world.kill(process).await?;
            sleep(*down).await;
            world.start(process).await?;
        }
        Fault::KillPostgres { agent } => postgres(stage, agent, None)?,
        Fault::KillBackend { agent, which } => postgres(stage, agent, Some(*which))?,
        Fault::Freeze { process, lasting } => {
            world.pause(process).await?;
            sleep(*lasting).await;
            world.resume(process).await?;
        }
        Fault::FreezeRegion { region, lasting } => {
            world.pause(region).await?;
            sleep(*lasting).await;
            world.resume(region).await?;
        }
        Fault::LoseRegion { region, down } => {
            world.pause(region).await?;
            sleep(*down).await;
            world.kill(region).await?;
            world.start(region).await?;
        }
        Fault::Cut { a, b, lasting } => cut(stage, &[(a, b)], Ways::Both, *lasting).await?,
        Fault::CutOneWay { from, to, lasting } => {
            cut(stage, &[(from, to)], Ways::OneWay, *lasting).await?;
        }
        Fault::Isolate { region, lasting } => {
            let others = all_others(stage, region)?;
            let pairs: Vec<(&str, &str)> = others
                .iter()
                .map(|other| (region.as_str(), other.as_str()))
                .collect();
            cut(stage, &pairs, Ways::Both, *lasting).await?;
        }
        Fault::CutControl { region, lasting } => {
            cut(stage, &[(region, OUTSIDE)], Ways::Both, *lasting).await?;
        }
        Fault::Slow {
            a,
            b,
            delay_ms,
            lasting,
        } => {
            let mut links = world.links()?;
            for link in &mut links.links {
                let ends = [link.from.as_str(), link.to.as_str()];
                if ends.contains(&a.as_str()) && ends.contains(&b.as_str()) {
                    link.delay_ms = f64::from(*delay_ms);
                }
            }
            world.set_links(&links)?;
            sleep(*lasting).await;
        }
        Fault::DiskFull { agent, lasting } => {
            world.fill_disk(agent).await?;
            sleep(*lasting).await;
            world.free_disk(agent).await?;
        }
        Fault::SlowDisk {
            agent,
            delay_ms,
            lasting,
        } => {
            let shown = slow_disk(stage, agent, *delay_ms, *lasting).await?;
            slowed.borrow_mut().push(shown);
        }
        Fault::Clock {
            target,
            offset_ms,
            lasting,
        } => {
            world.set_clock(target, *offset_ms)?;
            sleep(*lasting).await;
            world.set_clock(target, 0)?;
        }
        Fault::RestartGroup { group } => {
            let members = agents_of(stage, |p| {
                p.place.group.as_ref().is_some_and(|g| g.as_str() == group)
            })?;
            restart(stage, &members, &members).await?;
        }
        Fault::RestartAll => {
            let all = agents_of(stage, |p| p.place.role != Role::Application)?;
            let name = |place: &atoll_world::Place| match &place.region {
                Some(region) => region.to_string(),
                None => place.id.to_string(),
            };
            let places = world.record()?.plan.places;
            let names: BTreeSet<String> = places.iter().map(name).collect();
            restart(stage, &all, &Vec::from_iter(names)).await?;
        }
        Fault::Both(a, b) => {
            let (a, b) = tokio::join!(
                Box::pin(perform(stage, a, slowed)),
                Box::pin(perform(stage, b, slowed))
            );
            // Where both meant the same process, one of them found it as it wanted it.
            a.or(b)?;
        }
    }
    Ok(())
}

/// All of them end before the first one starts; then all that these names mean start at once, since
/// some are ready only when others are: a replica of control, when a majority of the store is.
async fn restart(stage: &Stage, processes: &[String], names: &[String]) -> Result<()> {
    for process in processes {
        stage.world.kill(process).await?;
    }
    let starts = names.iter().map(|name| stage.world.start(name));
    futures::future::try_join_all(starts).await?;
    Ok(())
}

/// All regions but one, and the outside.
fn all_others(stage: &Stage, region: &str) -> Result<Vec<String>> {
    let record = stage.world.record()?;
    let places = record.plan.places.iter();
    let mut others: Vec<String> = places
        .filter_map(|place| place.region.as_ref().map(ToString::to_string))
        .filter(|other| other != region)
        .collect();
    others.push(OUTSIDE.to_owned());
    others.sort();
    others.dedup();
    Ok(others)
}

/// Slows a member's disk down for a while, and measures that it is slow.
async fn slow_disk(stage: &Stage, agent: &str, delay_ms: u32, lasting: Duration) -> Result<Slowed> {
    let world = &stage.world;
    let before = world.disk_latency(agent).await?;
    world.slow_disk(agent, Duration::from_millis(delay_ms.into()))?;
    let (meanwhile, ()) = tokio::join!(world.disk_latency(agent), sleep(lasting));
    let (processes, without) = world.on_slow_disk(agent)?;
    world.slow_disk(agent, Duration::ZERO)?;
    Ok(Slowed {
        member: agent.to_owned(),
        delay_ms,
        before_ms: millis(before),
        meanwhile_ms: millis(meanwhile?),
        processes,
        without,
    })
}

/// Takes everything back that faults left: disks have room and are fast, clocks are right, what is
/// down starts, what is frozen runs, and the links are as they were.
pub(crate) async fn take_back(stage: &Stage, means: &Means, links: &LinksFile) -> Result<()> {
    stage.world.set_links(links)?;
    for member in means.own_disks(stage)? {
        stage.world.free_disk(&member).await?;
    }
    for member in means.slow_disks(stage)? {
        stage.world.slow_disk(&member, Duration::ZERO)?;
    }
    for process in stage.world.status()?.processes {
        if process.place.role != Role::Application {
            stage.world.set_clock(process.name.as_str(), 0)?;
        }
    }
    for process in stage.world.status()?.processes {
        match process.state {
            Doing::Paused => drop(stage.world.resume(process.name.as_str()).await?),
            Doing::Down => drop(stage.world.start(process.name.as_str()).await?),
            Doing::Starting | Doing::Ready | Doing::BackOff | Doing::Gone => {}
        }
    }
    Ok(())
}

/// What a person orders; it is begun under the faults, and its end is waited for.
pub(crate) async fn order(stage: &Stage, order: &Ordered) -> Ended {
    let ask = stage.ask();
    let carried_out = async {
        let plan = match order {
            Ordered::Switch { cell, to } => ask.plan(&["cell", cell, "--to", to]).await?,
            Ordered::Failback => ask.plan(&["failback"]).await?,
        };
        let hash = plan.status.context("the plan came back empty")?.hash;
        ask.run(&hash, &format!("campaign-{}", stage.now_ms()))
            .await
    };
    match timeout(ORDER_LIMIT, carried_out).await {
        Ok(Ok(_)) => Ended::Done,
        Ok(Err(error)) => Ended::Not(format!("{order:?}: {error:#}")),
        Err(_) => Ended::Not(format!("{order:?}: not over after {ORDER_LIMIT:?}")),
    }
}

async fn cut(
    stage: &Stage,
    pairs: &[(impl AsRef<str>, impl AsRef<str>)],
    ways: Ways,
    lasting: Duration,
) -> Result<()> {
    for (a, b) in pairs {
        stage.world.cut(a.as_ref(), b.as_ref(), ways)?;
    }
    sleep(lasting).await;
    for (a, b) in pairs {
        stage.world.heal(a.as_ref(), b.as_ref(), ways)?;
    }
    Ok(())
}

/// Kills all processes of a member's PostgreSQL, or one of them.
fn postgres(stage: &Stage, agent: &str, which: Option<usize>) -> Result<()> {
    let processes = stage.world.status()?.processes;
    let agent = processes.iter().find(|p| p.name.as_str() == agent);
    let Some(agent) = agent.and_then(|p| p.process) else {
        return Ok(());
    };
    let below = Tree::now()?.below(&[agent]);
    let postgres: Vec<_> = below.into_iter().filter(|p| *p != agent).collect();
    let chosen = match which {
        Some(which) if !postgres.is_empty() => {
            let at = which % postgres.len();
            postgres.get(at..=at).unwrap_or_default()
        }
        _ => postgres.as_slice(),
    };
    for process in chosen {
        // It may have ended since we looked.
        drop(process.signal(Signal::SIGKILL));
    }
    Ok(())
}

fn agents_of(
    stage: &Stage,
    chosen: impl Fn(&atoll_world::ProcessStatus) -> bool,
) -> Result<Vec<String>> {
    let processes = stage.world.status()?.processes;
    let meant = processes.iter().filter(|p| chosen(p));
    Ok(meant.map(|p| p.name.to_string()).collect())
}
