//! Lost primaries, lost connections, cancelled waits: what may be repeated and what nobody knows.

use std::time::Duration;

use atoll_sql_router::Limits;
use tokio_postgres::NoTls;

use crate::rig::{Rig, code, outcome, user};
use crate::server::Server;

/// Ends the sessions of a cell that are executing something like this.
async fn end_sessions(server: &Server, cell: &str, query: &str) {
    let which = format!("usename = 'cell_{cell}' AND query LIKE '{query}'");
    let active = format!("SELECT count(*) FROM pg_stat_activity WHERE {which} AND state <> 'idle'");
    server.until(&active, 1).await;
    let end =
        format!("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE {which}");
    server.number(&end).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_primary_means_unknown_after_autocommit_and_repeat_before_commit() {
    let rig = Rig::new("lost", &[40]).await;
    let plain = Server::plain();
    let client = rig.client_of(&user(40)).await;
    let autocommit = client.batch_execute("INSERT INTO t SELECT 1 FROM pg_sleep(60)");
    let (inserted, ()) = futures::join!(autocommit, end_sessions(plain, "lost", "%pg_sleep%"));
    assert_eq!(code(&inserted), "08007");
    let extended = client.execute("INSERT INTO t SELECT 1 FROM pg_sleep(60)", &[]);
    let (inserted, ()) = futures::join!(extended, end_sessions(plain, "lost", "%pg_sleep%"));
    assert_eq!(code(&inserted), "08007");
    client
        .batch_execute("BEGIN; INSERT INTO t VALUES (2)")
        .await
        .expect("insert");
    let in_transaction = client.batch_execute("SELECT pg_sleep(60)");
    let (slept, ()) = futures::join!(in_transaction, end_sessions(plain, "lost", "%pg_sleep%"));
    assert_eq!(code(&slept), "40001");
    assert_eq!(outcome(&client, "SELECT 1").await, "25P02");
    assert_eq!(outcome(&client, "ROLLBACK").await, "ok");
    // Lost while the client was doing nothing: it hears of it at its next statement.
    client
        .batch_execute("BEGIN; INSERT INTO t VALUES (3)")
        .await
        .expect("insert");
    end_sessions(plain, "lost", "%INSERT INTO t VALUES (3)%").await;
    plain
        .until(
            "SELECT count(*) FROM pg_stat_activity WHERE usename = 'cell_lost'",
            0,
        )
        .await;
    assert_eq!(outcome(&client, "COMMIT").await, "40001");
    assert_eq!(outcome(&client, "INSERT INTO t VALUES (4)").await, "ok");
    assert_eq!(
        plain.number("SELECT sum(id)::bigint FROM s00040.t").await,
        4
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pooled_connection_that_died_unseen_costs_the_client_nothing() {
    let rig = Rig::new("stale", &[41]).await;
    let plain = Server::plain();
    let client = rig.client_of(&user(41)).await;
    for id in 0..5 {
        let sql = format!("INSERT INTO t VALUES ({id})");
        assert_eq!(outcome(&client, &sql).await, "ok");
        let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
            WHERE usename = 'cell_stale'";
        plain.number(end).await;
        plain
            .until(
                "SELECT count(*) FROM pg_stat_activity WHERE usename = 'cell_stale'",
                0,
            )
            .await;
    }
    assert_eq!(plain.number("SELECT count(*) FROM s00041.t").await, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_wait_for_standbys_was_cancelled_is_unknown_never_a_success() {
    let alone = Server::alone();
    let rig = Rig::with("unsure", &[42], alone, Limits::default()).await;
    let cancel = || async {
        let waiting = "SELECT count(*) FROM pg_stat_activity \
            WHERE usename = 'cell_unsure' AND wait_event = 'SyncRep'";
        alone.until(waiting, 1).await;
        let cancel = "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity \
            WHERE usename = 'cell_unsure'";
        alone.number(cancel).await;
    };
    let client = rig.client_of(&user(42)).await;
    let (inserted, ()) = futures::join!(client.batch_execute("INSERT INTO t VALUES (1)"), cancel());
    assert_eq!(code(&inserted), "08007");
    let (inserted, ()) = futures::join!(client.execute("INSERT INTO t VALUES (2)", &[]), cancel());
    assert_eq!(code(&inserted), "08007");
    client
        .batch_execute("BEGIN; INSERT INTO t VALUES (3)")
        .await
        .expect("insert");
    let (committed, ()) = futures::join!(client.batch_execute("COMMIT"), cancel());
    assert_eq!(code(&committed), "08007");
    // The control: PostgreSQL itself calls all three a success.
    assert_eq!(alone.number("SELECT count(*) FROM s00042.t").await, 3);
    assert_eq!(outcome(&client, "SELECT 1").await, "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_waits_when_its_connection_is_lost_is_unknown() {
    let alone = Server::alone();
    let rig = Rig::with("waits", &[43], alone, Limits::default()).await;
    let client = rig.client_of(&user(43)).await;
    client
        .batch_execute("BEGIN; INSERT INTO t VALUES (1)")
        .await
        .expect("insert");
    let lost = async {
        let waiting = "SELECT count(*) FROM pg_stat_activity \
            WHERE usename = 'cell_waits' AND wait_event = 'SyncRep'";
        alone.until(waiting, 1).await;
        let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
            WHERE usename = 'cell_waits'";
        alone.number(end).await;
    };
    let (committed, ()) = futures::join!(client.batch_execute("COMMIT"), lost);
    assert_eq!(code(&committed), "08007");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_reaches_a_statement_of_a_transaction_and_never_a_commit() {
    let alone = Server::alone();
    let rig = Rig::with("cancels", &[44], alone, Limits::default()).await;
    let client = rig.client_of(&user(44)).await;
    client.batch_execute("BEGIN").await.expect("begin");
    let cancel = async {
        alone.until(&active("cancels", "%pg_sleep%"), 1).await;
        client
            .cancel_token()
            .cancel_query(NoTls)
            .await
            .expect("cancel");
    };
    let (slept, ()) = futures::join!(client.batch_execute("SELECT pg_sleep(60)"), cancel);
    assert_eq!(code(&slept), "57014");
    client.batch_execute("ROLLBACK").await.expect("rollback");
    client
        .batch_execute("BEGIN; INSERT INTO t VALUES (1)")
        .await
        .expect("insert");
    let cancel = async {
        let waiting = "SELECT count(*) FROM pg_stat_activity \
            WHERE usename = 'cell_cancels' AND wait_event = 'SyncRep'";
        alone.until(waiting, 1).await;
        client
            .cancel_token()
            .cancel_query(NoTls)
            .await
            .expect("cancel");
    };
    // It goes on waiting: the commit is neither answered nor given up.
    let commit = tokio::time::timeout(Duration::from_millis(300), client.batch_execute("COMMIT"));
    let (committed, ()) = futures::join!(commit, cancel);
    assert!(committed.is_err(), "{committed:?}");
    // An autocommit statement is not cancelled either: it may be committing.
    let other = rig.client_of(&user(44)).await;
    let sleep = other.batch_execute("SELECT pg_sleep(0.3)");
    let cancel = async {
        alone.until(&active("cancels", "%pg_sleep(0.3)%"), 1).await;
        other
            .cancel_token()
            .cancel_query(NoTls)
            .await
            .expect("cancel");
    };
    let (slept, ()) = futures::join!(sleep, cancel);
    assert_eq!(code(&slept), "ok");
}

fn active(cell: &str, query: &str) -> String {
    format!(
        "SELECT count(*) FROM pg_stat_activity \
         WHERE usename = 'cell_{cell}' AND state = 'active' AND query LIKE '{query}'"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_lets_transactions_finish_and_then_says_goodbye() {
    let rig = Rig::new("drain", &[45]).await;
    let (busy, idle) = (
        rig.client_of(&user(45)).await,
        rig.client_of(&user(45)).await,
    );
    busy.batch_execute("BEGIN; INSERT INTO t VALUES (1)")
        .await
        .expect("insert");
    rig.runtime.shutdown().request();
    busy.batch_execute("INSERT INTO t VALUES (2); COMMIT")
        .await
        .expect("the end");
    let gone = outcome(&idle, "SELECT 1").await;
    assert!(gone == "57P01" || gone.contains("closed"), "{gone}");
    rig.runtime.tasks().end(Duration::from_secs(5)).await;
    assert_eq!(
        Server::plain()
            .number("SELECT count(*) FROM s00045.t")
            .await,
        2
    );
}
