//! No single part of control is one that may not be lost: three replicas, one a city, on three nodes
//! of etcd. Any one of them dies, freezes or is cut off, also the one that acts and etcd's leader,
//! also in the middle of a switch: nothing is lost, no cell that runs is blocked, and the switch ends.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use atoll_testkit::world::{Load, World, complete, served_elsewhere, sound, switch_meanwhile};
use tokio::time::sleep;

const CITIES: [&str; 3] = ["hangzhou", "shanghai", "shenzhen"];
/// Orders that move the shards of group g1, and back.
const AWAY: [&str; 4] = ["cell", "hz-1", "--to", "shanghai"];
const BACK: [&str; 1] = ["failback"];
/// Users at work, in transfers a second: two cores carry forty processes and their databases.
const RATE: u32 = 30;

/// The users' report: nothing acknowledged is missing or doubled, and nobody was refused.
async fn unharmed(load: Load, what: &str) -> Result<()> {
    let report = load.stop().await?;
    sound(&report).context(what.to_owned())?;
    for refused in ["failed", "unknown"] {
        ensure!(report[refused] == 0, "{what}, {refused}: {report}");
    }
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
    let leader = world.etcd_leader().await?;
    switch_meanwhile(&world, &BACK, "hz-1", async || {
        world.dev("kill", &[&leader])
    })
    .await?;
    world.dev("start", &[&leader])?;
    unharmed(load, "etcd's leader dies in a switch").await?;
    world.until("complete", complete).await?;

    // And frozen, with the acting replica at the same moment.
    let (leader, acting) = (world.etcd_leader().await?, world.acting()?);
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

/// Cuts a city off until its users are served elsewhere; then it comes back.
async fn cut_off(world: &World, city: &str) -> Result<()> {
    world.cut_off(city)?;
    let what = format!("the users of {city} served elsewhere");
    world
        .until(&what, |status| served_elsewhere(status, city))
        .await?;
    world.heal(city)?;
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
    cut_off(&world, &city(world.etcd_leader().await?).context("a city")?).await?;
    sound(&load.stop().await?)
}

/// Brings it about that replica and node of the region `alone` are those on which all depends.
async fn all_depends_on_those_alone(world: &World) -> Result<()> {
    let others = ["hangzhou-control", "shanghai-control"];
    for other in others {
        world.dev("kill", &[other])?;
    }
    world
        .until("it acts", |status| status["acting"] == "alone-control")
        .await?;
    for other in others {
        world.dev("start", &[other])?;
    }
    world.until("complete", complete).await?;
    world.let_etcd_lead("alone-etcd").await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_acting_replica_and_etcd_s_leader_are_cut_off_in_a_switch_each_alone_and_both()
-> Result<()> {
    let world = World::up_on_etcd_with_one_alone("ha-alone")?;
    world.until("complete", complete).await?;
    // Who is dead already when the region is cut off.
    let cases = [None, Some("alone-etcd"), Some("alone-control")];
    let orders = [(AWAY.as_slice(), "sh-1"), (&BACK, "hz-1")];
    for (dead, (order, cell)) in cases.into_iter().zip(orders.into_iter().cycle()) {
        all_depends_on_those_alone(&world).await?;
        if let Some(dead) = dead {
            world.dev("kill", &[dead])?;
            world.until("complete without it", complete).await?;
        }
        let load = world.load(RATE).await?;
        switch_meanwhile(&world, order, cell, async || world.cut_off("alone")).await?;
        world.heal("alone")?;
        if let Some(dead) = dead {
            world.dev("start", &[dead])?;
        }
        unharmed(load, &format!("cut off in a switch, {dead:?} dead")).await?;
        world.until("complete", complete).await?;
    }
    Ok(())
}
