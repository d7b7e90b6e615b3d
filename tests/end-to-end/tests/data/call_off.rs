//! A switch that is not to be, called off before anything was cut.

use anyhow::{Result, ensure};
use atoll_ownership::OpKind;
use atoll_streams::agent::Order;
use atoll_testkit::data::{Group, GroupOptions, Writers};
use atoll_topology::Term;
use tokio_postgres::Client;

use crate::WRITES_LIMIT;

/// A switchover whose P2 does not end: the old owner is in a transaction, and the drain waits.
async fn stuck(options: GroupOptions) -> Result<(Group, Writers, Client)> {
    let mut group = Group::born(options).await?;
    group.members_are_joined().await?;
    let writers = group.writers(4);
    writers.progress(50, WRITES_LIMIT).await?;
    let busy = group.client(0, "cell_a").await?;
    let begun = "BEGIN; INSERT INTO s00001.t (id) VALUES (7)";
    busy.batch_execute(begun).await?;
    group
        .begin(OpKind::Switchover, 1, &[(0, 1, "b")], None)
        .await?;
    writers.hold().await;
    Ok((group, writers, busy))
}

/// `shard:epoch:cell` as the log has them.
async fn owners(group: &Group) -> Result<Vec<String>> {
    let client = group.client(0, "cell_a").await?;
    let sql = "SELECT shard || ':' || epoch || ':' || cell FROM atoll.shard_owner ORDER BY shard";
    let rows = client.query(sql, &[]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Called off while `missing` is down.
async fn called_off(options: GroupOptions, missing: Option<usize>) -> Result<()> {
    let (mut group, writers, busy) = stuck(options).await?;
    if let Some(at) = missing {
        group.agents[at].kill()?;
        group.control.forget(&group.member(at));
    }
    let before = writers.tally();
    let over = group.running()?.term;
    let order = group.begin(OpKind::CallOff, 0, &[], Some(over)).await?;
    group.finish_op(&order).await?;
    writers.release();
    // Nobody was cut: the transaction that was in the way commits, in the session that it has.
    busy.batch_execute("COMMIT").await?;
    writers.progress(50, WRITES_LIMIT).await?;
    let tally = writers.stop().await;
    ensure!(
        tally.unknown == before.unknown && tally.refused == before.refused,
        "a client felt it: {} then {}",
        before.line(),
        tally.line()
    );
    ensure!(owners(&group).await? == ["0:3:a", "1:3:a"]);
    ensure!(group.term_rows(0).await? == [(2, 2), (4, 2)]);
    group.nothing_is_lost(&tally, "a").await?;
    if let Some(at) = missing {
        group.agents[at].start()?;
    }
    group.members_are_equal().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switch_whose_drain_does_not_end_is_called_off_and_no_client_feels_it() -> Result<()> {
    called_off(GroupOptions::default(), None).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switch_is_called_off_while_the_target_is_down() -> Result<()> {
    called_off(GroupOptions::default(), Some(1)).await
}

/// The others have promised the term that is kept, and its row takes its time to come back from them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_is_not_cut_off_by_its_own_call_off() -> Result<()> {
    let far = GroupOptions {
        delay_ms: 200.0,
        ..GroupOptions::default()
    };
    called_off(far, None).await
}

/// The spare member follows the target already when the two are cut off from each other, old and
/// coming primary: nothing can be acknowledged until it follows the old one again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_off_brings_back_who_follows_a_target_that_is_cut_off() -> Result<()> {
    let (mut group, writers, busy) = stuck(GroupOptions::default()).await?;
    let before = writers.tally();
    let (primary, spare) = (group.member(0), group.member(2));
    let cascade = Order::Cascade {
        group: group.running()?.group,
        term: Term::new(2),
        through: group.member(1),
    };
    group.control.order(&primary, cascade).await?;
    let through = group.member(1);
    let followed = group.control.until(WRITES_LIMIT, "the cascade", |control| {
        let upstream = control.status(&spare)?.upstream;
        (upstream.as_ref() == Some(&through)).then_some(())
    });
    followed.await?;
    group.part(0, 1).await?;
    let over = group.running()?.term;
    let order = group.begin(OpKind::CallOff, 0, &[], Some(over)).await?;
    group.finish_op(&order).await?;
    writers.release();
    busy.batch_execute("COMMIT").await?;
    writers.progress(50, WRITES_LIMIT).await?;
    let tally = writers.stop().await;
    ensure!(
        tally.unknown == before.unknown && tally.refused == before.refused,
        "a client felt it: {} then {}",
        before.line(),
        tally.line()
    );
    ensure!(group.term_rows(0).await? == [(2, 2), (4, 2)]);
    group.nothing_is_lost(&tally, "a").await?;
    group.heal()?;
    group.members_are_equal().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_off_that_too_few_keep_gives_way_to_a_new_term_in_place() -> Result<()> {
    let (mut group, writers, busy) = stuck(GroupOptions::default()).await?;
    group.part(0, 1).await?;
    group.part(0, 2).await?;
    let over = group.running()?.term;
    let off = group.begin(OpKind::CallOff, 0, &[], Some(over)).await?;
    group.drive(&off).await?;
    let kept = |promise| promise == off.term;
    let (member, control) = (group.member(0), &group.control);
    let promised = control.until(WRITES_LIMIT, "the primary's promise", |control| {
        control
            .status(&member)
            .filter(|status| kept(status.promise))
    });
    promised.await?;
    ensure!(
        group.control.progress(&off.op).is_none(),
        "one is not enough"
    );
    let moves = [(0, 1, "a")];
    let order = group
        .begin(OpKind::Failover, 0, &moves, Some(off.term))
        .await?;
    group.mend(0, 2)?;
    group.finish_op(&order).await?;
    writers.release();
    writers.progress(50, WRITES_LIMIT).await?;
    let tally = writers.stop().await;
    ensure!(
        busy.batch_execute("COMMIT").await.is_err(),
        "its session is of an older term"
    );
    ensure!(owners(&group).await? == ["0:4:a", "1:4:a"]);
    // The same primary on the same timeline.
    ensure!(group.term_rows(0).await? == [(2, 2), (5, 2)]);
    group.nothing_is_lost(&tally, "a").await?;
    group.heal()?;
    group.members_are_equal().await?;
    Ok(())
}
