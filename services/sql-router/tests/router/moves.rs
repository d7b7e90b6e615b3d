//! What clients see while a shard or a primary moves.

use std::time::Duration;

use atoll_routing::{Closed, Phase};
use atoll_sql_router::Limits;
use atoll_topology::{Epoch, Term};
use tokio::time::Instant;

use crate::rig::{Rig, code, group, member, outcome, user};
use crate::server::Server;

#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_statement_goes_on_at_the_next_primary() {
    let mut rig = Rig::new("primaries", &[30]).await;
    Server::other().grant("primaries", &[30], 2).await;
    let client = rig.client_of(&user(30)).await;
    let insert = client
        .prepare("INSERT INTO t VALUES ($1, $2)")
        .await
        .expect("prepare");
    client
        .execute(&insert, &[&1_i64, &"old"])
        .await
        .expect("insert");
    rig.switch(30, "primaries", Closed::All);
    rig.in_use().await;
    let held = client.execute(&insert, &[&2_i64, &"new"]);
    let mover = async {
        rig.held(1).await;
        rig.publish(|table| {
            table.groups.get_mut(&group()).expect("group").open = Some((Term::new(2), member(2)));
            table.shards[30].phase = Phase::Active;
        });
    };
    let (inserted, ()) = futures::join!(held, mover);
    assert_eq!(code(&inserted), "ok");
    client
        .execute(&insert, &[&3_i64, &"new"])
        .await
        .expect("insert");
    let count = "SELECT count(*) FROM s00030.t";
    assert_eq!(Server::plain().number(count).await, 1);
    assert_eq!(Server::other().number(count).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn transactions_in_progress_finish_while_new_ones_wait() {
    let mut rig = Rig::new("gate", &[31]).await;
    let (old, new) = (
        rig.client_of(&user(31)).await,
        rig.client_of(&user(31)).await,
    );
    old.batch_execute("BEGIN; INSERT INTO t VALUES (1)")
        .await
        .expect("insert");
    // While only gateways hold, this cell's requests in flight may begin what they need.
    rig.switch(31, "gate2", Closed::Gateways);
    rig.in_flight(1).await;
    new.batch_execute("INSERT INTO t VALUES (2)")
        .await
        .expect("insert");
    rig.switch(31, "gate2", Closed::All);
    rig.in_flight(1).await;
    let held = new.batch_execute("INSERT INTO t VALUES (3)");
    let closing = async {
        rig.held(1).await;
        old.batch_execute("INSERT INTO t VALUES (4); COMMIT")
            .await
            .expect("the end");
        rig.in_flight(0).await;
        // Called off: back to this cell under a newer epoch.
        rig.publish(|table| {
            let row = &mut table.shards[31];
            (row.cell, row.epoch) = (crate::rig::cell("gate"), Epoch::new(3));
            row.phase = Phase::Active;
        });
    };
    let (inserted, ()) = futures::join!(held, closing);
    assert_eq!(code(&inserted), "ok");
    assert_eq!(
        Server::plain()
            .number("SELECT count(*) FROM s00031.t")
            .await,
        4
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_transaction_on_a_closing_shard_is_rolled_back_and_its_client_told() {
    let mut rig = Rig::new("idle", &[32]).await;
    let clients = [
        rig.client_of(&user(32)).await,
        rig.client_of(&user(32)).await,
        rig.client_of(&user(32)).await,
    ];
    for (number, client) in clients.iter().enumerate() {
        let sql = format!("BEGIN; INSERT INTO t VALUES ({number})");
        client.batch_execute(&sql).await.expect("insert");
    }
    let began = Instant::now();
    rig.switch(32, "idle", Closed::All);
    rig.in_flight(0).await;
    assert!(
        began.elapsed() >= Duration::from_millis(200),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(
        outcome(&clients[0], "INSERT INTO t VALUES (9)").await,
        "40001"
    );
    assert_eq!(
        outcome(&clients[0], "INSERT INTO t VALUES (9)").await,
        "25P02"
    );
    assert_eq!(outcome(&clients[0], "ROLLBACK").await, "ok");
    // A COMMIT must not look like one.
    assert_eq!(outcome(&clients[1], "COMMIT").await, "40001");
    assert_eq!(code(&clients[2].query("SELECT 1", &[]).await), "40001");
    assert_eq!(outcome(&clients[2], "ROLLBACK").await, "ok");
    rig.activate(32);
    for client in &clients {
        assert_eq!(outcome(client, "SELECT 1").await, "ok");
    }
    assert_eq!(
        Server::plain()
            .number("SELECT count(*) FROM s00032.t")
            .await,
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_waits_no_longer_than_the_limit() {
    let limits = Limits {
        hold_milliseconds: 150,
        ..Limits::default()
    };
    let mut rig = Rig::with("limit", &[33], Server::plain(), limits).await;
    rig.switch(33, "limit", Closed::All);
    rig.in_use().await;
    let client = rig.client_of(&user(33)).await;
    let began = Instant::now();
    assert_eq!(outcome(&client, "SELECT 1").await, "57P03");
    assert!(began.elapsed() >= Duration::from_millis(150));
    rig.held(0).await;
    // In a transaction it is an error like any other: the transaction has failed.
    client.batch_execute("BEGIN").await.expect("begin");
    assert_eq!(code(&client.query("SELECT 1", &[]).await), "57P03");
    assert_eq!(outcome(&client, "SELECT 1").await, "25P02");
    client.batch_execute("ROLLBACK").await.expect("rollback");
    rig.activate(33);
    assert_eq!(outcome(&client, "SELECT 1").await, "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_leaves_the_queue() {
    let mut rig = Rig::new("gone", &[34]).await;
    rig.switch(34, "gone", Closed::All);
    rig.in_use().await;
    let client = rig.client_of(&user(34)).await;
    let mut process = tokio::process::Command::new("psql");
    process.args([
        rig.dsn(),
        "-X".into(),
        "-c".into(),
        format!("/*key={}*/ SELECT 1", user(34)),
    ]);
    let mut process = process.kill_on_drop(true).spawn().expect("psql");
    rig.held(1).await;
    process.kill().await.expect("kill");
    rig.held(0).await;
    drop(client);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_cannot_be_reached_costs_latency_until_it_can() {
    let mut rig = Rig::new("unreachable", &[35]).await;
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("port");
    let nobody = free.local_addr().expect("address");
    drop(free);
    let home = rig_member(&mut rig, nobody);
    let client = rig.client_of(&user(35)).await;
    let held = client.batch_execute("INSERT INTO t VALUES (1)");
    let back = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        rig_member(&mut rig, home);
    };
    let (inserted, ()) = futures::join!(held, back);
    assert_eq!(code(&inserted), "ok");
}

/// Gives the primary another address; gives back the one before.
fn rig_member(rig: &mut Rig, address: std::net::SocketAddr) -> std::net::SocketAddr {
    let mut before = address;
    rig.publish(|table| {
        let members = &mut table.groups.get_mut(&group()).expect("group").members;
        before = members.insert(member(1), address).expect("member 1");
    });
    before
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_moved_before_its_table_is_found_again() {
    let mut rig = Rig::new("denied", &[36, 37]).await;
    let client = rig.client_of(&user(36)).await;
    let insert = client
        .prepare("INSERT INTO t VALUES ($1)")
        .await
        .expect("prepare");
    client.execute(&insert, &[&1_i64]).await.expect("insert");
    // Away, and the table does not say so yet.
    Server::plain().revoke("denied", 36, 2, "faraway").await;
    let held = client.execute(&insert, &[&2_i64]);
    let back = async {
        // Until it was refused and has asked for the owner it is not to be let through.
        tokio::time::sleep(Duration::from_millis(100)).await;
        Server::plain().grant("denied", &[36], 3).await;
        rig.publish(|table| table.shards[36].epoch = Epoch::new(3));
    };
    let (inserted, ()) = futures::join!(held, back);
    assert_eq!(code(&inserted), "ok");
    // In a transaction that had executed nothing, BEGIN is said again too.
    Server::plain().revoke("denied", 36, 4, "faraway").await;
    client.batch_execute("BEGIN").await.expect("begin");
    let held = client.batch_execute("INSERT INTO t VALUES (3)");
    let back = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        Server::plain().grant("denied", &[36], 5).await;
        rig.publish(|table| table.shards[36].epoch = Epoch::new(5));
    };
    let (inserted, ()) = futures::join!(held, back);
    assert_eq!(code(&inserted), "ok");
    client.batch_execute("ROLLBACK").await.expect("rollback");
    // What had executed something is told to repeat.
    client
        .batch_execute("BEGIN; SELECT count(*) FROM t")
        .await
        .expect("begin");
    Server::plain().revoke("denied", 36, 6, "faraway").await;
    assert_eq!(outcome(&client, "INSERT INTO t VALUES (4)").await, "40001");
    client.batch_execute("ROLLBACK").await.expect("rollback");
    // Away for good.
    let held = client.execute(&insert, &[&5_i64]);
    let told = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        rig.publish(|table| {
            table.shards[36].epoch = Epoch::new(6);
            table.shards[36].cell = crate::rig::cell("faraway");
        });
    };
    let (inserted, ()) = futures::join!(held, told);
    assert_eq!(code(&inserted), "ZA004");
    assert_eq!(
        Server::plain()
            .number("SELECT count(*) FROM s00036.t")
            .await,
        2
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn permission_denied_that_has_nothing_to_do_with_owners_stays_what_it_is() {
    let rig = Rig::new("denials", &[38]).await;
    let client = rig.client_of(&user(38)).await;
    assert_eq!(
        outcome(&client, "SELECT * FROM atoll.secret").await,
        "42501"
    );
    assert_eq!(
        code(&client.query("SELECT * FROM atoll.secret", &[]).await),
        "42501"
    );
    client.batch_execute("BEGIN").await.expect("begin");
    assert_eq!(
        outcome(&client, "SELECT * FROM atoll.secret").await,
        "42501"
    );
    assert_eq!(outcome(&client, "SELECT 1").await, "25P02");
    client.batch_execute("ROLLBACK").await.expect("rollback");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_to_the_coming_primary_are_warm_and_used_only_when_it_is_open() {
    let mut rig = Rig::new("warm", &[39]).await;
    let other = Server::other();
    other.grant("warm", &[39], 2).await;
    rig.switch(39, "warm", Closed::All);
    rig.publish(|table| {
        let row = table.groups.get_mut(&group()).expect("group");
        row.coming = Some((Term::new(7), member(2)));
    });
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'cell_warm'";
    let warm = i64::try_from(Limits::default().warm_connections).expect("few");
    // One more: the witness of the opening waits for the term row.
    other.until(sessions, warm + 1).await;
    let client = rig.client_of(&user(39)).await;
    let held = client.batch_execute("INSERT INTO t VALUES (1)");
    let opening = async {
        rig.held(1).await;
        assert!(rig.facts.borrow().openings.is_empty());
        assert_eq!(other.number("SELECT count(*) FROM s00039.t").await, 0);
        other
            .superuser()
            .await
            .batch_execute("INSERT INTO atoll.term (term, \"primary\") VALUES (7, 'g-2')")
            .await
            .expect("term");
        // P8's witness: this cell's router has read the epoch on the open primary.
        rig.until(|facts| {
            facts.openings.iter().any(|opening| {
                let (term, member) = (opening.term, &opening.member);
                let read = opening
                    .shards
                    .iter()
                    .map(|(s, e)| (s.0, e.get()))
                    .collect::<Vec<_>>();
                term == Term::new(7) && *member == crate::rig::member(2) && read == [(39, 2)]
            })
        })
        .await;
        rig.publish(|table| {
            let row = table.groups.get_mut(&group()).expect("group");
            row.open = row.coming.take();
            table.shards[39].phase = Phase::Active;
        });
    };
    let (inserted, ()) = futures::join!(held, opening);
    assert_eq!(code(&inserted), "ok");
    rig.until(|facts| facts.openings.is_empty()).await;
    assert_eq!(other.number("SELECT count(*) FROM s00039.t").await, 1);
    assert_eq!(other.number(sessions).await, warm + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_is_silent_is_left_when_the_table_names_another() {
    let mut rig = Rig::new("silent", &[46]).await;
    Server::other().grant("silent", &[46], 2).await;
    let clients = [
        rig.client_of(&user(46)).await,
        rig.client_of(&user(46)).await,
        rig.client_of(&user(46)).await,
    ];
    clients[1]
        .batch_execute("BEGIN; SELECT 1")
        .await
        .expect("begin");
    clients[2]
        .batch_execute("BEGIN; SELECT 1")
        .await
        .expect("begin");
    let autocommit = clients[0].batch_execute("INSERT INTO t SELECT 1 FROM pg_sleep(60)");
    let in_transaction = clients[1].batch_execute("SELECT pg_sleep(60)");
    let failover = async {
        let busy = "SELECT count(*) FROM pg_stat_activity \
            WHERE usename = 'cell_silent' AND query LIKE '%pg_sleep(60)%' AND state = 'active'";
        Server::plain().until(busy, 2).await;
        rig.publish(|table| {
            table.groups.get_mut(&group()).expect("group").open = Some((Term::new(2), member(2)));
        });
    };
    let (unknown, repeat, ()) = futures::join!(autocommit, in_transaction, failover);
    assert_eq!(code(&unknown), "08007");
    assert_eq!(code(&repeat), "40001");
    assert_eq!(outcome(&clients[2], "COMMIT").await, "40001");
    assert_eq!(outcome(&clients[2], "INSERT INTO t VALUES (2)").await, "ok");
    // One that accepts connections and says nothing: a frozen process.
    let frozen = tokio::net::TcpSocket::new_v4().expect("socket");
    frozen.bind(([127, 0, 0, 1], 0).into()).expect("bind");
    let frozen = frozen.listen(16).expect("listen");
    let address = frozen.local_addr().expect("address");
    rig.publish(|table| {
        let row = table.groups.get_mut(&group()).expect("group");
        row.members.insert(member(3), address);
        row.open = Some((Term::new(3), member(3)));
    });
    rig.in_use().await;
    let held = clients[0].batch_execute("INSERT INTO t VALUES (3)");
    let failover = async {
        drop(frozen.accept().await.expect("a try"));
        let again = frozen.accept().await.expect("another try");
        rig.publish(|table| {
            let row = table.groups.get_mut(&group()).expect("group");
            row.open = Some((Term::new(4), member(2)));
        });
        again
    };
    let (inserted, _again) = futures::join!(held, failover);
    assert_eq!(code(&inserted), "ok");
    assert_eq!(
        Server::other()
            .number("SELECT count(*) FROM s00046.t")
            .await,
        2
    );
}
