//! Whole worlds: three cities as real processes, real PostgreSQL, users under way.

use anyhow::{Result, ensure};
use atoll_testkit::world::{
    World, complete, owned_by, quiet, served_elsewhere, sound, switch_meanwhile,
};

/// Users at work, in transfers a second.
const RATE: u32 = 60;

#[tokio::test(flavor = "multi_thread")]
async fn users_do_not_notice_a_switch_and_lose_nothing_with_control_a_primary_or_a_city()
-> Result<()> {
    let world = World::up("lifecycle")?;
    world.until("born", quiet).await?;

    // A planned switch of a cell to another city under load: no failed request.
    let load = world.load(RATE).await?;
    world
        .switch(&["cell", "hz-1", "--to", "shanghai"])?
        .wait()?;
    world
        .until("g1 served in shanghai", |status| {
            owned_by(status, "g1", "sh-1")
        })
        .await?;
    let report = load.stop().await?;
    sound(&report)?;
    for refused in ["failed", "unknown"] {
        ensure!(report[refused] == 0, "{refused}: {report}");
    }

    // Control dies while a switch is under way: the op ends after its return, nothing is doubled.
    let load = world.load(RATE).await?;
    switch_meanwhile(&world, &["failback"], "hz-1", async || {
        world.dev("kill", &["control"])?;
        world.dev("start", &["control"])
    })
    .await?;
    sound(&load.stop().await?)?;

    // A city falls silent: its shards are served elsewhere, and it comes back and re-joins.
    let load = world.load(RATE).await?;
    world.dev("pause", &["shanghai"])?;
    world
        .until("shanghai's users served elsewhere", |status| {
            served_elsewhere(status, "shanghai")
        })
        .await?;
    sound(&load.stop().await?)?;
    world.dev("resume", &["shanghai"])?;
    world.until("complete again", complete).await?;
    Ok(())
}
