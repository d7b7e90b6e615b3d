//! Real drivers: psql, tokio-postgres with prepared statements and pipelines, psycopg.

use std::process::Stdio;

use futures::future::{join_all, try_join_all};
use tokio::process::Command;
use tokio_postgres::types::Type;

use crate::rig::{Rig, code, outcome, user};
use crate::server::Server;

async fn psql(rig: &Rig, options: &str, script: &str) -> (String, String) {
    let ran = Command::new("psql")
        .arg(format!("{} options='{options}'", rig.dsn()))
        .args([
            "-X",
            "-A",
            "-t",
            "-q",
            "-v",
            "VERBOSITY=verbose",
            "-c",
            script,
        ])
        .stdin(Stdio::null())
        .output()
        .await
        .expect("psql");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text").trim().to_owned();
    (text(ran.stdout), text(ran.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn psql_works_with_the_key_in_its_options_a_set_or_a_comment() {
    let rig = Rig::new("psql", &[20, 21]).await;
    let key = format!("-c atoll.key={}", user(20));
    let script = "BEGIN; INSERT INTO t VALUES (1, 'x'); INSERT INTO t VALUES (2, 'y'); COMMIT; \
        SELECT string_agg(note, ',' ORDER BY id) FROM t";
    assert_eq!(
        psql(&rig, &key, script).await,
        ("x,y".to_owned(), String::new())
    );
    let script = format!("SET atoll.key = '{}'; SELECT count(*) FROM t", user(21));
    assert_eq!(psql(&rig, "", &script).await.0, "0");
    let script = format!("/*key={}*/ SELECT count(*) FROM t", user(20));
    assert_eq!(psql(&rig, "", &script).await.0, "2");
    let (_, said) = psql(&rig, "", "SELECT count(*) FROM t").await;
    assert!(said.contains("ZA001") && said.contains("HINT:"), "{said}");
    let (out, said) = psql(&rig, &key, "\\d t").await;
    assert!(out.contains("note|text"), "{out} {said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn prepared_statements_live_with_the_client_whatever_connection_serves() {
    let rig = Rig::new("prepared", &[22, 23]).await;
    let clients = [
        rig.client_of(&user(22)).await,
        rig.client_of(&user(22)).await,
    ];
    let mut statements = Vec::new();
    for client in &clients {
        statements.push(
            client
                .prepare("INSERT INTO t VALUES ($1, $2)")
                .await
                .expect("prepare"),
        );
    }
    for round in 0..4_i64 {
        let inserts = (0_i64..)
            .zip(clients.iter().zip(&statements))
            .map(|(n, (c, s))| async move { c.execute(s, &[&(round * 2 + n), &"x"]).await });
        try_join_all(inserts).await.expect("insert");
    }
    let count = clients[0]
        .query_one("SELECT count(*) FROM t", &[])
        .await
        .expect("count");
    assert_eq!(count.get::<_, i64>(0), 8);
    // The same text in another shard, by the key in a parameter: text and binary integers.
    let client = rig.client().await;
    let by_text = client
        .prepare_typed(
            "/*key=$1*/ SELECT current_schema()::text || $1",
            &[Type::TEXT],
        )
        .await
        .expect("prepare");
    let row = client
        .query_one(&by_text, &[&user(23)])
        .await
        .expect("query");
    assert_eq!(row.get::<_, String>(0), "s00023u237");
    let by_number = client
        .prepare("/*key=$1*/ SELECT current_schema()::text WHERE $1 > 0::bigint")
        .await
        .expect("prepare");
    let row = client
        .query_one(&by_number, &[&229_i64])
        .await
        .expect("query");
    assert_eq!(row.get::<_, String>(0), "s00022");
    // An error in preparing is told when the types are asked for.
    assert_eq!(code(&clients[0].prepare("SELECT nothing").await), "42703");
    assert_eq!(
        code(&clients[0].prepare("SELECT 1; SELECT 2").await),
        "42601"
    );
    // Its place in the text is the client's, though BEGIN was not sent with it.
    let error = clients[0]
        .batch_execute("BEGIN /* é */; SELECT nothing")
        .await
        .expect_err("42703");
    let position = error
        .as_db_error()
        .and_then(|error| error.position())
        .cloned();
    assert_eq!(
        position,
        Some(tokio_postgres::error::ErrorPosition::Original(23))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_is_answered_in_order_and_an_error_skips_only_its_own() {
    let rig = Rig::new("pipeline", &[24]).await;
    let client = rig.client_of(&user(24)).await;
    let insert = client
        .prepare("INSERT INTO t VALUES ($1)")
        .await
        .expect("prepare");
    let numbers: Vec<i64> = (0..200).collect();
    let outcomes = join_all(numbers.iter().map(|n| {
        let (client, insert) = (&client, &insert);
        async move {
            // Every tenth is there already.
            let id = if n % 10 == 9 { n - 1 } else { *n };
            client.execute(insert, &[&id]).await
        }
    }))
    .await;
    for (n, outcome) in numbers.iter().zip(&outcomes) {
        let expected = if n % 10 == 9 { "23505" } else { "ok" };
        assert_eq!(code(outcome), expected, "number {n}");
    }
    // A transaction in one go, its begin, its work and its end.
    let begin = client.batch_execute("BEGIN");
    let work = client.execute(&insert, &[&1000_i64]);
    let end = client.batch_execute("COMMIT");
    let after = client.query_one("SELECT count(*) FROM t WHERE id = 1000", &[]);
    let (begin, work, end, after) = futures::join!(begin, work, end, after);
    assert_eq!(
        (code(&begin), code(&work), code(&end)),
        ("ok".into(), "ok".into(), "ok".into())
    );
    assert_eq!(after.expect("count").get::<_, i64>(0), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn savepoints_and_failed_transactions_are_postgresqls_own() {
    let rig = Rig::new("savepoints", &[25]).await;
    let mut client = rig.client_of(&user(25)).await;
    let mut transaction = client.transaction().await.expect("begin");
    transaction
        .execute("INSERT INTO t VALUES (1)", &[])
        .await
        .expect("insert");
    let savepoint = transaction.savepoint("s").await.expect("savepoint");
    // A refusal of the router's own can be rolled back to a savepoint too.
    assert_eq!(code(&savepoint.execute("LISTEN x", &[]).await), "0A000");
    assert_eq!(
        code(&savepoint.execute("INSERT INTO t VALUES (2)", &[]).await),
        "25P02"
    );
    savepoint.rollback().await.expect("rollback to");
    transaction
        .execute("INSERT INTO t VALUES (3)", &[])
        .await
        .expect("insert");
    transaction.commit().await.expect("commit");
    assert_eq!(
        Server::plain()
            .number("SELECT sum(id)::bigint FROM s00025.t")
            .await,
        4
    );
    client
        .batch_execute("BEGIN; INSERT INTO t VALUES (5)")
        .await
        .expect("insert");
    assert_eq!(outcome(&client, "INSERT INTO t VALUES (1)").await, "23505");
    client
        .batch_execute("COMMIT")
        .await
        .expect("the end of a failed transaction");
    assert_eq!(
        Server::plain()
            .number("SELECT sum(id)::bigint FROM s00025.t")
            .await,
        4
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn large_values_and_many_rows_pass_without_being_kept() {
    let rig = Rig::new("large", &[26]).await;
    let client = rig.client_of(&user(26)).await;
    let note = "x".repeat(3_000_000);
    client
        .execute("INSERT INTO t VALUES (1, $1)", &[&note])
        .await
        .expect("insert");
    let row = client
        .query_one("SELECT note FROM t", &[])
        .await
        .expect("select");
    assert_eq!(row.get::<_, String>(0).len(), note.len());
    let rows = client
        .query("SELECT n FROM generate_series(1, 100000) n", &[])
        .await
        .expect("rows");
    assert_eq!(rows.len(), 100_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn psycopg_prepares_everything_pipelines_and_ends_transactions() {
    let rig = Rig::new("psycopg", &[27, 28]).await;
    let python = tokio::task::block_in_place(atoll_programs::python).expect("Python");
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/router/psycopg_script.py"
    );
    let ran = Command::new(python.program)
        .args([script, &rig.dsn(), &user(27), &user(28)])
        .output()
        .await
        .expect("python");
    let said = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert!(ran.status.success(), "{said}");
    assert_eq!(String::from_utf8_lossy(&ran.stdout).trim(), "well");
}
