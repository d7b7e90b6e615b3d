//! No single part of control is one that may not be lost: three replicas, one a city, on three nodes
//! of etcd. Any one of them dies, freezes or is cut off, also the one that acts and etcd's leader,
//! also in the middle of a switch: nothing is lost, no cell that runs is blocked, and the switch ends.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use atoll_testkit::world::{Load, World, sound};
use serde_json::Value;
use tokio::time::sleep;

const CITIES: [&str; 3] = ["hangzhou", "shanghai", "shenzhen"];
/// Orders that move the shards of group g1, and back.
const AWAY: [&str; 4] = ["cell", "hz-1", "--to", "shanghai"];
const BACK: [&str; 1] = ["failback"];
/// Users at work, in transfers a second: two cores carry forty processes and their databases.
const RATE: u32 = 30;

fn group<'a>(status: &'a Value, name: &str) -> Option<&'a Value> {
    let groups = status.get("groups")?.as_array()?;
    groups.iter().find(|group| group["name"] == name)
}

fn quiet(status: &Value) -> bool {
    let all = status.get("groups").and_then(Value::as_array);
    all.is_some_and(|all| {
        let still = |g: &Value| g.get("open").is_some() && g.get("op").is_none();
        !all.is_empty() && all.iter().all(still)
    })
}

/// Quiet, and every member is where it should be.
fn complete(status: &Value) -> bool {
    let warnings = status.get("warnings").and_then(Value::as_array);
    quiet(status) && warnings.is_some_and(Vec::is_empty)
}

/// Whether the shards of a group belong to a cell.
fn owned_by(status: &Value, name: &str, cell: &str) -> bool {
    let owners = group(status, name).and_then(|group| group.get("owners")?.as_array());
    let all = owners.is_some_and(|owners| {
        let its = |owner: &Value| owner.as_str().is_some_and(|text| text.contains(cell));
        owners.iter().all(its)
    });
    all && quiet(status)
}

/// The users' report: nothing acknowledged is missing or doubled, and nobody was refused.
async fn unharmed(load: Load, what: &str) -> Result<()> {
    let report = load.stop().await?;
    sound(&report).context(what.to_owned())?;
    for refused in ["failed", "unknown"] {
        ensure!(report[refused] == 0, "{what}, {refused}: {report}");
    }
    Ok(())
}

/// Gives the shards of group g1 to a cell, and does something to control while that goes on.
async fn switch_meanwhile(
    world: &World,
    order: &[&str],
    cell: &str,
    meanwhile: impl AsyncFnOnce() -> Result<()>,
) -> Result<()> {
    let mut run = world.switch(order)?;
    let begun = |status: &Value| {
        let op = group(status, "g1").and_then(|group| group.get("op"));
        op.is_some() || owned_by(status, "g1", cell)
    };
    world.until("the switch has begun", begun).await?;
    meanwhile().await?;
    world
        .until(&format!("g1 owned by {cell}"), |status| {
            owned_by(status, "g1", cell)
        })
        .await?;
    run.kill().ok();
    run.wait()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn any_one_replica_of_control_or_node_of_its_store_may_be_lost_at_any_time() -> Result<()> {
    let world = World::up_on_etcd("ha")?;
    world.until("complete", complete).await?;

    // Every replica and every node, killed one after the other while users are at work: nobody
    // notices, and whoever is left shows the world and takes orders.
    let load = world.load(RATE).await?;
    for city in CITIES {
        for part in ["control", "etcd"] {
            let process = format!("{city}-{part}");
            world.dev("kill", &[&process])?;
            world
                .until(&format!("well without {process}"), complete)
                .await?;
            world.dev("start", &[&process])?;
        }
    }
    unharmed(load, "one part of control after the other is killed").await?;

    // The acting replica is frozen in the middle of a switch: another one ends it.
    let load = world.load(RATE).await?;
    let acting = world.acting()?;
    switch_meanwhile(&world, &AWAY, "sh-1", async || {
        world.dev("pause", &[&acting])
    })
    .await?;
    world.dev("resume", &[&acting])?;
    unharmed(load, "the acting replica freezes in a switch").await?;
    world.until("complete", complete).await?;

    // etcd's leader is killed in the middle of a switch.
    let load = world.load(RATE).await?;
    let leader = world.etcd_leader()?;
    switch_meanwhile(&world, &BACK, "hz-1", async || {
        world.dev("kill", &[&leader])
    })
    .await?;
    world.dev("start", &[&leader])?;
    unharmed(load, "etcd's leader dies in a switch").await?;
    world.until("complete", complete).await?;

    // And frozen, with the acting replica at the same moment.
    let (leader, acting) = (world.etcd_leader()?, world.acting()?);
    let load = world.load(RATE).await?;
    switch_meanwhile(&world, &AWAY, "sh-1", async || {
        world.dev("pause", &[&leader])?;
        world.dev("pause", &[&acting])
    })
    .await?;
    world.dev("resume", &[&leader])?;
    world.dev("resume", &[&acting])?;
    unharmed(load, "leader and acting replica freeze in a switch").await?;
    world.until("complete", complete).await?;

    // Two of three nodes: no order is taken, what is left says so, and no user is refused.
    let load = world.load(RATE).await?;
    world.dev("kill", &["hangzhou-etcd"])?;
    world.dev("kill", &["shanghai-etcd"])?;
    let said = world
        .until("said to be read-only", |status| status["readOnly"] == true)
        .await?;
    let warnings = said["warnings"].to_string();
    assert!(warnings.contains("majority of the store"), "{warnings}");
    assert!(world.ask(&["switch", "plan", "failback"]).is_err());
    sleep(Duration::from_secs(2)).await;
    world.dev("start", &["hangzhou-etcd"])?;
    world.dev("start", &["shanghai-etcd"])?;
    unharmed(load, "the store has no majority").await?;
    world.until("complete", complete).await?;
    Ok(())
}

/// Cuts a city off, silently (nobody is told, and its own processes go on among themselves), until
/// its users are served elsewhere; then it comes back.
async fn cut_off(world: &World, city: &str) -> Result<()> {
    let others = ["outside"].into_iter().chain(CITIES);
    let others: Vec<&str> = others.filter(|other| *other != city).collect();
    for other in &others {
        world.dev("cut", &[city, other])?;
    }
    let elsewhere = |status: &Value| {
        let cells = status["cells"].as_array().cloned().unwrap_or_default();
        let owner = |cell: &Value| cell["region"] == *city && cell["shards"] != "";
        quiet(status) && !cells.is_empty() && !cells.iter().any(owner)
    };
    let what = format!("the users of {city} served elsewhere");
    world.until(&what, elsewhere).await?;
    for other in &others {
        world.dev("heal", &[city, other])?;
    }
    world.until("complete", complete).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_city_is_cut_off_with_the_acting_replica_or_etcd_s_leader_in_it() -> Result<()> {
    let world = World::up_on_etcd("ha-cut")?;
    world.until("complete", complete).await?;
    let load = world.load(RATE).await?;
    let city = |process: String| process.split('-').next().map(str::to_owned);
    cut_off(&world, &city(world.acting()?).context("a city")?).await?;
    world.switch(&BACK)?.wait()?;
    world.until("complete", complete).await?;
    cut_off(&world, &city(world.etcd_leader()?).context("a city")?).await?;
    sound(&load.stop().await?)
}
