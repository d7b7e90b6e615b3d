//! A world with users in it, and what can be done to it: what the demo plays on, and what the bench
//! measures.

mod ask;
pub(crate) mod events;

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use atoll_api::RowHashes;
use atoll_runtime::Runtime;
use atoll_world::{
    Canary, Disks, LocalWorld, OUTSIDE_ROUND_TRIP_MS, Options, Role, Store, Up, worlds_of_this_user,
};
use bank::report::Run;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

pub(crate) use self::ask::Ask;
use crate::binaries::Binaries;
use crate::cargo::root;

/// Transfers a second.
const RATE: u32 = 150;
/// The load ends when it is told to; this is only its limit.
const LOAD_SECONDS_MAX: u32 = 86_400;
/// How long users may take to open their accounts.
const OPEN_LIMIT: Duration = Duration::from_secs(60);
/// How long the load may take to read the books at the end.
const READ_LIMIT: Duration = Duration::from_secs(120);
/// How often a fact is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// How often members that differ are compared again.
const COMPARED_MAX: u32 = 20;

/// Where control keeps its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum StoreKind {
    /// One replica of control outside the cities, with a file
    Redb,
    /// A replica of control and a node of etcd in each of three cities, or of five
    Etcd,
}

impl StoreKind {
    /// The store, with its program.
    pub(crate) fn found(self) -> Result<Store> {
        if self == Self::Redb {
            return Ok(Store::Redb);
        }
        let etcd = atoll_programs::etcd()?;
        println!("  etcd {} in {}", etcd.version, etcd.etcd.display());
        Ok(Store::Etcd { program: etcd.etcd })
    }
}

/// What a world is brought up for.
pub(crate) struct Setting {
    /// Its folder's name among this user's worlds.
    pub(crate) name: &'static str,
    /// Where reports go.
    pub(crate) output: PathBuf,
    /// Round trip between cities; as the topology says without.
    pub(crate) round_trip_ms: Option<u32>,
    /// Where control keeps its records.
    pub(crate) store: Store,
    /// The window of automation's guards; control's default without.
    pub(crate) guard_window_seconds: Option<u64>,
    /// What members stand on.
    pub(crate) disks: Disks,
}

pub(crate) struct Stage {
    pub(crate) world: LocalWorld,
    runtime: Runtime,
    ask: Ask,
    binaries: Binaries,
    output: PathBuf,
    load: Option<Child>,
    orders: File,
}

impl Stage {
    /// Brings the world up, afresh.
    pub(crate) async fn open(
        runtime: Runtime,
        binaries: Binaries,
        setting: Setting,
    ) -> Result<Self> {
        let Setting {
            name,
            output,
            round_trip_ms,
            store,
            guard_window_seconds,
            disks,
        } = setting;
        let directory = worlds_of_this_user().join(name);
        if let Ok(old) = LocalWorld::open(&directory) {
            // One that was kept, or broken off.
            old.down(|_| {}).await?;
        }
        match fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("{}", directory.display()));
            }
            Ok(()) | Err(_) => {}
        }
        let begun = Instant::now();
        println!("bringing up three cities in {}", directory.display());
        let options = Options {
            app: Options::default_app(&binaries.atoll),
            atoll: binaries.atoll.clone(),
            schema: Some(root().join("examples/bank/schema.sql")),
            canary: Some(Canary {
                method: "POST".to_owned(),
                path: "/canary".to_owned(),
            }),
            store,
            outside_round_trip_ms: round_trip_ms.map_or(OUTSIDE_ROUND_TRIP_MS, f64::from),
            automatic_window_seconds: guard_window_seconds,
            disks,
        };
        let topology = topology(&output, round_trip_ms)?;
        let world = LocalWorld::start_up(&Up {
            topology,
            directory,
            options,
        })
        .await?;
        if let Err(error) = world.wait_serving(|text| println!("  {text}")).await {
            world.down(|_| {}).await?;
            return Err(error.into());
        }
        println!("  it serves after {:.1} s", begun.elapsed().as_secs_f64());
        let plan = world.record()?.plan;
        let controls = plan.of_role(Role::Control, None).into_iter();
        let controls = controls.filter_map(|c| c.address("api").map(SocketAddr::V4));
        let ask = Ask::new(
            runtime.clone(),
            controls.collect(),
            &binaries.atoll,
            world.directory().root(),
        );
        let orders = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .open(output.join("orders"))?;
        Ok(Self {
            world,
            runtime,
            ask,
            binaries,
            output,
            load: None,
            orders,
        })
    }

    pub(crate) fn ask(&self) -> &Ask {
        &self.ask
    }

    pub(crate) fn output(&self) -> &Path {
        &self.output
    }

    pub(crate) fn directory(&self) -> &Path {
        self.world.directory().root()
    }

    pub(crate) fn now_ms(&self) -> u64 {
        self.runtime.wall_clock().0
    }

    fn report(&self) -> PathBuf {
        self.output.join("load.json")
    }

    /// Lets the users begin; returns once their transfers do.
    pub(crate) async fn begin_load(&mut self) -> Result<()> {
        let started = self.output.join("started");
        for old in [&started, &self.report()] {
            if old.try_exists()? {
                fs::remove_file(old)?;
            }
        }
        let mut load = Command::new(&self.binaries.bank)
            .arg("load")
            .arg("--world")
            .arg(self.directory())
            .args([
                "--seconds",
                &LOAD_SECONDS_MAX.to_string(),
                "--rate",
                &RATE.to_string(),
            ])
            .arg("--report")
            .arg(self.report())
            .arg("--control")
            .arg(self.output.join("orders"))
            .arg("--started")
            .arg(&started)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("the load cannot be started")?;
        let until = Instant::now() + OPEN_LIMIT;
        while !started.try_exists()? {
            if let Some(status) = load.try_wait()? {
                bail!("the load ended before it began ({status})");
            }
            ensure!(
                Instant::now() < until,
                "the accounts are not open after {OPEN_LIMIT:?}"
            );
            sleep(LOOK_AGAIN).await;
        }
        self.load = Some(load);
        Ok(())
    }

    /// Marks an event in the load's report and on its screen.
    pub(crate) fn mark(&mut self, name: &str, text: &str) -> Result<()> {
        writeln!(self.orders, "event {name} {text}").context("the load cannot be told")
    }

    /// Lets the users stop, and returns what they saw and what the books say.
    pub(crate) async fn end_load(&mut self) -> Result<Run> {
        writeln!(self.orders, "stop")?;
        let mut load = self.load.take().context("there is no load")?;
        // It fails where something acknowledged is missing; the report says what.
        timeout(READ_LIMIT, load.wait())
            .await
            .with_context(|| format!("the books are not read after {READ_LIMIT:?}"))??;
        Run::read(&self.report()).context("the load left no report")
    }

    /// Whether the members of each group hold the same rows. The gateways' canaries go on counting, so a
    /// group may differ by one of them; what really differs does so every time.
    pub(crate) async fn rows(&self) -> Result<RowHashes> {
        let mut rows = self.ask().rows().await?;
        for _ in 1..COMPARED_MAX {
            if rows.equal {
                break;
            }
            let again = self.ask().rows().await?;
            for (known, new) in rows.groups.iter_mut().zip(again.groups) {
                if !known.equal && known.group == new.group {
                    *known = new;
                }
            }
            rows.equal = rows.groups.iter().all(|group| group.equal);
        }
        Ok(rows)
    }

    /// Ends the world, and proves that nothing is left.
    pub(crate) async fn end(&mut self) -> Result<()> {
        self.load = None;
        self.world.down(|_| {}).await?;
        println!("the world is down; no process of it is left");
        Ok(())
    }

    /// Tells how to look at a world that goes on.
    pub(crate) fn keep(&self) {
        let (atoll, dir) = (self.binaries.atoll.display(), self.directory().display());
        println!("the world goes on; look at it with");
        println!("  {atoll} dev status --dir {dir} -o wide");
        println!("  {atoll} status --world {dir}");
        println!("  {atoll} explain user 42 --world {dir}");
        println!("and end it with");
        println!("  {atoll} dev down --dir {dir}");
    }
}

/// The three cities, as far apart as is asked.
fn topology(output: &Path, round_trip_ms: Option<u32>) -> Result<PathBuf> {
    let given = root().join("examples/topologies/three-cities.yaml");
    let Some(round_trip_ms) = round_trip_ms else {
        return Ok(given);
    };
    let text = fs::read_to_string(&given).with_context(|| given.display().to_string())?;
    let mut apart = String::new();
    for line in text.lines() {
        match line.split_once("roundTripMs: {") {
            Some((before, pairs)) => {
                let cities = pairs.trim_end_matches('}').split(", ");
                let pairs = cities.map(|pair| {
                    let city = pair.split(':').next().unwrap_or_default();
                    format!("{city}: {round_trip_ms}")
                });
                let pairs: Vec<String> = pairs.collect();
                apart.push_str(&format!("{before}roundTripMs: {{{}}}", pairs.join(", ")));
            }
            None => apart.push_str(line),
        }
        apart.push('\n');
    }
    let path = output.join("topology.yaml");
    fs::write(&path, apart).with_context(|| path.display().to_string())?;
    Ok(path)
}
