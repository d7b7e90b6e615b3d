//! `cargo xtask campaign`: faults drawn from a seed against a world under load, judged by oracles
//! that know nothing of the code under test.

mod act;
mod controls;
mod draw;
mod means;
mod report;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use atoll_runtime::{RealOptions, Runtime};
use atoll_workloads::{Load, Options};
use atoll_world::{Role, Store};
use bank::analyse::{Event, analyse};
use tokio::time::{Instant, sleep};

use self::draw::{Chance, Fault};
use self::means::Means;
use self::report::Findings;
use crate::binaries;
use crate::cargo::{root, target};
use crate::stage::{Setting, Stage, events};

/// How long a world may take to be whole again after a fault has ended.
const RECOVERY_LIMIT: Duration = Duration::from_secs(120);
/// Between the end of a recovery and the next fault.
const BREATH: Duration = Duration::from_millis(500);
/// Guards against repeated failovers forget after this; a campaign is nothing but those.
const GUARD_WINDOW_SECONDS: u64 = 2;

/// Three shards of each data group have a list and a register.
const WORKLOAD_SHARDS: [u16; 12] = [3, 11, 19, 28, 36, 44, 53, 61, 69, 78, 86, 94];
/// Clients of one list and register, so that they meet.
const CLIENTS_PER_KEY: u64 = 2;
/// Between two transactions of one client: two cores carry the bank as well.
const CLIENT_PAUSE: Duration = Duration::from_millis(800);

/// What is asked for.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) minutes: u64,
    pub(crate) seed: u64,
    pub(crate) store: Store,
    pub(crate) build: bool,
}

pub(crate) fn run(wanted: &Wanted) -> Result<ExitCode> {
    atoll_programs::postgres()?;
    if wanted.build {
        println!("building atoll and bank");
        binaries::build()?;
    }
    let output = target().join("campaign");
    fs::create_dir_all(&output).with_context(|| output.display().to_string())?;
    let lock = fs::File::create(output.join("lock"))?;
    ensure!(
        lock.try_lock().is_ok(),
        "another campaign is at work on this machine; wait for its end"
    );
    println!("seed {}", wanted.seed);
    let means = Means::of_this_machine(&output);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let findings = runtime.block_on(async {
        let runtime = Runtime::real(RealOptions::default());
        let setting = Setting {
            name: "campaign",
            output: output.clone(),
            round_trip_ms: None,
            store: wanted.store.clone(),
            guard_window_seconds: Some(GUARD_WINDOW_SECONDS),
            disks: means.disks(),
        };
        let mut stage = Stage::open(runtime, binaries::built()?, setting).await?;
        let findings = play(&mut stage, &means, wanted).await;
        let good = findings.as_ref().is_ok_and(Findings::sound);
        stage.end().await?;
        if !good {
            println!("all logs are kept: {}/log", stage.directory().display());
        }
        findings
    })?;
    findings.write(&output)?;
    println!("{}", findings.in_words());
    println!("{}", output.join("report.json").display());
    if findings.sound() {
        return Ok(ExitCode::SUCCESS);
    }
    println!(
        "again with: cargo xtask campaign --minutes {} --seed {}",
        wanted.minutes, wanted.seed
    );
    Ok(ExitCode::FAILURE)
}

/// A seed that no one has chosen.
pub(crate) fn seed_of_now() -> u64 {
    Runtime::real(RealOptions::default()).wall_clock().0
}

async fn play(stage: &mut Stage, means: &Means, wanted: &Wanted) -> Result<Findings> {
    let mut findings = Findings::new(wanted.seed, means.skipped());
    let mut chance = Chance::new(wanted.seed);
    let mut told: Vec<Event> = Vec::new();
    let mut numbers = Numbers::default();
    let links = stage.world.links()?;
    stage.begin_load().await?;
    let workloads = begin_workloads(stage, wanted.seed).await?;
    let slowed = RefCell::new(Vec::new());
    let end = Instant::now() + Duration::from_secs(wanted.minutes * 60);
    while Instant::now() < end {
        sleep(BREATH).await;
        let status = stage.ask().status().await?;
        numbers.watch(&status, &mut findings);
        let fault = chance.fault(stage, means)?;
        let ordered = chance.orders_meanwhile().then(|| chance.order(&status));
        let at = stage.now_ms();
        stage.mark("fault", &fault.to_string())?;
        println!("  {fault}");
        let cells = events::owned(&status, |_, _| true)?;
        findings.fault(&fault);
        let asked = async {
            match &ordered {
                Some(order) => Some(act::order(stage, order).await),
                None => None,
            }
        };
        let (performed, ended) = tokio::join!(act::perform(stage, &fault, &slowed), asked);
        if let Some(ended) = ended {
            findings.operation(&ended);
        }
        let taken_back = act::take_back(stage, means, &links).await;
        if let Err(error) = performed.and(taken_back) {
            findings.anomaly(format!("{fault}: could not be performed: {error:#}"));
        }
        if let Err(error) = recovered(stage, &mut numbers, &mut findings).await {
            findings.anomaly(format!("{fault}: {error:#}"));
            break;
        }
        told.push(event(stage, &fault, at, cells));
    }
    println!("the users stop, and the books are read");
    let history = workloads.end().await?;
    let kept = stage.output().join("history.json");
    fs::write(&kept, serde_json::to_vec(&history)?).with_context(|| kept.display().to_string())?;
    let run = stage.end_load().await?;
    let rows = stage.rows().await?;
    if !rows.equal {
        findings.anomaly(format!(
            "members of a data group hold different rows: {}",
            rows.unequal()
        ));
    }
    findings.books(&run);
    findings.history(&history);
    findings.slowed(slowed.into_inner());
    findings.recoveries(&analyse(&run, &told));
    findings.controls(controls::run());
    Ok(findings)
}

/// Lists and registers, through the SQL routers of all cells, beside the bank.
async fn begin_workloads(stage: &Stage, seed: u64) -> Result<Load> {
    stage
        .ask()
        .apply_schema(&root().join("tests/workloads/workloads.sql"))
        .await?;
    let plan = stage.world.record()?.plan;
    let routers = plan.of_role(Role::SqlRouter, None).into_iter();
    Load::begin(&Options {
        routers: routers
            .filter_map(|router| router.address("sql").map(SocketAddr::V4))
            .collect(),
        shards: WORKLOAD_SHARDS.to_vec(),
        clients_per_key: CLIENTS_PER_KEY,
        pause: CLIENT_PAUSE,
        seed,
    })
}

fn event(
    stage: &Stage,
    fault: &Fault,
    at_unix_ms: u64,
    cells: BTreeMap<String, std::collections::BTreeSet<u16>>,
) -> Event {
    Event {
        name: fault.kind().to_owned(),
        at_unix_ms,
        until_unix_ms: stage.now_ms(),
        cells,
        lost_region: None,
        detection_ms: None,
        convergence_ms: None,
    }
}

/// Waits until every data group is whole, and every shard has an owner that serves.
async fn recovered(
    stage: &mut Stage,
    numbers: &mut Numbers,
    findings: &mut Findings,
) -> Result<()> {
    let limit = Instant::now() + RECOVERY_LIMIT;
    loop {
        // Control may be starting again.
        let status = stage.ask().status().await;
        if let Ok(status) = &status {
            numbers.watch(status, findings);
            if events::complete(status) {
                return Ok(());
            }
        }
        if Instant::now() >= limit {
            let last = match status {
                Ok(status) => serde_json::to_string(&status)?,
                Err(error) => format!("{error:#}"),
            };
            anyhow::bail!("not whole again within {RECOVERY_LIMIT:?}; control last said {last}");
        }
        sleep(Duration::from_millis(200)).await;
    }
}

/// The numbers that may never go back, as the status told them last.
#[derive(Default)]
struct Numbers {
    terms: BTreeMap<String, u64>,
    table: u64,
}

impl Numbers {
    fn watch(&mut self, status: &atoll_api::WorldStatus, findings: &mut Findings) {
        // Of several replicas, another one may answer, and hear of a change a moment later.
        if status.acting.is_some() {
            return;
        }
        for group in &status.groups {
            let Some(open) = &group.open else { continue };
            let term = open.term.get();
            let last = self.terms.entry(group.name.to_string()).or_default();
            if term < *last {
                findings.anomaly(format!("{}: term {term} after {last}", group.name));
            }
            *last = term.max(*last);
        }
        if status.table < self.table {
            findings.anomaly(format!("table {} after {}", status.table, self.table));
        }
        self.table = status.table.max(self.table);
    }
}
