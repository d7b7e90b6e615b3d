//! Many users at once, in an open loop: a transfer is due when the clock says so, whether or not
//! earlier ones were answered. At the end the oracle compares what the users know with the books.
//!
//! **What a user does when something goes wrong.** Each user has a home city and enters there. A
//! gateway that refuses the connection, says `not-sent`, or is silent for `--silence-ms` (no answer
//! on *any* connection; one that answers others merely holds this request) is left for the next
//! one, with the same idempotency key. A silent one is not tried again before a probe has been
//! answered, unless all are silent. An attempt whose outcome nobody knows is recorded as
//! unknown for good; the user then asks once more, elsewhere, with the same key, as a real client
//! would. If that is acknowledged, the transfer counts in `acknowledged` and in
//! `unknown_acknowledged`; otherwise it stays `unknown_unresolved`, and may be in the books once.

mod control;
mod drive;
mod gateway;
mod live;
mod places;
mod readback;
mod users;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

pub use places::Found;
pub use users::Scheme;

use crate::oracle::{self, Fate, Notes, Verdict};
use crate::report::{GatewayUsed, Latency, Mark, Report, Run, requests_path, series};
use crate::{clock, talk};

/// `bank load`
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Directory of the local world whose gateways to use
    #[arg(long, value_name = "DIR", required_unless_present = "gateway")]
    pub world: Option<PathBuf>,
    /// A gateway, besides those of the world; may be repeated
    #[arg(long, value_name = "REGION=IP:PORT", value_parser = places::parse_gateway)]
    pub gateway: Vec<places::Found>,
    /// How long, in seconds
    #[arg(long, default_value_t = 30)]
    pub seconds: u64,
    /// Transfers a second, all users together
    #[arg(long, default_value_t = 200)]
    pub rate: u32,
    /// Where to write the report
    #[arg(long, value_name = "FILE")]
    pub report: PathBuf,
    /// How a user id becomes a shard: `digits`, or `hash:N` for N shards
    /// [default: as the world's topology says, else digits]
    #[arg(long)]
    pub shards: Option<Scheme>,
    /// Users in each shard
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u16).range(2..=90))]
    pub users_per_shard: u16,
    /// Longest silence of a gateway before its users turn to another one; also the longest wait for a connection
    #[arg(long, default_value_t = 2000)]
    pub silence_ms: u64,
    /// Longest wait for an answer from a gateway that is alive; longer than gateways hold
    #[arg(long, default_value_t = 15_000)]
    pub response_ms: u64,
    /// Routers of databases to read the books from as well; those of the world are found
    #[arg(long, value_name = "IP:PORT", value_delimiter = ',')]
    pub verify_sql: Vec<SocketAddr>,
    /// A file with orders, one a line, read as it grows: `stop`, `event NAME [TEXT]`
    #[arg(long, value_name = "FILE")]
    pub control: Option<PathBuf>,
    /// A file that is written once the accounts are open and transfers begin; holds that time, in
    /// ms since 1970
    #[arg(long, value_name = "FILE")]
    pub started: Option<PathBuf>,
    /// Seed of who pays whom how much
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// `bank load`: runs until the time is over, `stop`, SIGINT or SIGTERM; then verifies and writes the
/// report.
pub async fn run(options: Options) -> anyhow::Result<Report> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (orders, told) = watch::channel(Orders::default());
    let follow = control::follow(options.control.clone(), orders.clone());
    let load = load(options, told);
    tokio::pin!(load, follow);
    loop {
        tokio::select! {
            done = &mut load => return done.map(|run| run.report),
            never = &mut follow => match never {},
            _ = terminate.recv() => orders.send_modify(|orders| orders.stop = true),
            _ = interrupt.recv() => orders.send_modify(|orders| orders.stop = true),
        }
    }
}

/// What the load is told while it runs.
#[derive(Debug, Clone, Default)]
pub struct Orders {
    /// Offer no more, finish what is under way, then verify.
    pub stop: bool,
    /// What happened to the world, to be marked in the report and shown.
    pub marks: Vec<Mark>,
}

/// The load as a function, for tools that run it inside themselves.
pub async fn load(options: Options, orders: watch::Receiver<Orders>) -> anyhow::Result<Run> {
    let places = places::find(&options)?;
    let scheme = options.shards.or(places.scheme).unwrap_or(Scheme::Digits);
    let users = users::Users::new(scheme, options.users_per_shard, &places.regions())?;
    let limits = gateway::Limits {
        silence: Duration::from_millis(options.silence_ms),
        response: Duration::from_millis(options.response_ms),
    };
    let gateways = Arc::new(gateway::Gateways::new(&places.gateways, limits));
    let probing = gateways.probe();

    talk::say(&format!(
        "opening {} accounts in {} shards through {} gateways",
        users.all().len(),
        scheme.shards(),
        places.gateways.len()
    ));
    drive::open_accounts(&gateways, &users).await?;

    let run = users::run_id(clock::unix_ms());
    let started_unix_ms = clock::unix_ms();
    if let Some(file) = &options.started {
        std::fs::write(file, started_unix_ms.to_string())
            .with_context(|| format!("writing {}", file.display()))?;
    }
    let driven = drive::drive(
        &options,
        &run,
        &gateways,
        &users,
        &places.regions(),
        orders.clone(),
    )
    .await;
    drop(probing);

    talk::say("reading the books");
    let notes = Notes {
        run: run.clone(),
        opened: users
            .all()
            .iter()
            .map(|u| (u.id.clone(), users::OPENED))
            .collect(),
        transfers: driven.meant,
        shards: users.shards(),
    };
    let mut readings = std::collections::BTreeMap::new();
    let books = readback::through_gateways(&gateways, &users).await;
    readings.insert("gateways".to_owned(), oracle::judge(&notes, &books));
    if places.sql.is_empty() {
        talk::say("no SQL address known: the books are read through the gateways only");
    } else {
        let books = readback::through_sql(&places.sql, &users).await;
        readings.insert("sql".to_owned(), oracle::judge(&notes, &books));
    }
    let verdict = readings
        .values()
        .cloned()
        .reduce(|a: Verdict, b| a.worst(&b));
    let Some(verdict) = verdict else {
        bail!("nothing was read")
    };

    let requests = driven.requests;
    let count = |keep: &dyn Fn(&crate::report::Request) -> bool| -> u64 {
        requests.iter().map(|r| u64::from(keep(r))).sum()
    };
    let unknown = |r: &crate::report::Request| r.unknown_attempts > 0;
    let answered = requests.iter().filter(|r| r.fate == Fate::Acknowledged);
    let report = Report {
        run,
        started_unix_ms,
        seconds: driven.lasted.as_secs_f64(),
        rate: options.rate,
        regions: places.regions(),
        gateways: places
            .gateways
            .iter()
            .map(|g| GatewayUsed {
                name: g.name.clone(),
                region: g.region.clone(),
            })
            .collect(),
        offered: driven.offered,
        unknown: count(&unknown),
        unknown_acknowledged: count(&|r| unknown(r) && r.fate == Fate::Acknowledged),
        unknown_unresolved: count(&|r| r.fate == Fate::Unknown),
        failed: count(&|r| r.fate == Fate::Failed),
        refused: count(&|r| r.fate == Fate::Refused),
        not_started: driven.not_started,
        verdict,
        readings,
        latency_ms: Latency::of(answered.map(|r| r.took_us).collect()),
        series: series(&places.regions(), &requests),
        marks: orders.borrow().marks.clone(),
        requests_file: requests_path(&options.report)
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default(),
    };
    let run = Run { report, requests };
    run.write(&options.report)
        .with_context(|| format!("writing {}", options.report.display()))?;
    Ok(run)
}
