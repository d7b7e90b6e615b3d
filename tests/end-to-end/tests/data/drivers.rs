//! A driver that dies at each step, two drivers at once, a member that dies between its promise
//! and its answer: the next term takes over, and nothing is lost.

use anyhow::Result;
use atoll_ownership::OpKind;
use atoll_testkit::data::{Group, GroupOptions};
use serde_json::json;

use crate::WRITES_LIMIT;

/// The target of a planned switchover dies after `step`; the next term makes the third member the
/// primary, with the op's shards at a further epoch.
async fn the_driver_dies_after(step: &str) -> Result<()> {
    let mut group = Group::born(GroupOptions::default()).await?;
    group.members_are_joined().await?;
    let writers = group.writers(8);
    writers.progress(100, WRITES_LIMIT).await?;
    group.agents[1].stop().await?;
    group.control.forget(&group.member(1));
    group.agents[1].start_with(json!({ "fail_after": step }))?;
    group.until_connected(1).await?;
    let order = group
        .begin(OpKind::Switchover, 1, &[(0, 1, "b")], None)
        .await?;
    group.drive(&order).await?;
    group.agents[1].ended().await?;
    group.control.forget(&group.member(1));
    let order = group
        .begin(OpKind::Failover, 2, &[], Some(order.term))
        .await?;
    group.finish_op(&order).await?;
    group.point(&writers, "b");
    writers.progress(100, WRITES_LIMIT).await?;
    group.agents[1].start()?;
    group.members_are_joined().await?;
    let tally = writers.stop().await;
    println!("{step}: {}", tally.line());
    group.nothing_is_lost(&tally, "b").await?;
    group.members_are_equal().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_driver_dies_when_the_old_primary_is_demoted() -> Result<()> {
    the_driver_dies_after("P3").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_driver_dies_when_it_has_replayed_everything() -> Result<()> {
    the_driver_dies_after("P4").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_driver_dies_right_after_its_promotion() -> Result<()> {
    the_driver_dies_after("P5").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_driver_dies_when_the_opening_transaction_is_acknowledged() -> Result<()> {
    the_driver_dies_after("P6").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_driver_dies_when_its_port_is_open() -> Result<()> {
    the_driver_dies_after("P7").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_drivers_the_one_with_the_newer_term_wins() -> Result<()> {
    let mut group = Group::born(GroupOptions::default()).await?;
    group.members_are_joined().await?;
    let writers = group.writers(8);
    writers.progress(100, WRITES_LIMIT).await?;
    let first = group.begin(OpKind::Failover, 1, &[], None).await?;
    let second = group
        .begin(OpKind::Failover, 2, &[], Some(first.term))
        .await?;
    group.drive(&first).await?;
    group.drive(&second).await?;
    group.opens(&second).await?;
    group.point(&writers, "a");
    writers.progress(100, WRITES_LIMIT).await?;
    let tally = writers.stop().await;
    println!("{}", tally.line());
    group.nothing_is_lost(&tally, "a").await?;
    group.members_are_equal().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_dies_between_its_promise_and_its_answer_keeps_the_promise() -> Result<()> {
    let mut group = Group::born(GroupOptions::default()).await?;
    group.members_are_joined().await?;
    let writers = group.writers(8);
    writers.progress(100, WRITES_LIMIT).await?;
    group.agents[2].stop().await?;
    group.control.forget(&group.member(2));
    group.agents[2].start_with(json!({ "fail_after": "promise" }))?;
    group.until_connected(2).await?;
    group.agents[0].kill_postmaster()?;
    let order = group.begin(OpKind::Failover, 1, &[], None).await?;
    group.drive(&order).await?;
    group.agents[2].ended().await?;
    group.control.forget(&group.member(2));
    group.agents[2].start()?;
    group.opens(&order).await?;
    group.point(&writers, "a");
    writers.progress(100, WRITES_LIMIT).await?;
    let tally = writers.stop().await;
    group.nothing_is_lost(&tally, "a").await?;
    group.members_are_equal().await?;
    Ok(())
}
