//! The bank on a real PostgreSQL, one shard in one schema, without Atoll: its transactions, its
//! answers, its load; and the whole oracle seen to cry when a row goes missing under it.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::net::{SocketAddr, TcpListener as Probe};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use bank::report::Report;
use bank::{load, serve};
use clap::Parser;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio_postgres::NoTls;

/// A PostgreSQL of this test's own.
struct Database {
    folder: tempfile::TempDir,
    bin: PathBuf,
    address: SocketAddr,
}

impl Database {
    fn start() -> Self {
        let bin = atoll_programs::postgres().unwrap().bin;
        let folder = tempfile::Builder::new()
            .prefix("bank-")
            .tempdir_in("/var/tmp")
            .unwrap();
        let data = folder.path().join("data");
        std::fs::create_dir(&data).unwrap();
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::set_permissions(&data, PermissionsExt::from_mode(0o700)).unwrap();
        if let Some(user) = atoll_programs::unprivileged_user().unwrap() {
            chown(&data, Some(user.uid), Some(user.gid)).unwrap();
        }
        let initdb = [data.to_str().unwrap(), "-A", "trust", "-U", "bank", "-N"];
        run(&bin.join("initdb"), &initdb);
        // Between finding a free port and taking it, someone else may have it.
        let mut tries = 0..5;
        let address = loop {
            assert!(
                tries.next().is_some(),
                "PostgreSQL did not start in {}",
                data.display()
            );
            let free = Probe::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            let options = format!(
                "-p {} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off",
                free.port()
            );
            let data = data.to_str().unwrap();
            let log = format!("{data}/log");
            if run(
                &bin.join("pg_ctl"),
                &["-D", data, "-o", &options, "-w", "-l", &log, "start"],
            ) {
                break free;
            }
        };
        Self {
            folder,
            bin,
            address,
        }
    }

    async fn client(&self, database: &str, drivers: &mut JoinSet<()>) -> tokio_postgres::Client {
        let mut config = tokio_postgres::Config::new();
        config
            .user("bank")
            .dbname(database)
            .application_name("test");
        config.host("127.0.0.1").port(self.address.port());
        let (client, driver) = config.connect(NoTls).await.unwrap();
        drivers.spawn(async move { drop(driver.await) });
        client
    }

    async fn with_tables(drivers: &mut JoinSet<()>) -> (Self, tokio_postgres::Client) {
        let database = Self::start();
        let first = database.client("postgres", drivers).await;
        first.batch_execute("CREATE DATABASE bank").await.unwrap();
        let client = database.client("bank", drivers).await;
        // Twice: a schema file has to be safe to repeat.
        for _ in 0..2 {
            client
                .batch_execute(include_str!("../schema.sql"))
                .await
                .unwrap();
        }
        (database, client)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let data = self.folder.path().join("data");
        run(
            &self.bin.join("pg_ctl"),
            &["-D", data.to_str().unwrap(), "-m", "immediate", "stop"],
        );
    }
}

fn run(program: &Path, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .current_dir("/")
        .stdout(std::process::Stdio::null());
    if let Some(user) = atoll_programs::unprivileged_user().unwrap() {
        command.gid(user.gid).uid(user.uid);
    }
    command.status().unwrap().success()
}

#[derive(Parser)]
struct Serve {
    #[command(flatten)]
    options: serve::Options,
}

#[derive(Parser)]
struct Load {
    #[command(flatten)]
    options: load::Options,
}

/// A bank that serves until the sender is dropped or used.
async fn bank(sql: SocketAddr, tasks: &mut JoinSet<()>) -> (SocketAddr, oneshot::Sender<()>) {
    let sql = sql.to_string();
    let line = [
        "bank",
        "--listen",
        "127.0.0.1:0",
        "--sql",
        &sql,
        "--cell",
        "c",
    ];
    let options = Serve::try_parse_from(line).unwrap().options;
    let (stop, stopped) = oneshot::channel();
    let (ready, told) = oneshot::channel();
    tasks.spawn(async move {
        let stop = async { drop(stopped.await) };
        serve::serve(options, stop, |address| ready.send(address).unwrap())
            .await
            .unwrap();
    });
    (told.await.unwrap(), stop)
}

async fn one_load(gateways: &[SocketAddr], sql: SocketAddr, seconds: u32) -> Report {
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.json");
    let mut line = vec!["bank".to_owned()];
    for (region, gateway) in ["hz", "sh"].into_iter().zip(gateways) {
        line.push(format!("--gateway={region}={gateway}"));
    }
    line.push(format!("--verify-sql={sql}"));
    line.push(format!("--seconds={seconds}"));
    line.push(format!("--report={}", report.display()));
    line.extend(["--shards=hash:1", "--users-per-shard=20", "--rate=100"].map(str::to_owned));
    let options = Load::try_parse_from(line).unwrap().options;
    let (_orders, told) = watch::channel(load::Orders::default());
    let run = load::load(options, told).await.unwrap();
    // What was written is what was returned.
    let read = bank::report::Run::read(&report).unwrap();
    assert_eq!(read.report.verdict, run.report.verdict);
    assert_eq!(read.requests, run.requests);
    run.report
}

#[tokio::test]
async fn backends_that_die_all_the_time_cost_time_and_no_money() {
    let mut tasks = JoinSet::new();
    let (database, client) = Database::with_tables(&mut tasks).await;
    let (first, _stop) = bank(database.address, &mut tasks).await;
    let (second, _stop_too) = bank(database.address, &mut tasks).await;
    tasks.spawn(async move {
        let mut every = tokio::time::interval(Duration::from_millis(150));
        loop {
            every.tick().await;
            let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                WHERE application_name = 'bank' AND random() < 0.5";
            client.batch_execute(end).await.unwrap();
        }
    });
    let report = one_load(&[first, second], database.address, 4).await;
    assert!(report.sound(), "{}", report.summary());
    assert_eq!(
        (report.offered, report.failed),
        (400, 0),
        "{}",
        report.summary()
    );
    assert_eq!(report.verdict.present, report.verdict.acknowledged);
    assert_eq!(
        report.readings.len(),
        2,
        "read through the banks and from the database"
    );
}

#[tokio::test]
async fn the_oracle_cries_when_an_acknowledged_row_goes_missing() {
    let mut tasks = JoinSet::new();
    let (database, client) = Database::with_tables(&mut tasks).await;
    let (first, _stop) = bank(database.address, &mut tasks).await;
    tasks.spawn(async move {
        tokio::time::sleep(Duration::from_secs(1)).await;
        // Old enough that its user has been told.
        let steal =
            "DELETE FROM transfers WHERE id = (SELECT id FROM transfers ORDER BY at LIMIT 1)";
        while client.execute(steal, &[]).await.unwrap() == 0 {}
    });
    let report = one_load(&[first], database.address, 2).await;
    assert!(!report.sound(), "{}", report.summary());
    assert_eq!(
        (report.verdict.lost, report.verdict.conserved),
        (1, false),
        "{}",
        report.summary()
    );
}

#[tokio::test]
async fn a_gateway_that_is_gone_sends_its_users_to_the_next_one() {
    let mut tasks = JoinSet::new();
    let (database, _client) = Database::with_tables(&mut tasks).await;
    let (first, stop) = bank(database.address, &mut tasks).await;
    let (second, _stop) = bank(database.address, &mut tasks).await;
    tasks.spawn(async move {
        tokio::time::sleep(Duration::from_secs(1)).await;
        stop.send(()).unwrap();
    });
    let report = one_load(&[first, second], database.address, 3).await;
    assert!(report.sound(), "{}", report.summary());
    // It drains: what it took it answers. A request that crosses the closing of an idle connection is
    // unknown to its user, who asks again elsewhere.
    assert_eq!(
        (report.failed, report.unknown_unresolved),
        (0, 0),
        "{}",
        report.summary()
    );
    assert_eq!(report.verdict.acknowledged, 300);
}
