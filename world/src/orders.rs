//! What the supervisor does when it is told to.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use atoll_hosts::{ProcessRef, freeze, kill, thaw, wait_gone};
use atoll_topology::ProcessId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::sync::mpsc::Sender;
use tokio::time::{Instant, sleep, timeout};

use crate::board::Wish;
use crate::order::{Answer, Order, Outcome};
use crate::status::{Doing, ProcessStatus};
use crate::supervisor::World;

/// How long killed processes may take to be gone.
const GONE_LIMIT: Duration = Duration::from_secs(10);
/// How long processes may take to be ready.
const READY_LIMIT: Duration = Duration::from_secs(120);
/// How long one question to an admin endpoint may take.
const ASK_LIMIT: Duration = Duration::from_secs(2);
/// How often an admin endpoint that says "not yet" is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// How often a schema that was not taken everywhere is applied again.
const SCHEMA_AGAIN: Duration = Duration::from_millis(300);
/// The most that is read of an answer.
const ANSWER_BYTES_MAX: usize = 4096;
/// A process that ended by itself this often while the world comes up is given up.
const RESTARTS_MAX: u32 = 5;

type Talk = Sender<Answer>;

pub(crate) async fn carry_out(
    world: &Arc<World>,
    order: &Order,
    talk: &Talk,
) -> Result<Outcome, String> {
    match order {
        Order::WaitServing => wait_serving(world, &meant(world, None)?, talk).await,
        Order::Kill { target } => kill_all(world, &meant(world, Some(target))?).await,
        Order::Pause { target } => pause(world, &meant(world, Some(target))?),
        Order::Resume { target } => resume(world, &meant(world, Some(target))?),
        Order::Start { target } => start(world, &meant(world, Some(target))?, talk).await,
        Order::FillDisk { target } => disk(world, target, atoll_hosts::fill).await,
        Order::FreeDisk { target } => disk(world, target, atoll_hosts::free).await,
        Order::Down => {
            let outcome = outcome(world, &meant(world, None)?, 0);
            world.end().await;
            Ok(outcome)
        }
    }
}

/// The processes that a name means; all without one.
fn meant(world: &World, target: Option<&str>) -> Result<Vec<ProcessId>, String> {
    let plan = &world.record.plan;
    let Some(name) = target else {
        return Ok(plan.places.iter().map(|p| p.id.clone()).collect());
    };
    let found: Vec<ProcessId> = plan
        .meant_by(name)
        .into_iter()
        .map(|p| p.id.clone())
        .collect();
    if found.is_empty() {
        let names: Vec<&str> = plan.places.iter().map(|p| p.id.as_str()).collect();
        return Err(format!(
            "{name:?} is no region, zone, cell or process of this world; its processes: {}",
            names.join(" ")
        ));
    }
    Ok(found)
}

fn outcome(world: &World, ids: &[ProcessId], signalled: usize) -> Outcome {
    let processes = ids.iter().map(ToString::to_string).collect();
    Outcome {
        at_ms: world.runtime.wall_clock().0,
        processes,
        signalled,
    }
}

fn statuses(world: &World, ids: &[ProcessId]) -> Vec<ProcessStatus> {
    let all = world.board.status().processes;
    all.into_iter()
        .filter(|p| ids.contains(&p.place.id))
        .collect()
}

fn roots(world: &World, ids: &[ProcessId]) -> Vec<ProcessRef> {
    statuses(world, ids)
        .iter()
        .filter_map(|p| p.process)
        .collect()
}

async fn kill_all(world: &World, ids: &[ProcessId]) -> Result<Outcome, String> {
    world.board.want(ids, Wish::Rest);
    let roots = roots(world, ids);
    let mut outcome = outcome(world, ids, 0);
    let hit = kill(&roots).map_err(|error| format!("the processes cannot be killed: {error}"))?;
    outcome.signalled = hit.len();
    wait_gone(&hit, GONE_LIMIT)
        .await
        .map_err(|error| error.to_string())?;
    Ok(outcome)
}

fn pause(world: &World, ids: &[ProcessId]) -> Result<Outcome, String> {
    let roots = roots(world, ids);
    let mut outcome = outcome(world, ids, 0);
    let hit = freeze(&roots).map_err(|error| format!("the processes cannot be frozen: {error}"))?;
    outcome.signalled = hit.len();
    world.board.look_again();
    Ok(outcome)
}

fn resume(world: &World, ids: &[ProcessId]) -> Result<Outcome, String> {
    let hit = thaw(&roots(world, ids))
        .map_err(|error| format!("the processes cannot be thawed: {error}"))?;
    world.board.look_again();
    Ok(outcome(world, ids, hit.len()))
}

async fn start(world: &World, ids: &[ProcessId], talk: &Talk) -> Result<Outcome, String> {
    let resumed = resume(world, ids)?;
    world.board.want(ids, Wish::Run);
    wait_ready(world, ids, talk).await?;
    Ok(resumed)
}

/// Does something to the disks of members; we are where they can be seen.
async fn disk(
    world: &World,
    target: &str,
    change: fn(&Path) -> std::io::Result<()>,
) -> Result<Outcome, String> {
    let disks = &world.record.options.disks;
    let meant = disks.meant(&world.directory, &world.record.plan, target);
    let meant = meant.map_err(|error| error.to_string())?;
    let (processes, directories): (Vec<_>, Vec<_>) = meant.into_iter().unzip();
    let at_ms = world.runtime.wall_clock().0;
    let change = world
        .runtime
        .tasks()
        .spawn_blocking("change disks", move || {
            directories.iter().try_for_each(|at| change(at))
        });
    match change.await {
        Ok(Ok(())) => Ok(Outcome {
            at_ms,
            processes,
            signalled: 0,
        }),
        Ok(Err(error)) => Err(format!("a disk cannot be changed: {error}")),
        Err(error) => Err(error.to_string()),
    }
}

/// Waits until every process has said `ready`; tells the count whenever it changes.
async fn wait_ready(world: &World, ids: &[ProcessId], talk: &Talk) -> Result<(), String> {
    let restarts_before: u32 = statuses(world, ids).iter().map(|p| p.restarts).sum();
    let mut changes = world.board.changes();
    let mut told = usize::MAX;
    let until = Instant::now() + READY_LIMIT;
    loop {
        changes.mark_unchanged();
        let now = statuses(world, ids);
        let waiting: Vec<&ProcessStatus> = now.iter().filter(|p| p.state != Doing::Ready).collect();
        let ready = now.len() - waiting.len();
        if ready != told {
            told = ready;
            progress(talk, format!("{ready} of {} processes serve", now.len())).await;
        }
        if waiting.is_empty() {
            return Ok(());
        }
        let crashing = |p: &&&ProcessStatus| p.restarts > RESTARTS_MAX + restarts_before;
        if let Some(lost) = waiting.iter().find(crashing) {
            return Err(format!("a process keeps ending: {}", describe(lost)));
        }
        if tokio::time::timeout_at(until, changes.changed())
            .await
            .is_err()
        {
            let late: Vec<String> = waiting.iter().map(|p| describe(p)).collect();
            return Err(format!(
                "not ready after {READY_LIMIT:?}: {}",
                late.join("; ")
            ));
        }
    }
}

fn describe(process: &ProcessStatus) -> String {
    let last = process
        .last_end
        .as_ref()
        .map_or_else(String::new, |end| format!(", last {end}"));
    let (name, state) = (&process.place.id, process.state.word());
    format!("{name} ({state}{last}, log {})", process.log.display())
}

async fn progress(talk: &Talk, text: String) {
    // Whoever asked may have gone away; the order is carried out all the same.
    talk.send(Answer::Progress(text)).await.ok();
}

/// Waits until everything has said `ready` and every admin endpoint answers `/readyz` with 200.
async fn wait_serving(world: &World, ids: &[ProcessId], talk: &Talk) -> Result<Outcome, String> {
    wait_ready(world, ids, talk).await?;
    let until = Instant::now() + READY_LIMIT;
    if let Some(schema) = &world.record.options.schema {
        apply_schema(world, schema, until, talk).await?;
    }
    let mut said = String::new();
    for process in statuses(world, ids) {
        let Some(admin) = process.addresses.get("admin") else {
            continue;
        };
        loop {
            let answer = readyz(world, SocketAddr::V4(*admin)).await;
            if answer.is_ok() {
                break;
            }
            let why = answer.err().unwrap_or_default();
            let now = format!("{} is not ready yet: {why}", process.place.id);
            if now != said {
                progress(talk, now.clone()).await;
                said = now;
            }
            if Instant::now() >= until {
                return Err(format!(
                    "{said} (after {READY_LIMIT:?}; log {})",
                    process.log.display()
                ));
            }
            sleep(ASK_AGAIN).await;
        }
    }
    Ok(outcome(world, ids, 0))
}

/// Applies the application's schema to every shard, through the command line as a person would;
/// again and again until every data group has a primary that takes it.
async fn apply_schema(
    world: &World,
    schema: &Path,
    until: Instant,
    talk: &Talk,
) -> Result<(), String> {
    let mut said = String::new();
    loop {
        let output = Command::new(&world.record.options.atoll)
            .args(["schema", "apply", "-f"])
            .arg(schema)
            .arg("--world")
            .arg(world.directory.root())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = match tokio::time::timeout_at(until, output).await {
            Ok(output) => output.map_err(|error| format!("`atoll schema` cannot run: {error}"))?,
            Err(_) => return Err(format!("the schema took longer than {READY_LIMIT:?}")),
        };
        if output.status.success() {
            return Ok(());
        }
        let why = String::from_utf8_lossy(&output.stderr).into_owned();
        let first = why
            .lines()
            .take(2)
            .map(str::trim)
            .collect::<Vec<_>>()
            .join(": ");
        if first != said {
            progress(talk, format!("the schema is not applied yet: {first}")).await;
            said = first;
        }
        if Instant::now() >= until {
            return Err(format!("the schema cannot be applied:\n{why}"));
        }
        sleep(SCHEMA_AGAIN).await;
    }
}

/// Asks one admin endpoint whether its process is ready; the error is its answer's first line.
async fn readyz(world: &World, admin: SocketAddr) -> Result<(), String> {
    let asked = timeout(ASK_LIMIT, async {
        let mut stream = world.runtime.connect(admin).await?;
        let request = format!("GET /readyz HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        let limit = u64::try_from(ANSWER_BYTES_MAX).unwrap_or(u64::MAX);
        stream.take(limit).read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&answer).into_owned())
    });
    let answer = match asked.await {
        Err(_) => return Err(format!("no answer within {ASK_LIMIT:?}")),
        Ok(Err(error)) => return Err(error.to_string()),
        Ok(Ok(answer)) => answer,
    };
    let status = answer.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) == Some("200") {
        return Ok(());
    }
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Err(body
        .lines()
        .next()
        .filter(|l| !l.is_empty())
        .unwrap_or(status)
        .to_owned())
}
