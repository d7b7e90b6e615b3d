//! Losses.

use std::time::Duration;

use anyhow::{Result, ensure};
use atoll_ownership::OpKind;
use atoll_streams::agent::MemberRole;
use atoll_testkit::data::{Group, GroupOptions, Writers};
use tokio::time::Instant;

use crate::WRITES_LIMIT;

/// A failover to `target`, then writes, then the whole proof.
async fn fail_over(group: &mut Group, target: usize, writers: Writers) -> Result<()> {
    let started = Instant::now();
    let over = group.record.op.as_ref().map(|op| op.term);
    let order = group.begin(OpKind::Failover, target, &[], over).await?;
    group.finish_op(&order).await?;
    println!("failover, order to open: {:?}", started.elapsed());
    group.point(&writers, "a");
    writers.progress(100, WRITES_LIMIT).await?;
    let tally = writers.stop().await;
    println!("{}", tally.line());
    group.nothing_is_lost(&tally, "a").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_whose_postmaster_is_killed_is_succeeded_and_comes_back() -> Result<()> {
    let mut group = Group::born(GroupOptions::default()).await?;
    let writers = group.writers(8);
    writers.progress(100, WRITES_LIMIT).await?;
    group.agents[0].kill_postmaster()?;
    let (lost, started) = (group.member(0), Instant::now());
    let exit = group
        .control
        .until(WRITES_LIMIT, "the exit reported", |control| {
            control.status(&lost)?.exit.filter(|exit| !exit.ordered)
        });
    exit.await?;
    println!("exit reported after {:?}", started.elapsed());
    fail_over(&mut group, 1, writers).await?;
    group.members_are_equal().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_agent_takes_its_postgres_along_and_comes_back() -> Result<()> {
    let mut group = Group::born(GroupOptions::default()).await?;
    let writers = group.writers(8);
    writers.progress(100, WRITES_LIMIT).await?;
    group.agents[0].kill()?;
    group.control.forget(&group.member(0));
    fail_over(&mut group, 2, writers).await?;
    group.agents[0].postgres_gone().await?;
    group.agents[0].start()?;
    group.members_are_equal().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_primary_that_thaws_has_told_nobody_anything_new() -> Result<()> {
    let mut group = Group::born(GroupOptions::default()).await?;
    let writers = group.writers(8);
    writers.progress(100, WRITES_LIMIT).await?;
    // A session that reads on the old primary before and after.
    let old = group.client(0, "cell_a").await?;
    old.query_one("SELECT count(*) FROM s00000.t", &[]).await?;
    group.agents[0].freeze()?;
    group.control.forget(&group.member(0));
    fail_over(&mut group, 1, writers).await?;
    group.agents[0].thaw()?;
    // Not even a read: what it would show is old.
    let read = tokio::time::timeout(
        Duration::from_secs(5),
        old.query_one("SELECT count(*) FROM s00000.t", &[]),
    );
    ensure!(
        !matches!(read.await, Ok(Ok(_))),
        "the thawed primary answered a read"
    );
    group.members_are_equal().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_whose_members_all_died_starts_again_with_everything() -> Result<()> {
    let mut group = Group::born(GroupOptions::default()).await?;
    let writers = group.writers(8);
    writers.progress(100, WRITES_LIMIT).await?;
    for at in 0..3 {
        group.agents[at].kill()?;
        group.control.forget(&group.member(at));
    }
    for at in 0..3 {
        group.agents[at].start()?;
    }
    // Nobody leads by itself: the primary came back as a standby.
    let status = group.until_role(0, |role| role != MemberRole::Down).await?;
    ensure!(status.led.is_none(), "{status:?}");
    fail_over(&mut group, 1, writers).await?;
    group.members_are_equal().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_nobody_hears_serves_nobody_and_serves_again_when_heard() -> Result<()> {
    let group = Group::born(GroupOptions::default()).await?;
    group.members_are_joined().await?;
    group.part(0, 1).await?;
    group.part(0, 2).await?;
    let isolated = group
        .until_role(0, |role| role == MemberRole::Isolated)
        .await?;
    assert_eq!(isolated.open, None);
    group.heal()?;
    group
        .until_role(0, |role| role == MemberRole::Serving)
        .await?;
    let client = group.client(0, "cell_a").await?;
    client
        .execute("INSERT INTO s00000.t (id) VALUES (1)", &[])
        .await?;
    group.members_are_equal().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_that_is_down_does_not_hold_up_a_failover() -> Result<()> {
    let mut group = Group::born(GroupOptions::default()).await?;
    let writers = group.writers(8);
    writers.progress(100, WRITES_LIMIT).await?;
    group.agents[0].kill_postmaster()?;
    group.agents[2].kill()?;
    group.control.forget(&group.member(2));
    // Two recruits are needed: the lost primary's log, read as a standby's, is the second.
    fail_over(&mut group, 1, writers).await?;
    group.agents[2].start()?;
    group.members_are_equal().await?;
    Ok(())
}

/// One-way loss between the primary and its standbys: it serves nobody any more, a successor
/// takes over, and the old one is brought in line when it is heard again.
async fn one_way(cuts: [(usize, usize); 2]) -> Result<()> {
    let mut group = Group::born(GroupOptions::default()).await?;
    group.members_are_joined().await?;
    let writers = group.writers(8);
    writers.progress(50, WRITES_LIMIT).await?;
    for (from, to) in cuts {
        group.cut(from, to).await?;
    }
    group
        .until_role(0, |role| role == MemberRole::Isolated)
        .await?;
    fail_over(&mut group, 1, writers).await?;
    group.heal()?;
    group.members_are_equal().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_hears_its_standbys_and_reaches_none_is_succeeded() -> Result<()> {
    one_way([(0, 1), (0, 2)]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_reaches_its_standbys_and_hears_none_is_succeeded() -> Result<()> {
    one_way([(1, 0), (2, 0)]).await
}
