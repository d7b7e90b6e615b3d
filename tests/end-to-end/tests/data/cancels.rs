//! Cancel requests, from a client through the SQL router and the agent to a backend, or not.

use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};
use atoll_ownership::OpKind;
use atoll_testkit::data::{Group, GroupOptions, RouterOfCell, Tally};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Command;
use tokio_postgres::NoTls;

/// A user of shard 0.
const USER: u64 = 1_000;

/// Statements of cell `a` that sleep.
const ASLEEP: &str = "SELECT count(*) FROM pg_stat_activity \
    WHERE usename = 'cell_a' AND state = 'active' AND wait_event = 'PgSleep'";

fn code(error: &tokio_postgres::Error) -> String {
    let code = error.code();
    code.map_or_else(|| error.to_string(), |code| code.code().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_of_a_transaction_is_cancelled_and_the_session_goes_on() -> Result<()> {
    let group = Group::born(GroupOptions::default()).await?;
    let router = RouterOfCell::start(&group, "a").await?;
    let client = router.client(USER).await?;
    client.batch_execute("BEGIN").await?;
    let cancel = async {
        group.until_inside(0, ASLEEP, |value| value == "1").await?;
        Ok::<_, anyhow::Error>(client.cancel_token().cancel_query(NoTls).await?)
    };
    let (slept, cancelled) = tokio::join!(client.batch_execute("SELECT pg_sleep(600)"), cancel);
    cancelled?;
    ensure!(
        slept.as_ref().is_err_and(|error| code(error) == "57014"),
        "{slept:?}"
    );
    client.batch_execute("ROLLBACK").await?;
    client.batch_execute("INSERT INTO t VALUES (1)").await?;
    // The same by a person who presses Ctrl-C.
    let psql = Command::new("psql")
        .args(["--no-psqlrc", "--host"])
        .arg(router.at.ip().to_string())
        .args(["--port", &router.at.port().to_string()])
        .args(["--username", "app", "--dbname", "atoll"])
        .args(["--command", "BEGIN", "--command", "SELECT pg_sleep(600)"])
        .env("PGOPTIONS", format!("-c atoll.key={USER}"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let pid = Pid::from_raw(psql.id().context("it has ended")?.cast_signed());
    let press = async {
        group.until_inside(0, ASLEEP, |value| value == "1").await?;
        Ok::<_, anyhow::Error>(kill(pid, Signal::SIGINT)?)
    };
    let (said, pressed) = tokio::join!(psql.wait_with_output(), press);
    pressed?;
    let said = String::from_utf8_lossy(&said?.stderr).into_owned();
    ensure!(
        said.contains("canceling statement due to user request"),
        "{said}"
    );
    group.until_inside(0, ASLEEP, |value| value == "0").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_of_a_commit_that_waits_reaches_nobody() -> Result<()> {
    let mut group = Group::born(GroupOptions::default()).await?;
    group.members_are_joined().await?;
    let router = RouterOfCell::start(&group, "a").await?;
    let client = router.client(USER).await?;
    let single = router.client(USER).await?;
    client
        .batch_execute("BEGIN; INSERT INTO t VALUES (1)")
        .await?;
    single.batch_execute("SELECT 1").await?;
    group.part(0, 1).await?;
    group.part(0, 2).await?;
    // An explicit COMMIT, and a statement that commits by itself.
    let mut commits = std::pin::pin!(async {
        tokio::join!(
            client.batch_execute("COMMIT"),
            single.batch_execute("INSERT INTO t VALUES (2)")
        )
    });
    tokio::select! {
        ended = commits.as_mut() => bail!("without a quorum: {ended:?}"),
        waiting = group.until_commits_wait(0, 2) => waiting?,
    }
    client.cancel_token().cancel_query(NoTls).await?;
    single.cancel_token().cancel_query(NoTls).await?;
    // A cancel that got through would have ended the waits by now: it is a signal, which is dealt
    // with before anything that is asked of the server later.
    tokio::select! {
        ended = commits.as_mut() => bail!("without a quorum: {ended:?}"),
        waiting = group.until_commits_wait(0, 2) => waiting?,
    }
    group.heal()?;
    let (explicit, single) = commits.await;
    let mut tally = Tally::default();
    for (id, outcome) in [(1, explicit), (2, single)] {
        match outcome {
            Ok(()) => tally.acknowledged.insert(id),
            // On a slow machine nobody confirmed the primary for too long.
            Err(error) if code(&error) == "08007" => tally.unknown.insert(id),
            Err(error) => return Err(error.into()),
        };
    }
    println!("{}", tally.line());
    group.agents[0].kill()?;
    group.control.forget(&group.member(0));
    let order = group.begin(OpKind::Failover, 1, &[], None).await?;
    group.finish_op(&order).await?;
    group.nothing_is_lost(&tally, "a").await?;
    group.agents[0].start()?;
    group.members_are_equal().await?;
    Ok(())
}
