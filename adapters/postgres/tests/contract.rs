//! What the ownership protocol assumes of PostgreSQL, on a real one: a single member without
//! standbys, its processes started as the agent starts them.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot set itself up has failed"
)]

use std::ffi::OsString;
use std::path::Path;

use atoll_ownership::{Grant, TermRow};
use atoll_postgres::{
    Account, Applied, Binaries, Error, InPlace, Launcher, Layout, MemberSettings, Moved, Opening,
    SchemaFile, Server, ServerOptions, Session, Template, apply_schema, cell_role, change_owner,
    check_privileges, open_term, placeholders, promote, read_line, read_log, row_hashes,
    timeline_of_primary,
};
use atoll_runtime::{RealOptions, Runtime};
use atoll_topology::{CellId, Epoch, Lsn, MemberId, ShardId, Term};

/// Not a test: what the test binary becomes when it is started in the place of the re-exec.
#[test]
fn the_re_exec() {
    let words = std::env::vars_os().find(|(key, _)| key == "POSTGRES_EXEC_WORDS");
    if let Some((_, words)) = words {
        let words = words.into_string().unwrap();
        let words: Vec<OsString> = words.lines().map(Into::into).collect();
        panic!("{:?}", atoll_postgres::exec_main(words.into_iter()));
    }
}

struct Member {
    runtime: Runtime,
    options: ServerOptions,
    server: Server,
    session: Session,
    _root: tempfile::TempDir,
}

/// Started through `sh`, which hides the words from the test harness.
fn launcher() -> Launcher {
    let me = std::env::current_exe().unwrap();
    let script = r#"me=$1; shift; POSTGRES_EXEC_WORDS=$(printf '%s\n' "$@")
        export POSTGRES_EXEC_WORDS; exec "$me" --exact the_re_exec --nocapture"#;
    let exec: Vec<OsString> = ["/bin/sh", "-c", script, "sh"]
        .into_iter()
        .map(OsString::from)
        .chain([me.into()])
        .collect();
    Launcher::new(exec, Account::unprivileged().unwrap())
}

async fn member() -> Member {
    let runtime = Runtime::real(RealOptions::default());
    let binaries = Binaries::find(None).unwrap();
    let launcher = launcher();
    let cache = Path::new("/var/tmp/atoll-test-templates");
    let template = Template::ensure(cache, &binaries, &launcher).await.unwrap();
    let root = tempfile::Builder::new()
        .prefix("atoll-pg-")
        .tempdir_in("/var/tmp")
        .unwrap();
    let layout = Layout::prepare(root.path(), launcher.account()).unwrap();
    template.copy_to(&layout, &launcher).await.unwrap();
    let settings = MemberSettings {
        member: MemberId::parse("g-1").unwrap(),
        others: vec![],
        k: 0,
        shared_buffers_mb: 16,
        connections_max: 40,
    };
    let options = ServerOptions {
        binaries,
        launcher,
        layout,
        settings,
    };
    let server = Server::start(&options).await.unwrap();
    let session = server
        .ready(|| Session::open(&runtime, &options.layout))
        .await
        .unwrap();
    Member {
        runtime,
        options,
        server,
        session,
        _root: root,
    }
}

fn grant(shard: u16, epoch: u64, cell: &str) -> Grant {
    let cell = CellId::parse(cell).unwrap();
    Grant {
        shard: ShardId(shard),
        epoch: Epoch::new(epoch),
        cell,
    }
}

fn row(term: u64) -> TermRow {
    TermRow {
        term: Term::new(term),
        timeline: 0,
        fork: Lsn(0),
        primary: MemberId::parse("g-1").unwrap(),
        members: vec![MemberId::parse("g-1").unwrap()],
        k: 0,
        op: "test".into(),
    }
}

async fn lead(member: &Member, term: u32) {
    placeholders(
        &member.options.layout,
        member.options.launcher.account(),
        term,
    )
    .unwrap();
    promote(&member.session).await.unwrap();
}

async fn as_cell(member: &Member, cell: &str) -> Session {
    let role = cell_role(&CellId::parse(cell).unwrap());
    let socket = member.options.layout.socket();
    Session::open_as(&member.runtime, &socket, &role)
        .await
        .unwrap()
}

#[tokio::test]
async fn it_starts_as_a_standby_of_an_unprivileged_user_and_its_timeline_is_the_term() {
    let m = member().await;
    assert!(read_log(&m.session).await.unwrap().standby);
    let pid = m.server.running().pid();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(
        !status.lines().any(|line| line.starts_with("Uid:\t0")),
        "{status}"
    );
    lead(&m, 5).await;
    let opening = Opening {
        row: row(5),
        moves: vec![grant(7, 1, "a")],
        cells: vec![],
    };
    let written = open_term(&m.session, &m.options.layout, opening)
        .await
        .unwrap();
    assert_eq!(written.timeline, 5);
    let line = read_line(&m.session, &m.options.layout).await.unwrap();
    let (end, history) = (line.end, line.history);
    assert_eq!(
        (end.timeline, end.position.term.get(), history.len()),
        (5, 5, 1)
    );
    // The same term again, and an older one: stale, and nothing is written.
    for term in [5, 4] {
        let again = Opening {
            row: row(term),
            moves: vec![],
            cells: vec![],
        };
        let error = open_term(&m.session, &m.options.layout, again)
            .await
            .unwrap_err();
        assert!(matches!(error, Error::Stale { .. }), "{error}");
    }
    // A restart is a standby again, on its timeline, with its rows.
    m.server.quit(&m.options.layout).await.unwrap();
    let server = Server::start(&m.options).await.unwrap();
    let session = server
        .ready(|| Session::open(&m.runtime, &m.options.layout))
        .await
        .unwrap();
    assert!(read_log(&session).await.unwrap().standby);
    let end = read_line(&session, &m.options.layout).await.unwrap().end;
    assert_eq!((end.timeline, end.position.term.get()), (5, 5));
    server.quit(&m.options.layout).await.unwrap();
}

#[tokio::test]
async fn a_log_behind_timelines_that_nobody_wrote_is_read_to_its_end_after_a_crash() {
    let m = member().await;
    let control = m.options.layout.data().join("global/pg_control");
    let checkpoint = std::fs::read(&control).unwrap();
    lead(&m, 5).await;
    let opening = Opening {
        row: row(5),
        moves: vec![],
        cells: vec![],
    };
    open_term(&m.session, &m.options.layout, opening)
        .await
        .unwrap();
    let before = read_line(&m.session, &m.options.layout).await.unwrap();
    // As a standby that has had no checkpoint since it came to this timeline, or a primary that fell
    // in its first moments: PostgreSQL has to look for the timeline.
    m.server.quit(&m.options.layout).await.unwrap();
    std::fs::write(&control, checkpoint).unwrap();
    let server = Server::start(&m.options).await.unwrap();
    let session = server
        .ready(|| Session::open(&m.runtime, &m.options.layout))
        .await
        .unwrap();
    let started = tokio::time::Instant::now();
    let after = loop {
        assert!(started.elapsed().as_secs() < 60, "replay does not end");
        let after = read_line(&session, &m.options.layout).await.unwrap();
        // What is left to replay, or where it stops for good.
        let whole = after.end.position.lsn >= before.end.position.lsn;
        if whole || !replays(&session).await {
            break after;
        }
    };
    assert_eq!(after.history, before.history);
    assert_eq!(after.end.timeline, 5);
    assert!(after.end.position.lsn >= before.end.position.lsn);
    server.quit(&m.options.layout).await.unwrap();
}

/// Whether the startup process has something to read, and does not wait for more.
async fn replays(session: &Session) -> bool {
    let sql = "SELECT wait_event FROM pg_stat_activity WHERE backend_type = 'startup'";
    let waits = session.value("what replay waits for", sql).await.unwrap();
    !waits.is_some_and(|event| event.starts_with("Recovery"))
}

#[tokio::test]
async fn only_the_owner_cell_writes_also_with_a_statement_prepared_before() {
    let m = member().await;
    lead(&m, 2).await;
    let moves = vec![grant(1, 1, "a"), grant(2, 1, "b")];
    open_term(
        &m.session,
        &m.options.layout,
        Opening {
            row: row(2),
            moves,
            cells: vec![],
        },
    )
    .await
    .unwrap();
    let file = SchemaFile {
        name: "1.sql".into(),
        sql: "CREATE TABLE t (id bigserial PRIMARY KEY, v text);".into(),
    };
    assert_eq!(
        apply_schema(&m.session, ShardId(1), &file).await.unwrap(),
        Applied::Now
    );
    assert_eq!(
        apply_schema(&m.session, ShardId(1), &file).await.unwrap(),
        Applied::Before
    );
    assert_eq!(check_privileges(&m.session, None).await.unwrap(), []);
    let (a, b) = (as_cell(&m, "a").await, as_cell(&m, "b").await);
    let insert = a
        .client()
        .prepare("INSERT INTO s00001.t (v) VALUES ('x')")
        .await
        .unwrap();
    a.client().execute(&insert, &[]).await.unwrap();
    let refused = b
        .execute("write", "INSERT INTO s00001.t (v) VALUES ('y')")
        .await
        .unwrap_err();
    assert_eq!(refused.sqlstate(), Some("42501"));
    // An idle transaction of the old owner stands in the way until its socket is closed.
    let idle = as_cell(&m, "a").await;
    idle.execute("idle", "BEGIN; INSERT INTO s00001.t (v) VALUES ('never')")
        .await
        .unwrap();
    let change = InPlace {
        moves: vec![grant(1, 2, "b")],
        row: None,
    };
    let moved = change_owner(&m.session, &m.options.layout, &change, |sessions| {
        assert!(sessions.iter().all(|session| session.role == "cell_a"));
        idle.cut();
    });
    assert_eq!(moved.await.unwrap(), Moved::Done);
    let refused = a.client().execute(&insert, &[]).await.unwrap_err();
    assert_eq!(refused.code().unwrap().code(), "42501");
    b.execute("write", "INSERT INTO s00001.t (v) VALUES ('y')")
        .await
        .unwrap();
    // Back under the old number: stale.
    let back = InPlace {
        moves: vec![grant(1, 2, "a")],
        row: None,
    };
    let error = change_owner(&m.session, &m.options.layout, &back, |_| {})
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Stale { .. }), "{error}");
    let hashes = row_hashes(&m.session, &[ShardId(1)]).await.unwrap();
    assert_eq!(hashes[0].rows, 2);
    m.server.quit(&m.options.layout).await.unwrap();
}

#[tokio::test]
async fn whatever_could_write_round_the_owner_is_found() {
    let m = member().await;
    lead(&m, 2).await;
    let moves = vec![grant(1, 1, "a"), grant(2, 1, "b")];
    open_term(
        &m.session,
        &m.options.layout,
        Opening {
            row: row(2),
            moves,
            cells: vec![],
        },
    )
    .await
    .unwrap();
    let refused = [
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1';",
        "CREATE TABLE u (id int); GRANT INSERT ON u TO PUBLIC;",
    ];
    for sql in refused {
        let file = SchemaFile {
            name: "bad.sql".into(),
            sql: sql.into(),
        };
        let error = apply_schema(&m.session, ShardId(1), &file)
            .await
            .unwrap_err();
        assert!(matches!(error, Error::Rule(_)), "{sql}: {error}");
    }
    // What a person left there is found before an op, too.
    m.session
        .execute(
            "leave",
            "CREATE FUNCTION s00001.f() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'",
        )
        .await
        .unwrap();
    let findings = check_privileges(&m.session, None).await.unwrap();
    assert_eq!(findings.len(), 1, "{findings:?}");
    m.server.quit(&m.options.layout).await.unwrap();
}

#[tokio::test]
async fn a_cell_runs_no_text_as_a_statement_and_keeps_no_large_object() {
    let m = member().await;
    lead(&m, 2).await;
    let opening = Opening {
        row: row(2),
        moves: vec![grant(1, 1, "a")],
        cells: vec![],
    };
    open_term(&m.session, &m.options.layout, opening)
        .await
        .unwrap();
    let cell = as_cell(&m, "a").await;
    let hidden = "select set_config(''synchronous_commit'', ''off'', false)";
    let calls = [
        format!("query_to_xml('{hidden}', true, true, '')"),
        format!("query_to_xmlschema('{hidden}', true, true, '')"),
        format!("query_to_xml_and_xmlschema('{hidden}', true, true, '')"),
        "cursor_to_xml('c', 1, true, true, '')".into(),
        "cursor_to_xmlschema('c', true, true, '')".into(),
        format!("ts_stat('{hidden}')"),
        format!("ts_stat('{hidden}', 'a')"),
        format!("ts_rewrite('a'::tsquery, '{hidden}')"),
        "lo_create(0)".into(),
    ];
    for call in calls {
        let refused = cell.execute("call", &format!("SELECT {call}")).await;
        assert_eq!(refused.unwrap_err().sqlstate(), Some("42501"), "{call}");
    }
    let harmless = [
        "set_config('app.user', '7', true)",
        "ts_rewrite('a & b'::tsquery, 'a'::tsquery, 'c'::tsquery)",
    ];
    for call in harmless {
        cell.execute("call", &format!("SELECT {call}"))
            .await
            .unwrap();
    }
    m.server.quit(&m.options.layout).await.unwrap();
}

#[tokio::test]
async fn two_promotions_from_one_timeline_differ_only_with_placeholders() {
    let (first, second) = tokio::join!(member(), member());
    // Without placeholders both histories claim the same timeline, and a rewind would see no
    // difference between them.
    promote(&first.session).await.unwrap();
    let timeline = timeline_of_primary(&first.session).await.unwrap();
    assert_eq!(timeline, 2);
    lead(&second, 3).await;
    let timeline = timeline_of_primary(&second.session).await.unwrap();
    assert_eq!(timeline, 3);
    for m in [&first, &second] {
        m.server.quit(&m.options.layout).await.unwrap();
    }
}
