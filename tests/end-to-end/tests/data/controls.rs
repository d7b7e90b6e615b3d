//! Negative controls: with a protection taken away, the same checks must cry. The weakening is
//! done from outside, on PostgreSQL itself or by an order that lies, never by a switch in the
//! agent. All controls that the design asks for, and where they are:
//!
//! | control | test |
//! |---|---|
//! | asynchronous | `without_synchronous_standbys_the_checker_finds_lost_writes` |
//! | seal one of two standbys | `with_one_of_two_standbys_sealed_the_old_primary_goes_on_acknowledging` |
//! | promote the lower position | `the_lower_of_two_standbys_lacks_acknowledged_writes` |
//! | naive restart as primary | `a_primary_that_is_restarted_as_one_shows_a_row_that_nobody_else_has` |
//! | skip the term row | `without_its_term_row_a_newer_log_loses_against_a_longer_one` |
//! | let the cancel through | `a_cancel_that_reaches_a_waiting_commit_turns_it_into_a_false_success` |
//! | double promotion without placeholder history | `promotions::two_promotions_without_placeholders_are_one_timeline_to_a_rewind` |
//! | a warm session used before Open | `promotions::a_session_that_is_used_before_open_is_told_of_a_write_that_is_lost` |
//! | a SECURITY DEFINER function left in | `privileges::a_function_with_its_owners_privilege_writes_for_a_cell_that_owns_nothing` |
//! | schema apply without the row lock | `privileges::a_schema_change_that_does_not_lock_its_shard_grants_to_the_old_owner` |
//!
//! The walker's mutants (`domain/ownership`, feature `mutants`) are the same idea, one level down.

use std::collections::BTreeSet;

use anyhow::{Result, bail, ensure};
use atoll_ownership::{DriveOrder, OpKind, Progress};
use atoll_testkit::data::{Group, GroupOptions, Naive, SUPERUSER, Tally};
use atoll_topology::Lsn;

use crate::WRITES_LIMIT;

/// An id that no writer uses.
const SPECIAL: i64 = 42;

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
    group.part(0, 1).await?;
    group.part(0, 2).await?;
    if agents_k == 0 {
        writers.progress(20, WRITES_LIMIT).await?;
    } else {
        group.until_commits_wait(0, 8).await?;
    }
    group.agents[0].freeze()?;
    group.control.forget(&group.member(0));
    let order = group.begin(OpKind::Failover, 1, &[], None).await?;
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

/// A group whose second member is alone behind a partition, and an order to make it the primary.
async fn one_alone() -> Result<(Group, DriveOrder, atoll_testkit::data::Writers)> {
    let mut group = Group::born(GroupOptions::default()).await?;
    group.members_are_joined().await?;
    let writers = group.writers(8);
    writers.progress(50, WRITES_LIMIT).await?;
    group.part(1, 0).await?;
    group.part(1, 2).await?;
    let order = group.begin(OpKind::Failover, 1, &[], None).await?;
    Ok((group, order, writers))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_one_of_two_standbys_sealed_the_old_primary_goes_on_acknowledging() -> Result<()> {
    let (group, order, writers) = one_alone().await?;
    // As if one recruit were enough: the order knows of no other member.
    let alone = order.members.iter().filter(|m| m.id == order.target);
    let lying = DriveOrder {
        members: alone.cloned().collect(),
        k: 0,
        ..order
    };
    group.drive(&lying).await?;
    let opening = |step| matches!(step, Progress::Opening).then_some(());
    group.until_step(&lying, "promoted", opening).await?;
    writers.progress(50, WRITES_LIMIT).await?;
    let tally = writers.stop().await;
    let lost = group.missing_on(1, &tally).await?;
    ensure!(
        lost > 0,
        "the checker is blind: nothing was lost with one standby sealed"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_standby_alone_is_no_recruit_set_and_becomes_the_primary_when_it_is_not_alone()
-> Result<()> {
    let (mut group, order, writers) = one_alone().await?;
    group.drive(&order).await?;
    group
        .until_role(1, |role| role == atoll_streams::agent::MemberRole::Sealed)
        .await?;
    writers.progress(50, WRITES_LIMIT).await?;
    let step = group.control.progress(&order.op);
    ensure!(matches!(step, Some(Progress::Recruiting)), "{step:?}");
    group.heal()?;
    group.opens(&order).await?;
    group.point(&writers, "a");
    writers.progress(50, WRITES_LIMIT).await?;
    let tally = writers.stop().await;
    group.nothing_is_lost(&tally, "a").await?;
    group.members_are_equal().await?;
    Ok(())
}

/// A primary that is gone, whose last writes only the third member has acknowledged.
async fn second_is_behind() -> Result<(Group, Tally)> {
    let mut group = Group::born(GroupOptions::default()).await?;
    group.members_are_joined().await?;
    let writers = group.writers(8);
    writers.progress(50, WRITES_LIMIT).await?;
    group.cut(0, 1).await?;
    writers.progress(100, WRITES_LIMIT).await?;
    let tally = writers.stop().await;
    group.agents[0].kill()?;
    group.control.forget(&group.member(0));
    Ok((group, tally))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lower_of_two_standbys_lacks_acknowledged_writes() -> Result<()> {
    let (group, tally) = second_is_behind().await?;
    let session = group.inside(1, SUPERUSER).await?;
    session.value("promote", "SELECT pg_promote()").await?;
    let lost = group.missing_on(1, &tally).await?;
    ensure!(
        lost > 0,
        "the checker is blind: the lower position has everything"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_is_behind_takes_what_it_lacks_from_the_other_recruit() -> Result<()> {
    let (mut group, tally) = second_is_behind().await?;
    let order = group.begin(OpKind::Failover, 1, &[], None).await?;
    group.finish_op(&order).await?;
    group.nothing_is_lost(&tally, "a").await?;
    group.heal()?;
    group.agents[0].start()?;
    group.members_are_equal().await?;
    Ok(())
}

/// A group whose primary hears neither standby.
async fn first_alone() -> Result<Group> {
    let group = Group::born(GroupOptions::default()).await?;
    group.members_are_joined().await?;
    group.part(0, 1).await?;
    group.part(0, 2).await?;
    Ok(group)
}

/// Waits until `write` hangs in its wait for the quorum on the first member.
async fn until_it_waits<T: std::fmt::Debug>(
    group: &Group,
    write: std::pin::Pin<&mut impl Future<Output = T>>,
) -> Result<()> {
    tokio::select! {
        ended = write => bail!("it ended without a quorum: {ended:?}"),
        waits = group.until_commits_wait(0, 1) => waits,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_is_restarted_as_one_shows_a_row_that_nobody_else_has() -> Result<()> {
    let mut group = first_alone().await?;
    let client = group.client(0, "cell_a").await?;
    let mut write = std::pin::pin!(client.execute("INSERT INTO s00000.t VALUES ($1)", &[&SPECIAL]));
    until_it_waits(&group, write.as_mut()).await?;
    ensure!(
        group.ids(0).await?.is_empty(),
        "it shows before it is acknowledged"
    );
    group.agents[0].kill()?;
    group.agents[0].postgres_gone().await?;
    group.control.forget(&group.member(0));
    ensure!(write.await.is_err(), "acknowledged by nobody");
    let naive = Naive::start(&group.agents[0])?;
    group
        .until_inside(0, "SELECT pg_is_in_recovery()", |value| value == "f")
        .await?;
    let shown = group.ids(0).await?;
    drop(naive);
    let order = group.begin(OpKind::Failover, 1, &[], None).await?;
    group.finish_op(&order).await?;
    let present = group.ids(1).await?;
    let only_there: BTreeSet<_> = shown.difference(&present).collect();
    ensure!(
        only_there == BTreeSet::from([&SPECIAL]),
        "the check is blind: {only_there:?}"
    );
    // Started as it should be, it is brought in line.
    group.heal()?;
    group.agents[0].start()?;
    group.members_are_equal().await?;
    ensure!(
        group.ids(0).await? == present,
        "it still shows what nobody else has"
    );
    Ok(())
}

/// The old primary has a long log that nobody acknowledged, and a newer one a short log that was.
/// The newer one is lost. How many of its acknowledged writes does the next one lack?
async fn lost_to_the_longer_log(row: Row) -> Result<usize> {
    let mut group = Group::born(GroupOptions::default()).await?;
    group.members_are_joined().await?;
    let _long = a_long_log_alone(&group).await?;
    let order = group.begin(OpKind::Failover, 1, &[], None).await?;
    group.finish_op(&order).await?;
    if row == Row::Skipped {
        let session = group.inside(1, SUPERUSER).await?;
        let sql = "DELETE FROM atoll.term WHERE term = 3";
        session.execute("skip the term row", sql).await?;
    }
    let writers = group.writers(4);
    writers.progress(40, WRITES_LIMIT).await?;
    let tally = writers.stop().await;
    group.agents[1].kill()?;
    group.control.forget(&group.member(1));
    group.heal()?;
    let mut order = group.begin(OpKind::Failover, 0, &[], None).await?;
    group.drive(&order).await?;
    let promoted = |step| match step {
        Progress::Promoting | Progress::Opening | Progress::Open { .. } => Some(None),
        Progress::GaveUp { better, .. } => Some(better),
        _ => None,
    };
    let better = group
        .until_step(&order, "promoted or given up", promoted)
        .await?;
    if let Some(better) = better {
        ensure!(better == group.member(2), "{better}");
        order = group
            .begin(OpKind::Failover, 2, &[], Some(order.term))
            .await?;
        group.drive(&order).await?;
        group.until_step(&order, "promoted", promoted).await?;
    }
    let winner = match row {
        // What it leads to: the rest is the same for everybody.
        Row::Skipped => 0,
        Row::Written => {
            group.agents[1].start()?;
            group.opens(&order).await?;
            group.members_are_equal().await?;
            2
        }
    };
    group.missing_on(winner, &tally).await
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Row {
    Written,
    Skipped,
}

/// Parts the first member from the others and has it write a log that it keeps for itself.
pub(crate) async fn a_long_log_alone(group: &Group) -> Result<impl Drop + use<>> {
    group.part(0, 1).await?;
    group.part(0, 2).await?;
    let session = group.inside(0, SUPERUSER).await?;
    let sql = "SELECT pg_current_wal_flush_lsn()";
    let before: Lsn = session
        .value("look", sql)
        .await?
        .unwrap_or_default()
        .parse()
        .map_err(anyhow::Error::msg)?;
    let write = async move {
        let sql = "INSERT INTO s00001.t SELECT generate_series(1, 20000)";
        session.execute("write", sql).await.ok();
    };
    let task = group.runtime.tasks().spawn("long-log", write).scoped();
    // More than all that comes after it elsewhere.
    let enough = |value: &str| {
        value
            .parse()
            .is_ok_and(|now: Lsn| now.0 > before.0 + 1_000_000)
    };
    group.until_inside(0, sql, enough).await?;
    group.until_commits_wait(0, 1).await?;
    Ok(task)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_term_row_a_newer_log_loses_against_a_longer_one() -> Result<()> {
    let lost = lost_to_the_longer_log(Row::Skipped).await?;
    ensure!(
        lost > 0,
        "the checker is blind: nothing was lost without the term row"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_log_wins_against_a_longer_one() -> Result<()> {
    let lost = lost_to_the_longer_log(Row::Written).await?;
    ensure!(lost == 0, "{lost} acknowledged writes are lost");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_that_reaches_a_waiting_commit_turns_it_into_a_false_success() -> Result<()> {
    let mut group = first_alone().await?;
    let client = group.client(0, "cell_a").await?;
    let mut write = std::pin::pin!(client.execute("INSERT INTO s00000.t VALUES ($1)", &[&SPECIAL]));
    until_it_waits(&group, write.as_mut()).await?;
    // Through the agent it comes to nothing: the connection has closed, and the commit waits on.
    client
        .cancel_token()
        .cancel_query(tokio_postgres::NoTls)
        .await?;
    until_it_waits(&group, write.as_mut()).await?;
    let session = group.inside(0, SUPERUSER).await?;
    let sql = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    session.value("cancel", sql).await?;
    let mut tally = Tally::default();
    // PostgreSQL calls it a success.
    write.await?;
    tally.acknowledged.insert(SPECIAL);
    group.agents[0].kill()?;
    group.control.forget(&group.member(0));
    let order = group.begin(OpKind::Failover, 1, &[], None).await?;
    group.finish_op(&order).await?;
    let lost = group.missing(&tally, "a").await?;
    ensure!(
        lost == 1,
        "the checker is blind: the false success was not found"
    );
    Ok(())
}
