//! Negative controls: with a protection taken away, the same checks must cry.

use std::time::Duration;

use anyhow::{Result, ensure};
use atoll_ownership::OpKind;
use atoll_testkit::data::{Group, GroupOptions};

use crate::WRITES_LIMIT;

/// The primary is cut off from both standbys, goes on for a moment, and is frozen. How many
/// acknowledged writes does its successor lack?
async fn lost_with(agents_k: u8) -> Result<usize> {
    let options = GroupOptions {
        agents_k: Some(agents_k),
        ..GroupOptions::default()
    };
    let mut group = Group::born(options).await?;
    // Without synchronous standbys the tables themselves could still be on their way.
    group.members_are_equal().await?;
    let writers = group.writers(8);
    writers.progress(100, WRITES_LIMIT).await?;
    for other in [1, 2] {
        group.cut(0, other)?;
        group.cut(other, 0)?;
    }
    // Long enough for the cut to be seen, and shorter than the isolation limit.
    tokio::time::sleep(Duration::from_millis(1_000)).await;
    group.agents[0].freeze()?;
    group.control.forget(&group.member(0));
    let order = group.begin(OpKind::Failover, 1, &[], None)?;
    group.finish_op(&order).await?;
    let tally = writers.stop().await;
    println!("k = {agents_k}: {}", tally.line());
    ensure!(tally.acknowledged.len() > 100, "too few writes to tell");
    group.missing(&tally, "a").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_synchronous_standbys_the_checker_finds_lost_writes() -> Result<()> {
    let lost = lost_with(0).await?;
    ensure!(
        lost > 0,
        "the checker is blind: nothing was lost without synchronous standbys"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_synchronous_standbys_the_same_loss_loses_nothing() -> Result<()> {
    let lost = lost_with(1).await?;
    ensure!(lost == 0, "{lost} acknowledged writes are lost");
    Ok(())
}
