//! Full disks. A member's directory stands on a tmpfs of its own, in a mount namespace of its own
//! (a user namespace too where the test is not root), and the test fills it to the last page.
//! Where the machine allows no such namespace these tests fail and say so.

use anyhow::{Result, ensure};
use atoll_ownership::OpKind;
use atoll_testkit::data::{Ground, Group, GroupOptions, SUPERUSER};

use crate::WRITES_LIMIT;

/// PostgreSQL's data, its log, and a second copy of both while a member is cloned.
const DISK: Ground = Ground::Disk { mib: 160 };

/// A group whose members' directories stand on these grounds.
async fn born_on(grounds: [Ground; 3]) -> Result<Group> {
    let group = Group::born(GroupOptions {
        grounds,
        ..GroupOptions::default()
    })
    .await?;
    group.members_are_joined().await?;
    Ok(group)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_without_room_for_a_row_says_so_and_goes_on_with_room() -> Result<()> {
    let group = born_on([DISK, Ground::Plain, Ground::Plain]).await?;
    let writers = group.writers(8);
    writers.progress(50, WRITES_LIMIT).await?;
    group.agents[0].fill_disk()?;
    writers.refusals(50, WRITES_LIMIT).await?;
    group.agents[0].free_disk()?;
    writers.progress(50, WRITES_LIMIT).await?;
    let tally = writers.stop().await;
    println!("{}", tally.line());
    ensure!(
        tally.unknown.is_empty(),
        "a refusal is no answer to a commit"
    );
    group.nothing_is_lost(&tally, "a").await?;
    group.members_are_equal().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_without_room_for_its_log_ends_and_is_succeeded_and_comes_back_with_room()
-> Result<()> {
    let mut group = born_on([DISK, Ground::Plain, Ground::Plain]).await?;
    let writers = group.writers(8);
    writers.progress(50, WRITES_LIMIT).await?;
    group.agents[0].fill_disk()?;
    // Nothing but log, until it has used up the segments that it had in store.
    let session = group.inside(0, SUPERUSER).await?;
    let log = "SELECT pg_logical_emit_message(true, 'fill', repeat('x', 1000000))";
    let fill = async move { while session.value("write log", log).await.is_ok() {} };
    let fill = group.runtime.tasks().spawn("fill", fill).scoped();
    let (member, control) = (group.member(0), &group.control);
    let exit = control.until(WRITES_LIMIT, "the exit reported", |control| {
        control.status(&member)?.exit.filter(|exit| !exit.ordered)
    });
    exit.await?;
    drop(fill);
    let order = group.begin(OpKind::Failover, 1, &[], None).await?;
    group.finish_op(&order).await?;
    group.point(&writers, "a");
    writers.progress(50, WRITES_LIMIT).await?;
    let tally = writers.stop().await;
    println!("{}", tally.line());
    group.nothing_is_lost(&tally, "a").await?;
    group.agents[0].free_disk()?;
    group.members_are_equal().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_whose_disk_is_full_holds_nobody_up_and_comes_back_with_room() -> Result<()> {
    let group = born_on([Ground::Plain, DISK, Ground::Plain]).await?;
    let writers = group.writers(8);
    writers.progress(50, WRITES_LIMIT).await?;
    group.agents[1].fill_disk()?;
    let (member, control) = (group.member(1), &group.control);
    let exit = control.until(WRITES_LIMIT, "the exit reported", |control| {
        control.status(&member)?.exit.filter(|exit| !exit.ordered)
    });
    exit.await?;
    writers.progress(200, WRITES_LIMIT).await?;
    group.agents[1].free_disk()?;
    let tally = writers.stop().await;
    ensure!(
        tally.unknown.is_empty(),
        "a client felt it: {}",
        tally.line()
    );
    group.nothing_is_lost(&tally, "a").await?;
    group.members_are_equal().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_disk_is_full_can_still_promise() -> Result<()> {
    let mut group = born_on([Ground::Plain, Ground::Plain, DISK]).await?;
    group.agents[2].fill_disk()?;
    // The file is as large as it will ever be.
    let order = group.begin(OpKind::Failover, 1, &[], None).await?;
    group.finish_op(&order).await?;
    let (member, control) = (group.member(2), &group.control);
    let promised = control.until(WRITES_LIMIT, "the promise", |control| {
        control
            .status(&member)
            .filter(|status| status.promise == order.term)
    });
    promised.await?;
    group.agents[2].free_disk()?;
    group.members_are_equal().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_cannot_write_its_promise_does_not_answer_and_ends() -> Result<()> {
    let mut group = born_on([Ground::Plain, Ground::Limited, Ground::Plain]).await?;
    let writers = group.writers(8);
    writers.progress(50, WRITES_LIMIT).await?;
    // A tenth of a slot: the write breaks off.
    group.agents[1].limit_files(50)?;
    let order = group.begin(OpKind::Failover, 2, &[], None).await?;
    group.drive(&order).await?;
    let status = group.agents[1].ended().await?;
    ensure!(
        status.code().is_some_and(|code| code != 0),
        "it ended with {status}"
    );
    group.control.forget(&group.member(1));
    group.agents[1].postgres_gone().await?;
    // The others are enough.
    group.opens(&order).await?;
    group.point(&writers, "a");
    writers.progress(50, WRITES_LIMIT).await?;
    let tally = writers.stop().await;
    group.nothing_is_lost(&tally, "a").await?;
    // The promise before it is still there, and a start makes both slots alike.
    group.agents[1].start()?;
    group.members_are_equal().await?;
    Ok(())
}
