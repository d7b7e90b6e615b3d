//! The commands against a small server that answers with canned text: help, tables, errors, exit
//! codes, dead endpoints.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use atoll_api::Exit;
use atoll_cli::{Command, ENDPOINT_LIMIT, Screen, execute};
use atoll_runtime::{RealOptions, Runtime};
use clap::{CommandFactory as _, Parser};
use http_body_util::{BodyExt as _, Full};
use serde_json::{Value, json};

#[derive(Parser)]
#[command(name = "atoll", disable_help_subcommand = true, term_width = 100)]
struct Line {
    #[command(subcommand)]
    command: Command,
}

/// `METHOD path` → status and body; and every request that came.
#[derive(Clone, Default)]
struct Server {
    answers: Arc<Mutex<BTreeMap<String, (u16, String)>>>,
    asked: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Server {
    fn with(self, request: &str, status: u16, body: impl ToString) -> Self {
        self.answers
            .lock()
            .unwrap()
            .insert(request.into(), (status, body.to_string()));
        self
    }

    async fn start(&self, runtime: &Runtime) -> SocketAddr {
        let listener = runtime
            .listen("127.0.0.1:0".parse().unwrap())
            .await
            .unwrap();
        let address = listener.local_addr();
        let (server, tasks) = (self.clone(), runtime.clone());
        runtime.tasks().spawn("server", async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = server.clone();
                let service = hyper::service::service_fn(move |request| {
                    let server = server.clone();
                    async move { Ok::<_, std::convert::Infallible>(server.answer(request).await) }
                });
                let serving = hyper::server::conn::http1::Builder::new();
                let serving = serving.serve_connection(stream.hyper(), service);
                tasks
                    .tasks()
                    .spawn("connection", async move { drop(serving.await) });
            }
        });
        address
    }

    async fn answer(
        &self,
        request: http::Request<hyper::body::Incoming>,
    ) -> http::Response<Full<bytes::Bytes>> {
        let line = format!("{} {}", request.method(), request.uri());
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
        self.asked.lock().unwrap().push((line.clone(), body));
        let answers = self.answers.lock().unwrap();
        let (status, text) = answers
            .get(&line)
            .cloned()
            .unwrap_or((404, format!("no {line}")));
        http::Response::builder()
            .status(status)
            .body(Full::new(text.into()))
            .unwrap()
    }
}

struct Ran {
    exit: Exit,
    data: String,
    talk: String,
}

async fn run(runtime: &Runtime, line: &str) -> Ran {
    let line = Line::try_parse_from(line.split_whitespace()).unwrap();
    let (mut data, mut talk) = (Vec::new(), Vec::new());
    let mut screen = Screen {
        data: &mut data,
        talk: &mut talk,
    };
    let exit = execute(line.command, runtime, &mut screen).await;
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran {
        exit,
        data: text(data),
        talk: text(talk),
    }
}

async fn ask(server: &Server, line: &str) -> Ran {
    let runtime = Runtime::real(RealOptions::default());
    let address = server.start(&runtime).await;
    let mut ran = run(&runtime, &format!("{line} --server {address}")).await;
    // The address is another one in every run.
    ran.talk = ran.talk.replace(&address.to_string(), "SERVER");
    ran
}

#[test]
fn help_texts_are_as_agreed() {
    let mut all = String::new();
    let mut whole = Line::command();
    whole.build();
    let mut open = vec![whole];
    while let Some(mut command) = open.pop() {
        // Commands by name, so that the order of the text does not hang on the stack.
        let mut below: Vec<_> = command.get_subcommands().cloned().collect();
        below.reverse();
        open.extend(below);
        let bin = command.get_bin_name().unwrap_or("atoll").to_owned();
        all.push_str(&format!("$ {bin} --help\n{}\n", command.render_long_help()));
    }
    insta::assert_snapshot!(all);
}

fn status() -> Value {
    json!({
        "world": "w17", "unixMs": 0, "table": 12, "automatic": true,
        "groups": [{
            "name": "g1", "open": {"term": 3, "primary": "g1-2"},
            "op": {"kind": "failover", "term": 4, "target": "g1-3", "execution": "auto-1", "step": "P6"},
            "owners": ["0-24 hz-1 epoch 2 switching"],
            "members": [
                {"id": "g1-1", "region": "hangzhou", "zone": "hz-a", "role": "unheard", "promise": 2, "lagBytes": 0, "live": false, "note": "stays out until a policy op admits it"},
                {"id": "g1-2", "region": "shanghai", "zone": "sh-a", "role": "primary", "promise": 3, "position": [3, 50331760], "lagBytes": 0, "ageMs": 120, "live": true},
                {"id": "g1-3", "region": "shenzhen", "zone": "sz-b", "role": "replica", "promise": 3, "position": [3, 50331760], "lagBytes": 4096, "ageMs": 80, "live": true}
            ],
            "exposed": "one more loss stops it"
        }],
        "cells": [{"name": "hz-1", "kind": "sharded", "region": "hangzhou", "shards": "0-24", "switching": "0-24", "gateways": 1, "routers": 1, "canary": "3/4"}],
        "planes": [
            {"process": "hz-1-gateway", "role": "gateway", "region": "hangzhou", "cell": "hz-1", "table": 12, "ageMs": 90, "live": true, "held": 7},
            {"process": "hz-1-sql-router", "role": "sql-router", "region": "hangzhou", "cell": "hz-1", "table": 11, "ageMs": 95, "live": true, "held": 0}
        ],
        "executions": ["auto-1"],
        "warnings": ["g1 has two of three members"]
    })
}

#[tokio::test]
async fn status_fits_on_one_screen_and_warns_by_its_exit_code() {
    let server = Server::default().with("GET /status", 200, status());
    let ran = ask(&server, "atoll status -o wide").await;
    assert_eq!(ran.exit, Exit::Warnings);
    insta::assert_snapshot!(ran.data);
    assert_eq!(ran.talk, "warning: g1 has two of three members\n");
    let ran = ask(&server, "atoll status -o json").await;
    assert_eq!(
        serde_json::from_str::<Value>(&ran.data).unwrap()["table"],
        12
    );
}

#[tokio::test]
async fn resources_are_shown_in_every_format() {
    let cell = |name: &str| {
        json!({"apiVersion": "atoll.dev/v1", "kind": "Cell",
            "metadata": {"name": name, "resourceVersion": "4", "generation": 1},
            "spec": {"kind": "sharded", "region": "hangzhou", "slots": {"blue": {"zone": "hz-a", "weight": 100}}}})
    };
    let list = json!({"apiVersion": "atoll.dev/v1", "kind": "CellList", "metadata": {"resourceVersion": "9"},
        "items": [cell("hz-1"), cell("hz-22")]});
    let server = Server::default()
        .with("GET /apis/atoll.dev/v1/cells", 200, &list)
        .with("GET /apis/atoll.dev/v1/cells/hz-1", 200, cell("hz-1"));
    insta::assert_snapshot!(ask(&server, "atoll get cells -o wide").await.data, @r"
    NAME    SERVES    REGION     SLOTS
    hz-1    sharded   hangzhou   blue(weight=100 zone=hz-a)
    hz-22   sharded   hangzhou   blue(weight=100 zone=hz-a)
    ");
    insta::assert_snapshot!(ask(&server, "atoll get Cell -o name").await.data, @r"
    cell/hz-1
    cell/hz-22
    ");
    insta::assert_snapshot!(ask(&server, "atoll get ce hz-1 -o yaml").await.data);
    let json = ask(&server, "atoll get cells -o json").await.data;
    assert_eq!(serde_json::from_str::<Value>(&json).unwrap(), list);
}

#[tokio::test]
async fn an_error_of_the_server_is_told_in_full_and_decides_the_exit_code() {
    let problem = atoll_api::Problem::new(atoll_api::Code::NOT_FOUND, "there is no cell hz-9")
        .place("Cell/hz-9, seen 14:02:11Z by control")
        .next("atoll get cells");
    let body = serde_json::to_string(&problem).unwrap();
    let server = Server::default().with("GET /apis/atoll.dev/v1/cells/hz-9", 404, body);
    let ran = ask(&server, "atoll get cell hz-9").await;
    assert_eq!((ran.exit, ran.data.as_str()), (Exit::NotFound, ""));
    insta::assert_snapshot!(ran.talk, @r"
    error[A0404] there is no cell hz-9
      where   Cell/hz-9, seen 14:02:11Z by control
      next    atoll get cells
    ");
    let ran = ask(&server, "atoll get cell other").await;
    insta::assert_snapshot!(ran.talk, @r#"
    error[A0602] SERVER answered 404 Not Found
      why     not an answer of control: "no GET /apis/atoll.dev/v1/cells/other"
    "#);
}

#[tokio::test]
async fn a_dead_endpoint_costs_its_limit_and_the_next_one_answers() {
    let runtime = Runtime::real(RealOptions::default());
    let server = Server::default().with("GET /status", 200, status());
    let alive = server.start(&runtime).await;
    // Takes connections and never says a word, as a frozen process does.
    let silent = runtime
        .listen("127.0.0.1:0".parse().unwrap())
        .await
        .unwrap();
    let dead = silent.local_addr();
    let began = tokio::time::Instant::now();
    let ran = run(
        &runtime,
        &format!("atoll status --server {dead},{alive} -o name"),
    )
    .await;
    assert_eq!(ran.data, "datagroup/g1\n");
    assert!(began.elapsed() < ENDPOINT_LIMIT + Duration::from_secs(2));
}

#[tokio::test]
async fn without_a_server_the_error_says_how_to_name_one() {
    let runtime = Runtime::real(RealOptions::default());
    let ran = run(&runtime, "atoll status").await;
    assert_eq!(ran.exit, Exit::NoEndpoint);
    insta::assert_snapshot!(ran.talk, @r"
    error[A0605] no server is known
      why     neither --server, ATOLL_SERVER nor --world is given
      next    atoll status --world DIR   (DIR is what `atoll dev up --dir DIR` used)
    ");
    let ran = run(&runtime, "atoll status --server 127.0.0.1:1").await;
    assert_eq!(ran.exit, Exit::NoEndpoint);
    insta::assert_snapshot!(ran.talk, @r"
    error[A0601] no server answers
      why     127.0.0.1:1: Connection refused (os error 111)
      effect  data planes serve on without control; no change of ownership begins
      next    atoll dev status
    ");
}

#[tokio::test]
async fn the_server_of_a_local_world_is_found() {
    let runtime = Runtime::real(RealOptions::default());
    let server = Server::default().with("GET /status", 200, status());
    let address = server.start(&runtime).await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("run")).unwrap();
    let processes = json!({"processes": [
        {"name": "hz-1-gateway", "role": "gateway", "addresses": {"edge": "127.0.0.1:1"}},
        {"name": "control", "role": "control", "addresses": {"api": address, "grpc": "127.0.0.1:2"}}]});
    std::fs::write(
        folder.path().join("run/processes.json"),
        processes.to_string(),
    )
    .unwrap();
    let line = format!("atoll status -o name --world {}", folder.path().display());
    assert_eq!(run(&runtime, &line).await.data, "datagroup/g1\n");
}

#[tokio::test]
async fn users_and_shards_are_found() {
    let explain = json!({"user": "42", "shard": 4, "cell": "hz-1", "region": "hangzhou", "epoch": 2,
        "group": "g1", "term": 3, "primary": "g1-2", "members": ["g1-1", "g1-2"], "reason": "owner",
        "text": "user     42\nshard    4", "scheme": "digits"});
    let located = json!({"shard": 71, "schema": "s00071", "cell": "sh-1", "region": "shanghai", "epoch": 5,
        "switching": false, "group": "g3", "term": 2, "primary": "g3-1"});
    let server = Server::default()
        .with("GET /explain?user=42", 200, explain)
        .with("GET /locate?shard=71", 200, located);
    let ran = ask(&server, "atoll explain user 42").await;
    assert_eq!(ran.data, "user     42\nshard    4\n");
    let json = ask(&server, "atoll explain user 42 -o json").await.data;
    assert_eq!(
        serde_json::from_str::<Value>(&json).unwrap()["scheme"],
        "digits"
    );
    insta::assert_snapshot!(ask(&server, "atoll shard locate --shard 71").await.data, @r"
    SHARD   CELL   REGION     EPOCH   STATE    GROUP   TERM   PRIMARY   SCHEMA
    71      sh-1   shanghai   5       active   g3      2      g3-1      s00071
    ");
}

fn plan(state: &str) -> Value {
    json!({"apiVersion": "atoll.dev/v1", "kind": "Plan", "metadata": {"name": "plan-7f3a"},
        "spec": {"verb": "switch-cell", "cell": "hz-1", "to": "shanghai"},
        "status": {"hash": "7f3a", "text": "switch cell hz-1 to sh-1\n  group g1 at term 2: g1-1 -> g1-2",
            "checks": [{"name": "replication-lag", "state": state, "message": "0.1 s <= 5 s"}],
            "holdMs": 180, "madeFor": [{"group": "g1", "term": 2, "shards": "0-24"}]}})
}

#[tokio::test]
async fn a_plan_is_read_before_it_is_run() {
    let path = "POST /apis/atoll.dev/v1/plans";
    let server = Server::default().with(path, 201, plan("passed"));
    let ran = ask(&server, "atoll switch plan cell hz-1 --to shanghai").await;
    assert_eq!(ran.exit, Exit::Ok);
    insta::assert_snapshot!(ran.data, @r"
    switch cell hz-1 to sh-1
      group g1 at term 2: g1-1 -> g1-2

    check replication-lag      ok       0.1 s <= 5 s
    writes will be held for about 180 ms
    hash 7f3a
    run exactly this: atoll switch run --plan 7f3a
    ");
    let (_, body) = server.asked.lock().unwrap().pop().unwrap();
    assert_eq!(
        body["spec"],
        json!({"verb": "switch-cell", "cell": "hz-1", "to": "shanghai"})
    );

    let server = Server::default().with(path, 201, plan("refused"));
    let ran = ask(&server, "atoll switch plan region hangzhou --evacuate").await;
    assert_eq!(ran.exit, Exit::Refused);
    assert!(!ran.data.contains("run exactly this"));
}

#[tokio::test]
async fn a_run_is_watched_to_its_end() {
    let execution = |phase: &str, steps: Value| {
        json!({"apiVersion": "atoll.dev/v1", "kind": "Execution", "metadata": {"name": "run-7f3a"},
            "spec": {"plan": "7f3a"},
            "status": {"phase": phase, "message": "the target was lost", "steps": steps,
                "groups": [{"group": "g1", "termBefore": 2, "term": 3, "primary": "g1-2", "owners": ["0-24 sh-1 epoch 2"]}],
                "figures": {"hold_ms": 171.4}}})
    };
    let step = |name: &str, state: &str, from: u64, to: Option<u64>| json!({"name": name, "group": "g1", "state": state, "startedUnixMs": from, "finishedUnixMs": to});
    let begun = json!([
        step("P1 record", "Done", 1_000, Some(1_004)),
        step("P2 gates", "Running", 1_004, None)
    ]);
    let ended = json!([
        step("P1 record", "Done", 1_000, Some(1_004)),
        step("P2 gates", "Done", 1_004, Some(1_060))
    ]);
    let line =
        |kind: &str, object: Value| json!({"type": kind, "object": object}).to_string() + "\n";
    let all = "/apis/atoll.dev/v1/executions";
    let serve = |phase: &str| {
        let events = line("ADDED", execution("Running", begun.clone()))
            + &line("MODIFIED", execution(phase, ended.clone()));
        Server::default()
            .with(&format!("POST {all}"), 201, execution("Pending", json!([])))
            .with(
                &format!("GET {all}/run-7f3a"),
                200,
                execution("Pending", json!([])),
            )
            .with(
                &format!("GET {all}?watch=true&fieldSelector=metadata.name%3Drun-7f3a"),
                200,
                events,
            )
    };
    let ran = ask(&serve("Succeeded"), "atoll switch run --plan 7f3a").await;
    assert_eq!(ran.exit, Exit::Ok, "{}", ran.talk);
    insta::assert_snapshot!(ran.data, @r"
    00:00:01.004Z g1       P1 record                    done     4 ms
    00:00:01.004Z g1       P2 gates                     running
    00:00:01.060Z g1       P2 gates                     done     56 ms
    g1: term 2 -> 3, primary g1-2, 0-24 sh-1 epoch 2
    run-7f3a succeeded  hold 171 ms
    ");
    let ran = ask(&serve("Failed"), "atoll switch watch run-7f3a").await;
    assert_eq!(ran.exit, Exit::Failed);
    insta::assert_snapshot!(ran.talk, @r"
    error[A0606] run-7f3a failed
      why     the target was lost
      next    atoll get execution run-7f3a -o yaml
    ");
}

#[tokio::test]
async fn an_execution_is_paused_and_goes_on() {
    let path = "/apis/atoll.dev/v1/executions/run-7f3a";
    let execution = |phase: &str| {
        json!({"apiVersion": "atoll.dev/v1", "kind": "Execution", "metadata": {"name": "run-7f3a"},
            "spec": {"plan": "7f3a"}, "status": {"phase": phase, "steps": [], "groups": []}})
    };
    let server = Server::default().with(&format!("PATCH {path}"), 200, execution("Running"));
    let ran = ask(&server, "atoll switch pause run-7f3a").await;
    let hint = "begins no further group; atoll switch resume run-7f3a";
    assert_eq!(ran.data, format!("run-7f3a {hint}\n"));
    ask(&server, "atoll switch resume run-7f3a").await;
    ask(&server, "atoll switch abort run-7f3a").await;
    let asked = server.asked.lock().unwrap().clone();
    let wanted: Vec<_> = asked
        .iter()
        .map(|(_, body)| &body["spec"]["control"])
        .collect();
    assert_eq!(wanted, ["Pause", "Run", "Abort"]);
    let server = Server::default().with(&format!("PATCH {path}"), 200, execution("Succeeded"));
    let ran = ask(&server, "atoll switch abort run-7f3a").await;
    assert_eq!(ran.data, "run-7f3a is over: succeeded\n");
}

#[tokio::test]
async fn automation_is_stopped_by_name_and_reason() {
    let status = json!({"configured": true, "frozen": "detection: frozen: hangzhou, shanghai are suspect at once",
        "acts": [{"unixMs": 1000, "group": "g1", "what": "failover"},
            {"unixMs": 500, "what": "zone hz-a lost, shards 0-24 moved"}],
        "orders": [{"unixMs": 2000, "order": "freeze", "by": "detection", "reason": "frozen: hangzhou, shanghai are suspect at once"}]});
    let server = Server::default().with("GET /automatic", 200, &status).with(
        "POST /automatic",
        200,
        json!({"configured": true, "acts": [], "orders": [
            {"unixMs": 3000, "order": "thaw", "by": "ana", "reason": "looked"}]}),
    );
    let ran = ask(&server, "atoll switch automatic status").await;
    assert_eq!(ran.exit, Exit::Warnings);
    insta::assert_snapshot!(ran.data, @r"
    automation frozen (detection: frozen: hangzhou, shanghai are suspect at once)
    did    1970-01-01T00:00:01Z g1 failover
    did    1970-01-01T00:00:00.500Z zone hz-a lost, shards 0-24 moved
    order  1970-01-01T00:00:02Z freeze by detection: frozen: hangzhou, shanghai are suspect at once
    ");
    let ran = ask(
        &server,
        "atoll switch automatic thaw --reason looked --by ana",
    )
    .await;
    assert_eq!(ran.exit, Exit::Ok);
    insta::assert_snapshot!(ran.data, @r"
    automation on
    order  1970-01-01T00:00:03Z thaw by ana: looked
    ");
    let (_, body) = server.asked.lock().unwrap().pop().unwrap();
    assert_eq!(
        body,
        json!({"order": "thaw", "by": "ana", "reason": "looked"})
    );
}

/// A proof as control seals it.
fn sealed(rows: Vec<atoll_proof::ShardRows>) -> (String, String) {
    let key = atoll_proof::Key::from_secret(&[1; 32]);
    let sections = atoll_proof::Sections {
        execution: atoll_proof::Execution {
            name: "run-7f3a".into(),
            world: "w1".into(),
            automatic: false,
            phase: "Succeeded".into(),
            message: String::new(),
            ordered_unix_ms: 1_000,
            over_unix_ms: 1_500,
            table: 13,
        },
        plan: atoll_proof::Plan {
            hash: "7f3a".into(),
            text: "switch cell hz-1 to sh-1".into(),
        },
        groups: vec![],
        members: vec![],
        rows,
        steps: vec![],
        holds: vec![atoll_proof::Hold {
            group: "g1".into(),
            hold_ms: Some(171),
            convergence_ms: Some(28),
        }],
        requests: vec![],
        proxies: vec![],
    };
    (atoll_proof::seal(&sections, &key).unwrap(), key.public())
}

#[tokio::test]
async fn a_proof_that_names_different_rows_is_a_warning() {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    let rows = atoll_proof::ShardRows {
        group: "g1".into(),
        shard: 7,
        rows: 2,
        hash: "0123456789abcdef0123".into(),
        lsn: "0/200".into(),
        equal: words(&["g1-1"]),
        moving: vec![],
        different: words(&["g1-3"]),
        silent: vec![],
    };
    let (text, key) = sealed(vec![rows]);
    let server = Server::default()
        .with(
            "GET /apis/atoll.dev/v1/executions/run-7f3a/proof",
            200,
            &text,
        )
        .with(
            "GET /key",
            200,
            json!({"algorithm": "Ed25519", "publicKey": key}),
        );
    for format in ["table", "json"] {
        let ran = ask(&server, &format!("atoll switch proof run-7f3a -o {format}")).await;
        assert_eq!(ran.exit, Exit::Warnings, "{}", ran.talk);
        let said = "group g1, shard 7: g1-3 held other rows than the primary";
        assert!(ran.talk.contains(said), "{}", ran.talk);
    }
}

#[tokio::test]
async fn a_proof_is_shown_kept_and_verified_without_a_server() {
    let (text, key) = sealed(vec![]);
    let path = "/apis/atoll.dev/v1/executions/run-7f3a/proof";
    let server = Server::default()
        .with(&format!("GET {path}"), 200, &text)
        .with(
            "GET /key",
            200,
            json!({"algorithm": "Ed25519", "publicKey": key}),
        );
    let ran = ask(&server, "atoll switch proof run-7f3a").await;
    assert_eq!(ran.exit, Exit::Ok, "{}", ran.talk);
    insta::assert_snapshot!(ran.data, @r"
    execution  run-7f3a Succeeded in world w1
               table 13, over 500 ms after the order
    plan       7f3a
               switch cell hz-1 to sh-1
    hold       g1 171 ms, converged in 28 ms
    signed     by 8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c
    ");
    let kept = ask(&server, "atoll switch proof run-7f3a -o json")
        .await
        .data;
    assert_eq!(kept, text.clone() + "\n");

    let runtime = Runtime::real(RealOptions::default());
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().display().to_string();
    std::fs::write(file.path(), &kept).unwrap();
    let ran = run(&runtime, &format!("atoll verify {path} --key {key}")).await;
    assert_eq!((ran.exit, ran.talk.as_str()), (Exit::Ok, ""));
    assert!(ran.data.contains("run-7f3a Succeeded"), "{}", ran.data);
    std::fs::write(file.path(), kept.replace("\"holdMs\":171", "\"holdMs\":17")).unwrap();
    let ran = run(&runtime, &format!("atoll verify {path}")).await;
    assert_eq!((ran.exit, ran.data.as_str()), (Exit::Failed, ""));
    assert!(
        ran.talk.starts_with("error[A0608] the proof does not hold"),
        "{}",
        ran.talk
    );
    assert!(
        ran.talk.contains("section holds was changed"),
        "{}",
        ran.talk
    );
}

#[tokio::test]
async fn a_schema_is_applied_everywhere_or_the_groups_without_it_are_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "CREATE TABLE IF NOT EXISTS t (id int)").unwrap();
    let result = json!({"id": "x", "groups": [
        {"group": "g1", "applied": "0-24"}, {"group": "g2", "applied": "", "error": "syntax error at line 1"}]});
    let server = Server::default().with("POST /schema", 200, result);
    let ran = ask(
        &server,
        &format!("atoll schema apply -f {}", file.path().display()),
    )
    .await;
    assert_eq!(ran.exit, Exit::Failed);
    insta::assert_snapshot!(ran.data, @r"
    GROUP   APPLIED TO SHARDS   ERROR
    g1      0-24                -
    g2      -                   syntax error at line 1
    ");
    assert!(ran.talk.starts_with("error[A0418]"), "{}", ran.talk);
    let (_, body) = server.asked.lock().unwrap().pop().unwrap();
    assert_eq!(body["sql"], "CREATE TABLE IF NOT EXISTS t (id int)");
}
