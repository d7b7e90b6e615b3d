//! Which shard a statement goes to, and what the router says when it cannot know.

use atoll_sql_router::Limits;

use crate::rig::{Rig, outcome, user, value};
use crate::server::Server;

#[tokio::test(flavor = "multi_thread")]
async fn the_key_comes_from_options_settings_or_a_comment_the_most_particular_wins() {
    let rig = Rig::new("keys", &[1, 2, 3]).await;
    let client = rig.client_of(&user(1)).await;
    assert_eq!(value(&client, "SELECT current_schema()").await, "s00001");
    assert_eq!(value(&client, "SELECT current_user").await, "cell_keys");
    client
        .simple_query(&format!("SET atoll.key = '{}'", user(2)))
        .await
        .expect("set");
    assert_eq!(value(&client, "SHOW atoll.key").await, user(2));
    assert_eq!(value(&client, "SELECT current_schema()").await, "s00002");
    let comment = format!("/*key={}*/ SELECT current_schema()", user(3));
    assert_eq!(value(&client, &comment).await, "s00003");
    client.simple_query("BEGIN").await.expect("begin");
    client
        .simple_query(&format!("SET LOCAL atoll.key = '{}'", user(3)))
        .await
        .expect("set");
    assert_eq!(value(&client, "SELECT current_schema()").await, "s00003");
    client.simple_query("COMMIT").await.expect("commit");
    assert_eq!(value(&client, "SELECT current_schema()").await, "s00002");
    client.simple_query("RESET atoll.key").await.expect("reset");
    assert_eq!(value(&client, "SELECT current_schema()").await, "s00001");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_in_a_transaction_that_is_rolled_back_is_forgotten() {
    let rig = Rig::new("keysback", &[4, 5]).await;
    let client = rig.client_of(&user(4)).await;
    client.simple_query("BEGIN").await.expect("begin");
    client
        .simple_query(&format!("SET atoll.key = '{}'", user(5)))
        .await
        .expect("set");
    assert_eq!(value(&client, "SELECT current_schema()").await, "s00005");
    client.simple_query("ROLLBACK").await.expect("rollback");
    assert_eq!(value(&client, "SELECT current_schema()").await, "s00004");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_key_or_with_two_shards_the_error_says_so() {
    let rig = Rig::new("nokey", &[6, 7]).await;
    let client = rig.client().await;
    assert_eq!(outcome(&client, "SELECT 1").await, "ZA001");
    assert_eq!(
        outcome(&client, "/*key=not a user*/ SELECT 1").await,
        "ZA003"
    );
    assert_eq!(
        outcome(&client, "SET atoll.key = 'no digits'").await,
        "ZA003"
    );
    let two = format!("/*key={}*/ SELECT 1; /*key={}*/ SELECT 2", user(6), user(7));
    assert_eq!(outcome(&client, &two).await, "ZA002");
    // A second shard in a transaction fails the transaction, as any error does.
    client.simple_query("BEGIN").await.expect("begin");
    let insert = format!("/*key={}*/ INSERT INTO t VALUES (1)", user(6));
    assert_eq!(outcome(&client, &insert).await, "ok");
    let insert = format!("/*key={}*/ INSERT INTO t VALUES (1)", user(7));
    assert_eq!(outcome(&client, &insert).await, "ZA002");
    assert_eq!(outcome(&client, "SELECT 1").await, "25P02");
    assert_eq!(outcome(&client, "COMMIT").await, "ok");
    assert_eq!(
        Server::plain()
            .number("SELECT count(*) FROM s00006.t")
            .await,
        0
    );
    // Another cell's shard.
    let foreign = format!("/*key={}*/ SELECT 1", user(8));
    assert_eq!(outcome(&client, &foreign).await, "ZA004");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_break_a_promise_is_refused_and_fails_its_transaction() {
    let rig = Rig::new("refused", &[9]).await;
    let client = rig.client_of(&user(9)).await;
    for sql in [
        "SET synchronous_commit = off",
        "SELECT set_config('synchronous_commit', 'off', false)",
        "ALTER ROLE cell_refused SET synchronous_commit = off",
        "SET session_replication_role = replica",
        "SET default_transaction_read_only = on",
        "SET search_path = public",
        "LISTEN x",
        "CREATE TEMP TABLE x (y int)",
        "COPY t TO STDOUT",
    ] {
        assert_eq!(outcome(&client, sql).await, "0A000", "{sql}");
    }
    let mut options = Vec::new();
    for name in [
        "synchronous_commit=off",
        "search_path=x",
        "session_replication_role=replica",
    ] {
        options.push(rig.connect(&format!("-c {name}")).await.is_err());
    }
    assert_eq!(options, [true, true, true]);
    client
        .simple_query("BEGIN; INSERT INTO t VALUES (1)")
        .await
        .expect("insert");
    assert_eq!(
        outcome(&client, "SET LOCAL synchronous_commit = off").await,
        "0A000"
    );
    assert_eq!(outcome(&client, "INSERT INTO t VALUES (2)").await, "25P02");
    client.simple_query("COMMIT").await.expect("commit");
    assert_eq!(
        Server::plain()
            .number("SELECT count(*) FROM s00009.t")
            .await,
        0
    );
    // The last word is PostgreSQL's: nothing of it reached the session.
    assert_eq!(value(&client, "SHOW synchronous_commit").await, "on");
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_follow_their_client_and_nobody_else() {
    let limits = Limits {
        connections_per_group_max: 1,
        ..Limits::default()
    };
    let rig = Rig::with("settings", &[10, 11], Server::plain(), limits).await;
    let one = rig.client_of(&user(10)).await;
    let two = rig
        .connect(&format!("-c atoll.key={} -c work_mem=5MB", user(11)))
        .await
        .expect("two");
    one.simple_query("SET work_mem = '3MB'").await.expect("set");
    // One connection serves both, in turn.
    for _ in 0..2 {
        assert_eq!(value(&one, "SHOW work_mem").await, "3MB");
        assert_eq!(value(&two, "SHOW work_mem").await, "5MB");
        assert_eq!(value(&two, "SELECT current_schema()").await, "s00011");
    }
    one.simple_query("BEGIN; SET work_mem = '7MB'")
        .await
        .expect("set");
    assert_eq!(value(&one, "SHOW work_mem").await, "7MB");
    one.simple_query("ROLLBACK").await.expect("rollback");
    assert_eq!(value(&one, "SHOW work_mem").await, "3MB");
    one.simple_query("BEGIN; SELECT 1; SET work_mem = '7MB'; COMMIT")
        .await
        .expect("set");
    assert_eq!(value(&two, "SHOW work_mem").await, "5MB");
    assert_eq!(value(&one, "SHOW work_mem").await, "7MB");
    one.simple_query("RESET ALL").await.expect("reset");
    assert_eq!(value(&one, "SHOW work_mem").await, "4MB");
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'cell_settings'";
    assert_eq!(Server::plain().number(sql).await, 1);
}
