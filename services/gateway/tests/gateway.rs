//! The gateway on real sockets: where requests go, how they wait, and that none is sent twice.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking, also in what it is helped by"
)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use atoll_gateway::{Canary, Hold, Limits};
use atoll_runtime::{RealOptions, Runtime};
use atoll_streams::RequestCounts;
use support::{App, Change, Door, OF_A, OF_B, Options, Pair, Wire, ask, get, post, table, until};
use tokio::time::Instant;

#[tokio::test(flavor = "multi_thread")]
async fn a_user_is_found_by_header_cookie_or_query_and_answered_by_the_owner() {
    let pair = Pair::open().await;
    let request = |target: &str, headers: &str| {
        format!("GET {target} HTTP/1.1\r\nhost: bank\r\n{headers}\r\n")
    };
    let of = |user: &str| format!("x-user: {user}\r\n");
    let cookie = format!("cookie: x=1; uid={OF_B}\r\n");
    for (target, headers, owner) in [
        ("/", of(OF_A), "a"),
        ("/", of(OF_B), "b"),
        ("/", cookie, "b"),
        ("/?user=1671", String::new(), "b"),
        ("/?user=1671", of(OF_A), "a"),
        // Nobody: the nearest cell.
        ("/", String::new(), "a"),
    ] {
        let answer = ask(pair.a.edge, &request(target, &headers)).await;
        assert_eq!(
            (answer.status(), &*answer.body),
            (200, owner),
            "{target} {headers}"
        );
        assert_eq!(
            answer.header("atoll-outcome"),
            None,
            "an application cannot speak for us"
        );
        assert!(answer.header("atoll-trace").is_some());
    }
    let wrong = ask(pair.a.edge, &request("/", "x-user: a b\r\n")).await;
    assert_eq!(wrong.gist(), (400, "A2002", "not-sent"));
    assert!(wrong.body.contains("header x-user"), "{}", wrong.body);
    assert_eq!(
        wrong.header("content-type"),
        Some("application/problem+json")
    );
    assert_eq!(
        pair.a
            .metric(r#"atoll_gateway_requests_total{origin="edge",outcome="ok"}"#),
        6
    );
    assert_eq!(
        pair.b
            .metric(r#"atoll_gateway_requests_total{origin="peer",outcome="ok"}"#),
        3
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_claims_in_our_name_is_replaced_and_a_stranger_is_refused_on_the_peer_port() {
    let pair = Pair::open().await;
    let claims = "atoll-epoch: 99\r\natoll-shard: 1\r\natoll-from: b-gateway\r\natoll-mac: 00\r\n\
                  atoll_table: x\r\natoll-other: 1\r\nconnection: x-hop\r\nx-hop: 1\r\n";
    for (user, app, shard) in [(OF_A, &pair.app_a, "23"), (OF_B, &pair.app_b, "67")] {
        let request = format!(
            "POST / HTTP/1.1\r\nhost: bank\r\nx-user: {user}\r\n{claims}content-length: 2\r\n\r\nhi"
        );
        assert_eq!(ask(pair.a.edge, &request).await.status(), 200);
        let seen = app.seen.lock().unwrap().last().unwrap().clone();
        assert_eq!(seen.body, "hi");
        assert_eq!(
            (seen.header("atoll-shard"), seen.header("atoll-epoch")),
            (Some(shard), Some("1"))
        );
        assert_eq!(seen.header("atoll-table"), Some("w.5"));
        assert_eq!(seen.header("x-user"), Some(user));
        for gone in [
            "atoll-from",
            "atoll-mac",
            "atoll_table",
            "atoll-other",
            "x-hop",
        ] {
            assert_eq!(seen.header(gone), None, "{gone}");
        }
    }
    assert_eq!(
        (pair.app_a.count(), pair.app_b.count()),
        (1, 1),
        "forwarded once"
    );
    assert_eq!(
        ask(pair.b.peer, get("/", OF_B)).await.gist(),
        (403, "A2010", "not-sent")
    );
    let forged = format!("GET / HTTP/1.1\r\nhost: bank\r\nx-user: {OF_B}\r\n{claims}\r\n");
    assert_eq!(
        ask(pair.b.peer, &forged).await.gist(),
        (403, "A2010", "not-sent")
    );
    assert_eq!(pair.app_b.count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn gateways_that_disagree_send_a_request_over_one_border_at_most() {
    let pair = Pair::open().await;
    // Under one version, each believes that the other owns shard 23: it can never be agreed on.
    let mut theirs = pair.table.next();
    theirs.shards[23].cell = support::cell("b");
    pair.a.publish(&theirs).await;
    pair.b.publish(&pair.table.next()).await;
    let answer = ask(pair.a.edge, post("/", OF_A, "x")).await;
    assert_eq!(answer.gist(), (503, "A2013", "not-sent"));
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert_eq!((pair.app_a.count(), pair.app_b.count()), (0, 0));
    assert_eq!(
        pair.a
            .metric(r#"atoll_gateway_forwards_total{result="not-taken"}"#),
        2
    );
    assert_eq!(
        pair.b
            .metric(r#"atoll_gateway_forwards_total{result="not-taken"}"#),
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sender_that_is_told_no_by_a_newer_table_catches_up_and_decides_again() {
    let pair = Pair::open().await;
    let moved = pair.table.switching(67, "a").active(67);
    pair.b.publish(&moved).await;
    let edge = pair.a.edge;
    let asked = tokio::join!(ask(edge, post("/", OF_B, "x")), async {
        let not_taken = r#"atoll_gateway_forwards_total{result="not-taken"}"#;
        until("b has refused", || pair.a.metric(not_taken) == 1).await;
        assert_eq!((pair.app_a.count(), pair.app_b.count()), (0, 0));
        pair.a.publish(&moved).await;
    });
    assert_eq!((asked.0.status(), &*asked.0.body), (200, "a"));
    assert_eq!((pair.app_a.count(), pair.app_b.count()), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_with_an_older_table_waits_for_the_senders_before_it_decides() {
    let pair = Pair::open().await;
    let moved = pair.table.switching(23, "b").active(23);
    pair.a.publish(&moved).await;
    let edge = pair.a.edge;
    let waits = tokio::join!(ask(edge, post("/", OF_A, "x")), async {
        // A second one through b itself still goes to a, by b's older table, and is refused there;
        // b may not obey, for a's is newer: it catches up, too.
        let second = ask(pair.b.edge, post("/", OF_A, "y"));
        let publish = async {
            let not_taken = r#"atoll_gateway_forwards_total{result="not-taken"}"#;
            until("a has refused", || pair.b.metric(not_taken) == 1).await;
            assert_eq!((pair.app_a.count(), pair.app_b.count()), (0, 0));
            pair.b.publish(&moved).await;
        };
        tokio::join!(second, publish).0
    });
    assert_eq!((&*waits.0.body, &*waits.1.body), ("b", "b"));
    assert_eq!((pair.app_a.count(), pair.app_b.count()), (0, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn held_requests_are_released_only_when_the_owner_is_open_and_oldest_first() {
    let options = || Options {
        hold: Hold {
            release_first: 1,
            release_every_ms: 20,
            ..Hold::default()
        },
        ..Options::default()
    };
    let pair = Pair::open_with(options, 1).await;
    // 67 stays with b while its group fails over.
    let switching = pair.table.switching(67, "b");
    pair.a.publish(&switching).await;
    pair.b.publish(&switching).await;
    let edge = pair.a.edge;
    let mut asked = Vec::new();
    for n in 0..2 {
        let request = post("/", OF_B, &n.to_string());
        let asking = async move { ask(edge, request).await };
        asked.push(pair.a.runtime.tasks().spawn("client", asking));
        until("it waits", || pair.a.held() == n + 1).await;
    }
    // Other shards do not wait, and another table of the same shard releases nobody.
    assert_eq!(ask(edge, get("/", "1691")).await.status(), 200);
    pair.a.publish(&switching.next()).await;
    pair.a.publish(&switching.switching(67, "b").next()).await;
    assert_eq!((pair.a.held(), pair.app_b.bodies().len()), (2, 1));
    let active = switching.switching(67, "b").active(67).next();
    pair.b.publish(&active).await;
    assert_eq!((pair.a.held(), pair.app_b.bodies().len()), (2, 1));
    pair.a.publish(&active).await;
    for asked in asked {
        assert_eq!(asked.await.unwrap().status(), 200);
    }
    assert_eq!(pair.app_b.bodies(), ["", "0", "1"]);
    assert_eq!(
        pair.a
            .metric(r#"atoll_gateway_holds_total{end="released"}"#),
        2
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gate_refuses_beyond_its_limits_and_lets_the_gone_leave() {
    let options = || Options {
        hold: Hold {
            requests_per_shard: 2,
            seconds: 1,
            ..Hold::default()
        },
        ..Options::default()
    };
    let pair = Pair::open_with(options, 1).await;
    pair.a.publish(&pair.table.switching(23, "a")).await;
    let mut gone = Wire::to(pair.a.edge).await;
    gone.write(post("/", OF_A, "gone")).await;
    until("one waits", || pair.a.held() == 1).await;
    let mut late = Wire::to(pair.a.edge).await;
    late.write(post("/", OF_A, "late")).await;
    until("two wait", || pair.a.held() == 2).await;
    let refused = ask(pair.a.edge, post("/", OF_A, "refused")).await;
    assert_eq!(refused.gist(), (503, "A2020", "not-sent"));
    drop(gone);
    until("the gone has left", || pair.a.held() == 1).await;
    let begun = Instant::now();
    let answer = late.read().await.unwrap();
    assert_eq!(answer.gist(), (503, "A2022", "not-sent"));
    assert!(begun.elapsed() < Duration::from_secs(2));
    pair.a
        .publish(&pair.table.switching(23, "a").active(23))
        .await;
    assert_eq!(late.ask(post("/", OF_A, "again")).await.status(), 200);
    assert_eq!(pair.app_a.bodies(), ["again"]);
    let left = r#"atoll_gateway_requests_total{origin="edge",outcome="client-gone"}"#;
    assert_eq!(pair.a.metric(left), 1);
    // All three found the gate closed; two were refused, one went away by itself.
    until("all are counted", || {
        pair.a.running.observe().requests
            == Some(RequestCounts {
                answered: 1,
                failed: 2,
                unknown: 0,
                held: 3,
                held_now: 0,
            })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_may_have_been_executed_is_never_sent_again() {
    let pair = Pair::open().await;
    for (edge, user, app) in [
        (pair.a.edge, OF_A, &pair.app_a),
        (pair.a.edge, OF_B, &pair.app_b),
    ] {
        let mut wire = Wire::to(edge).await;
        assert_eq!(wire.ask(post("/", user, "warm")).await.status(), 200);
        let answer = wire.ask(post("/die", user, "once")).await;
        assert_eq!(answer.gist(), (502, "A2040", "unknown"));
        assert_eq!(app.bodies(), ["warm", "once"]);
        assert_eq!(answer.header("retry-after"), None);
    }
    // An idempotent one is, once, when it was on a connection that had been used before.
    assert_eq!(ask(pair.a.edge, get("/", OF_A)).await.status(), 200);
    let before = pair.app_a.count();
    assert_eq!(
        ask(pair.a.edge, get("/die", OF_A)).await.gist(),
        (502, "A2040", "unknown")
    );
    assert_eq!(pair.app_a.count(), before + 2);
    // Each is counted once, where its client asked, though another gateway had it too.
    let counted = |door: &Door| {
        let counts = door.running.observe().requests.unwrap();
        (counts.failed, counts.unknown)
    };
    until("they are counted", || counted(&pair.a) == (0, 3)).await;
    assert_eq!(counted(&pair.b), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_was_closed_while_unused_costs_no_request() {
    let pair = Pair::open().await;
    let mut wire = Wire::to(pair.a.edge).await;
    for round in 1..=20 {
        assert_eq!(wire.ask(post("/leave", OF_A, "x")).await.status(), 200);
        until("it has closed", || {
            pair.app_a.closed.load(Ordering::SeqCst) == round
        })
        .await;
        // The end of the connection is on its way to the gateway; nothing tells when it is there.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(pair.app_a.count(), 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_wait_while_nobody_is_there_and_go_on_when_somebody_is() {
    let pair = Pair::open().await;
    let at = pair.app_a.at;
    assert_eq!(
        ask(pair.a.edge, post("/", OF_A, "before")).await.status(),
        200
    );
    pair.app_a.stop().await;
    let (first, second, again) = tokio::join!(
        ask(pair.a.edge, post("/", OF_A, "1")),
        // Through another gateway: the owner's gateway holds it.
        ask(pair.b.edge, post("/", OF_A, "2")),
        async {
            let waiting = r#"atoll_gateway_suspicions_total"#;
            until("the cell is suspected", || pair.a.metric(waiting) == 1).await;
            App::start_at("again", at).await
        }
    );
    assert_eq!((&*first.body, &*second.body), ("again", "again"));
    assert_eq!(again.count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn users_of_a_silent_cell_wait_until_the_table_names_another_and_only_what_was_sent_is_unknown()
 {
    let app = App::start("a").await;
    let frozen = Runtime::real(RealOptions::default());
    let silent = frozen.listen(support::anywhere()).await.unwrap();
    let table = table()
        .served("a", app.at)
        .reached("b", silent.local_addr());
    let a = Door::open("a", &table, Options::default()).await;
    let mut sent = Wire::to(a.edge).await;
    sent.write(post("/", OF_B, "sent")).await;
    // Accepts and never answers, as a frozen city does.
    let (_kept, _) = silent.accept().await.unwrap();
    until("the cell is suspected", || {
        a.metric("atoll_gateway_suspicions_total") == 1
    })
    .await;
    let mut waits = Wire::to(a.edge).await;
    waits.write(post("/", OF_B, "waits")).await;
    assert_eq!(ask(a.edge, post("/", OF_A, "other")).await.status(), 200);
    let switching = table.switching(67, "a");
    a.publish(&switching).await;
    until("it waits", || a.held() == 1).await;
    a.publish(&switching.active(67)).await;
    assert_eq!(waits.read().await.unwrap().status(), 200);
    assert_eq!(sent.read().await.unwrap().gist(), (504, "A2042", "unknown"));
    assert_eq!(app.bodies(), ["other", "waits"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_switch_learns_when_the_old_cell_has_answered_all_that_it_was_handed() {
    let pair = Pair::open().await;
    let mut direct = Wire::to(pair.a.edge).await;
    direct.write(post("/slow", OF_A, "direct")).await;
    let mut through = Wire::to(pair.b.edge).await;
    through.write(post("/slow", OF_A, "through")).await;
    until("both are there", || pair.app_a.count() == 2).await;
    let switching = pair.table.switching(23, "b");
    pair.a.publish(&switching).await;
    pair.b.publish(&switching).await;
    assert_eq!(
        (pair.a.in_flight(), pair.b.in_flight()),
        (2, 0),
        "a forwarder counts nothing"
    );
    pair.app_a.go.notify_waiters();
    assert_eq!(direct.read().await.unwrap().body, "a");
    assert_eq!(through.read().await.unwrap().body, "a");
    until("none is left", || pair.a.in_flight() == 0).await;
    let loads = pair.a.running.observe().loads;
    assert_eq!(
        (loads.len(), loads[0].first.0, loads[0].epoch.get()),
        (1, 23, 2)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_change_under_load_and_no_request_fails_or_is_executed_twice() {
    let pair = Pair::open_with(Options::default, 2).await;
    let (done, sent) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let mut clients = Vec::new();
    for n in 0..8 {
        let (done, sent) = (done.clone(), sent.clone());
        let edge = if n % 2 == 0 { pair.a.edge } else { pair.b.edge };
        clients.push(pair.a.runtime.tasks().spawn("client", async move {
            let mut wire = Wire::to(edge).await;
            while !done.load(Ordering::SeqCst) {
                for user in [OF_A, OF_B] {
                    let answer = wire.ask(post("/", user, "x")).await;
                    assert_eq!(answer.status(), 200, "{answer:?}");
                    sent.fetch_add(1, Ordering::SeqCst);
                }
            }
        }));
    }
    let mut table = pair.table.clone();
    for round in 0..30 {
        let to = if round % 2 == 0 { "b" } else { "a" };
        for change in [Change::switching, |table: &_, shard, _: &_| {
            Change::active(table, shard)
        }] {
            table = change(&table, 23, to);
            // Published to one after the other, so that they differ for a while.
            pair.a.publish(&table).await;
            tokio::time::sleep(Duration::from_millis(3)).await;
            pair.b.publish(&table).await;
        }
        let before = sent.load(Ordering::SeqCst);
        until("requests pass", || {
            sent.load(Ordering::SeqCst) > before + 20
        })
        .await;
    }
    done.store(true, Ordering::SeqCst);
    for client in clients {
        client.await.unwrap();
    }
    let executed = pair.app_a.count() + pair.app_b.count();
    assert_eq!(executed, sent.load(Ordering::SeqCst));
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_end_requests_under_way_are_answered_and_new_ones_go_elsewhere() {
    let app = App::start("a").await;
    let a = Door::open("a", &table().served("a", app.at), Options::default()).await;
    let mut under_way = Wire::to(a.edge).await;
    under_way.write(post("/slow", OF_A, "x")).await;
    let mut unused = Wire::to(a.edge).await;
    assert_eq!(unused.ask(get("/", OF_A)).await.status(), 200);
    until("it is there", || app.count() == 2).await;
    a.runtime.shutdown().request();
    assert!(
        unused.read().await.is_none(),
        "unused connections are closed"
    );
    let other = Runtime::real(RealOptions::default());
    assert!(other.connect(a.edge).await.is_err(), "the port is closed");
    app.go.notify_waiters();
    let answer = under_way.read().await.unwrap();
    assert_eq!(
        (answer.status(), answer.header("connection")),
        (200, Some("close"))
    );
    a.running.ended().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_two_proxies_could_read_differently_is_refused_and_ends_the_connection() {
    let limits = Limits {
        head_bytes_max: 2_000,
        body_bytes_max: 100,
        ..Limits::default()
    };
    let app = App::start("a").await;
    let options = Options {
        limits,
        ..Options::default()
    };
    let a = Door::open("a", &table().served("a", app.at), options).await;
    let head = |rest: &str| format!("POST / HTTP/1.1\r\nHost: x\r\nx-user: {OF_A}\r\n{rest}\r\n");
    let cases = [
        (
            head("Content-Length: 5\r\nContent-Length: 6\r\n") + "hello!",
            400,
        ),
        (
            head("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n") + "0\r\n\r\n",
            400,
        ),
        (
            head("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n") + "0\r\n\r\n",
            400,
        ),
        (
            head("Transfer-Encoding: gzip, chunked\r\n") + "0\r\n\r\n",
            400,
        ),
        (
            head("Transfer-Encoding: chunked\r\n") + "5\nhello\r\n0\r\n\r\n",
            400,
        ),
        (head("X: a\r\n b\r\n"), 400),
        (head("X : a\r\n"), 400),
        (head("X: a\rb\r\n"), 400),
        (head("X: a\nY: b\r\n"), 400),
        (head("Host: y\r\n"), 400),
        ("POST http://y/ HTTP/1.1\r\nHost: x\r\n\r\n".into(), 400),
        ("GET / HTTP/1.1\r\n\r\n".into(), 400),
        (head(&format!("X: {}\r\n", "y".repeat(3_000))), 431),
        (head("Content-Length: 101\r\n"), 413),
    ];
    for (request, status) in cases {
        let mut wire = Wire::to(a.edge).await;
        let answer = wire.ask(&request).await;
        assert_eq!(answer.status(), status, "{request:?}: {answer:?}");
        assert_eq!(answer.header("connection"), Some("close"), "{request:?}");
        assert!(wire.read().await.is_none(), "{request:?}");
    }
    assert_eq!(app.count(), 0);
    // A good one before a bad one, on one connection, is answered first.
    let mut wire = Wire::to(a.edge).await;
    wire.write(post("/", OF_A, "good") + "GET / HTTP/1.1\nHost: x\n\n")
        .await;
    assert_eq!(wire.read().await.unwrap().status(), 200);
    assert_eq!(
        wire.read().await.unwrap().gist(),
        (400, "A2000", "not-sent")
    );
    assert!(wire.read().await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_canary_writes_to_every_cell_and_says_who_does_not_answer() {
    let canary = || Canary {
        method: "POST".into(),
        path: "/canary".into(),
        every_ms: 50,
        limit_ms: 50,
    };
    let options = || Options {
        canary: Some(canary()),
        ..Options::default()
    };
    let pair = Pair::open_with(options, 1).await;
    let health = |name: &str| {
        let cells = pair.a.running.observe().cells;
        cells
            .into_iter()
            .find(|health| health.cell.as_str() == name)
    };
    for (name, app) in [("a", &pair.app_a), ("b", &pair.app_b)] {
        until("canaries are answered", || {
            health(name).is_some_and(|h| h.canary_ok > 3)
        })
        .await;
        let seen = app.seen.lock().unwrap().last().unwrap().clone();
        assert!(seen.first.starts_with("POST /canary "));
        assert!(seen.header("x-user").unwrap().starts_with("canary-"));
    }
    let failed = health("b").unwrap().canary_failed;
    pair.app_b.stop().await;
    until("canaries fail", || {
        health("b").unwrap().canary_failed > failed + 3
    })
    .await;
    let b = health("b").unwrap();
    assert!(
        b.last_ok_unix_ms > 0 && b.requests == 0,
        "a canary is no client's request: {b:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_body_passes_and_is_not_sent_a_second_time() {
    let pair = Pair::open().await;
    let large = "x".repeat(1 << 20);
    for user in [OF_A, OF_B] {
        assert_eq!(
            ask(pair.a.edge, post("/", user, &large)).await.status(),
            200
        );
    }
    assert_eq!(pair.app_a.bodies(), [large.as_str()]);
    assert_eq!(pair.app_b.bodies(), [large.as_str()]);
    // More than is kept has gone to a gateway that does not take it.
    pair.b
        .publish(&pair.table.switching(67, "a").active(67))
        .await;
    let answer = ask(pair.a.edge, post("/", OF_B, &large)).await;
    assert_eq!(answer.gist(), (503, "A2014", "not-sent"));
    assert_eq!((pair.app_a.count(), pair.app_b.count()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_keeps_us_waiting_is_let_go() {
    let limits = Limits {
        head_seconds: 1,
        body_seconds: 1,
        idle_seconds: 2,
        upstream_idle_seconds: 1,
        ..Limits::default()
    };
    let app = App::start("a").await;
    let options = Options {
        limits,
        ..Options::default()
    };
    let a = Door::open("a", &table().served("a", app.at), options).await;
    let head = async {
        let mut slow = Wire::to(a.edge).await;
        slow.write("GET / HTTP/1.1\r\nHost: x\r\n").await;
        let answer = slow.read().await.unwrap();
        assert_eq!(answer.gist(), (408, "A2000", "not-sent"));
        assert!(slow.read().await.is_none());
    };
    let body = async {
        let mut slow = Wire::to(a.edge).await;
        let request = post("/", OF_A, "hello");
        slow.write(&request[..request.len() - 1]).await;
        let answer = slow.read().await.unwrap();
        assert_eq!(answer.gist(), (400, "A2001", "not-sent"));
        assert!(slow.read().await.is_none());
    };
    let idle = async {
        let mut idle = Wire::to(a.edge).await;
        assert_eq!(idle.ask(get("/", OF_A)).await.status(), 200);
        let begun = Instant::now();
        assert!(idle.read().await.is_none());
        assert!(begun.elapsed() > Duration::from_millis(1_900));
    };
    // One that waits for its answer is not idle.
    let busy = async {
        let mut busy = Wire::to(a.edge).await;
        busy.write(post("/slow", OF_A, "x")).await;
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        app.go.notify_waiters();
        assert_eq!(busy.read().await.unwrap().status(), 200);
    };
    tokio::join!(head, body, idle, busy);
}

/// Collects what is logged, by all tests of this program.
#[derive(Clone, Default)]
struct Log(Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_serves_with_the_table_on_its_disk_while_no_mesh_is_there_and_logs_why() {
    let log = Log::default();
    let written = log.clone();
    tracing_subscriber::fmt()
        .json()
        .with_writer(move || written.clone())
        .init();
    let app = App::start("a").await;
    let folder = tempfile::tempdir().unwrap();
    let table = table().served("a", app.at);
    let mut config = support::config("a", Options::default(), &folder);
    // Nobody listens there.
    config.meshes = vec!["127.0.0.1:1".parse().unwrap()];
    let encoded = atoll_streams::encode(&table);
    atoll_proxy::table::file::write(&config.table_file, &encoded, 1).unwrap();

    let runtime = Runtime::real(RealOptions::default());
    let (tell, told) = tokio::sync::oneshot::channel();
    let serving = atoll_gateway::serve(config, runtime.clone(), |addresses: &str| {
        tell.send(addresses.to_owned()).unwrap();
    });
    let used = async {
        let addresses = told.await.unwrap();
        let address = |name: &str| {
            let of = |pair: &str| pair.strip_prefix(name)?.strip_prefix('=')?.parse().ok();
            addresses.split(' ').find_map(of).unwrap()
        };
        let path = "/logged?secret=1";
        assert_eq!(
            ask(address("edge"), post(path, OF_A, "x")).await.status(),
            200
        );
        let ready = ask(address("admin"), get("/readyz", "1")).await;
        assert_eq!((ready.status(), &*ready.body), (200, "ready\n"));
        let shown = ask(address("admin"), get("/debug/table", "1")).await;
        assert!(shown.body.contains(r#""version":"w.2""#), "{}", shown.body);
        runtime.shutdown().request();
    };
    let both = async { tokio::join!(serving, used) };
    let both = tokio::time::timeout(support::LIMIT, both).await;
    let logged = || String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    both.unwrap_or_else(|_| panic!("it did not end: {}", logged()))
        .0
        .unwrap();
    let log = logged();
    let line = log.lines().find(|line| line.contains("/logged")).unwrap();
    for part in [
        r#""target":"access""#,
        r#""method":"POST""#,
        r#""path":"/logged""#,
        r#""status":200"#,
        r#""outcome":"ok""#,
        r#""reason":"local shard=23 epoch=1""#,
        r#""shard":23"#,
    ] {
        assert!(line.contains(part), "{part} in {line}");
    }
}
