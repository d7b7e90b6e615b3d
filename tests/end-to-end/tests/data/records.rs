//! Control dies after one of its own steps; the next one has the record and nothing else.

use anyhow::{Result, ensure};
use atoll_ownership::OpKind;
use atoll_ownership::record::RunPhase;
use atoll_testkit::data::{Fault, Group, GroupOptions, Writers};

use crate::WRITES_LIMIT;

/// A group under writers, and P1 of a planned switchover written.
async fn begun() -> Result<(Group, Writers)> {
    let mut group = Group::born(GroupOptions::default()).await?;
    group.members_are_joined().await?;
    let writers = group.writers(8);
    writers.progress(50, WRITES_LIMIT).await?;
    group
        .begin(OpKind::Switchover, 1, &[(0, 1, "b")], None)
        .await?;
    Ok((group, writers))
}

/// From P2 on, by a control that knows nothing but the record.
async fn carry_on(group: &mut Group, writers: &Writers) -> Result<()> {
    let order = group.running()?;
    writers.hold().await;
    group.finish_op(&order).await
}

/// Publication, and all that must hold afterwards.
async fn all_is_well(group: &Group, writers: Writers) -> Result<()> {
    ensure!(group.record.op.is_none() && group.record.open_term().get() == 3);
    ensure!(
        group
            .record
            .runs
            .iter()
            .all(|run| run.phase == RunPhase::Active)
    );
    group.point(&writers, "b");
    writers.release();
    writers.progress(50, WRITES_LIMIT).await?;
    let tally = writers.stop().await;
    println!("{}", tally.line());
    group.nothing_is_lost(&tally, "b").await?;
    group.members_are_equal().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_dies_when_it_has_begun_an_op() -> Result<()> {
    let (mut group, writers) = begun().await?;
    group.another_control().await?;
    // Nothing was held yet: the old owner writes on until the next control holds.
    writers.progress(50, WRITES_LIMIT).await?;
    carry_on(&mut group, &writers).await?;
    all_is_well(&group, writers).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_dies_when_requests_are_held() -> Result<()> {
    let (mut group, writers) = begun().await?;
    writers.hold().await;
    group.another_control().await?;
    carry_on(&mut group, &writers).await?;
    all_is_well(&group, writers).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_dies_while_the_driver_works() -> Result<()> {
    let (mut group, writers) = begun().await?;
    writers.hold().await;
    let order = group.running()?;
    group.drive(&order).await?;
    // The driver goes on without it.
    group.control_dies().await;
    group.another_control().await?;
    carry_on(&mut group, &writers).await?;
    all_is_well(&group, writers).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_dies_when_it_has_written_who_is_open() -> Result<()> {
    let (mut group, writers) = begun().await?;
    carry_on(&mut group, &writers).await?;
    group.another_control().await?;
    // There is no op, and the record says who serves: it only has to be published.
    all_is_well(&group, writers).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_does_not_say_whether_it_wrote_is_read_again() -> Result<()> {
    let mut group = Group::born(GroupOptions::default()).await?;
    group.members_are_joined().await?;
    let writers = group.writers(8);
    writers.progress(50, WRITES_LIMIT).await?;
    group
        .recorded
        .next_outcome_is_unknown(Fault::UnknownApplied);
    group
        .begin(OpKind::Switchover, 1, &[(0, 1, "b")], None)
        .await?;
    ensure!(group.recorded.read().await?.0 == group.record);
    group
        .recorded
        .next_outcome_is_unknown(Fault::UnknownNotApplied);
    carry_on(&mut group, &writers).await?;
    group.another_control().await?;
    all_is_well(&group, writers).await
}
