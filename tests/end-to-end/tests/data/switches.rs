//! Planned changes.

use anyhow::Result;
use atoll_ownership::{OpKind, Progress};
use atoll_testkit::data::{Group, GroupOptions};
use tokio::time::{Instant, timeout};

use crate::WRITES_LIMIT;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_planned_switchover_under_writers_loses_nothing_and_the_old_primary_follows() -> Result<()>
{
    let mut group = Group::born(GroupOptions::default()).await?;
    let writers = group.writers(8);
    writers.progress(100, WRITES_LIMIT).await?;
    let order = group
        .begin(OpKind::Switchover, 1, &[(0, 1, "b")], None)
        .await?;
    let started = Instant::now();
    group.finish_op(&order).await?;
    println!("switchover, P3 to P7: {:?}", started.elapsed());
    group.point(&writers, "b");
    writers.progress(100, WRITES_LIMIT).await?;
    let tally = writers.stop().await;
    println!("{}", tally.line());
    group.nothing_is_lost(&tally, "b").await?;
    group.members_are_equal().await?;
    // The cell that had the shards before may not write them any more.
    let client = group.client(1, "cell_a").await?;
    let refused = client
        .execute("INSERT INTO s00000.t (id) VALUES (1)", &[])
        .await
        .unwrap_err();
    assert_eq!(refused.code().map(|code| code.code()), Some("42501"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn there_and_back_again_every_timeline_is_its_term() -> Result<()> {
    let mut group = Group::born(GroupOptions::default()).await?;
    let writers = group.writers(4);
    for (target, cell) in [(1, "b"), (2, "c"), (0, "a"), (1, "b")] {
        writers.progress(40, WRITES_LIMIT).await?;
        group
            .op(OpKind::Switchover, target, &[(0, 1, cell)])
            .await?;
        group.point(&writers, cell);
        writers.progress(40, WRITES_LIMIT).await?;
        group.members_are_joined().await?;
    }
    let tally = writers.stop().await;
    println!("{}", tally.line());
    group.nothing_is_lost(&tally, "b").await?;
    group.members_are_equal().await?;
    let rows = group.term_rows(1).await?;
    assert_eq!(rows, [(2, 2), (3, 3), (4, 4), (5, 5), (6, 6)]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_change_in_place_passes_an_idle_transaction_and_leaves_the_other_shard()
-> Result<()> {
    let mut group = Group::born(GroupOptions::default()).await?;
    let writers = group.writers(4);
    writers.progress(40, WRITES_LIMIT).await?;
    // It would hold the drain lock up for its ten seconds.
    let idle = group.client(0, "cell_a").await?;
    idle.batch_execute("BEGIN; INSERT INTO s00000.t (id) VALUES (7)")
        .await?;
    let other = group.client(0, "cell_a").await?;
    let order = group
        .begin(OpKind::OwnerChange, 0, &[(0, 0, "b")], None)
        .await?;
    let started = Instant::now();
    group.finish_op(&order).await?;
    println!("owner change: {:?}", started.elapsed());
    group.point(&writers, "b");
    writers.progress(40, WRITES_LIMIT).await?;
    // Shard 1 stays with its owner, and its session lives.
    other
        .execute("INSERT INTO s00001.t (id) VALUES (1)", &[])
        .await?;
    let refused = other
        .execute("INSERT INTO s00000.t (id) VALUES (1)", &[])
        .await
        .unwrap_err();
    assert_eq!(refused.code().map(|code| code.code()), Some("42501"));
    assert!(
        idle.batch_execute("COMMIT").await.is_err(),
        "the idle transaction was aborted"
    );
    let tally = writers.stop().await;
    group.nothing_is_lost(&tally, "b").await?;
    group.members_are_equal().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_a_client_sends_is_executed_before_the_port_is_open() -> Result<()> {
    let mut group = Group::born(GroupOptions::default()).await?;
    group.members_are_joined().await?;
    // A connection to the coming primary, opened ahead: its start-up exchange is relayed.
    let warm = group.client(1, "cell_a").await?;
    let waiting = warm.query_one("SELECT 1", &[]);
    assert!(
        timeout(std::time::Duration::from_millis(500), waiting)
            .await
            .is_err()
    );
    let order = group
        .begin(OpKind::Switchover, 1, &[(0, 1, "b")], None)
        .await?;
    group.finish_op(&order).await?;
    assert!(matches!(
        group.control.progress(&order.op),
        Some(Progress::Open { .. })
    ));
    // It was opened for another promise, so it was cut.
    assert!(warm.query_one("SELECT 1", &[]).await.is_err());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_never_reaches_a_backend_and_only_cells_may_enter() -> Result<()> {
    let group = Group::born(GroupOptions::default()).await?;
    let client = group.client(0, "cell_a").await?;
    let cancel = client.cancel_token();
    // One that reached a commit that waits for its quorum would turn it into a false success.
    let (slept, cancelled) = tokio::join!(
        client.query_one("SELECT pg_sleep(1)", &[]),
        cancel.cancel_query(tokio_postgres::NoTls)
    );
    slept?;
    cancelled?;
    for role in [
        "atoll_agent",
        "atoll_replication",
        "atoll_owner",
        "postgres",
    ] {
        assert!(group.client(0, role).await.is_err(), "{role} entered");
    }
    Ok(())
}
