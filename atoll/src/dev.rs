//! `atoll dev`: a whole world on this machine.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use atoll_runtime::{RealOptions, Runtime};
use atoll_world::{
    Canary, Disks, LocalWorld, OUTSIDE_ROUND_TRIP_MS, Options, Outcome, Store, Up, Ways,
    serve_etcd, worlds_of_this_user,
};

use crate::roles::{self, Start};
use crate::status::{Output, show};
use crate::talk;

/// A whole world on one machine.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Bring a world up, and return when it serves
    #[command(
        after_help = "A world that was ended keeps its data: up with the same --dir goes on with it."
    )]
    Up {
        /// The topology: regions, zones, cells, data groups, shards, routes
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
        /// The world's directory [default: /var/tmp/atoll-<uid>/<name of the file>]
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
        /// The application, one for each cell; {cell} {region} {zone} {ip} {http} {sql} {dir} are
        /// filled in [default: the bank beside this binary]
        #[arg(long, value_name = "COMMAND")]
        app: Option<String>,
        /// The application's schema, applied to every shard
        #[arg(long, value_name = "FILE")]
        schema: Option<PathBuf>,
        /// A write that every gateway asks of every cell each second, to know whether it can write
        /// [default: POST /canary with the default application, none with another]
        #[arg(long, value_name = "METHOD PATH")]
        canary: Option<String>,
        /// Where control keeps its records: a file, for one replica outside the regions; or etcd,
        /// with a node and a replica of control in each of three regions
        #[arg(long, value_name = "STORE", value_enum, default_value = "redb")]
        store: StoreKind,
        /// etcd's server program, 3.6 or newer [default: etcd on the PATH, or the one that
        /// `cargo xtask` has built]
        #[arg(long, value_name = "FILE")]
        etcd: Option<PathBuf>,
        /// Round trip between outside and every region
        #[arg(long, value_name = "MS", default_value_t = OUTSIDE_ROUND_TRIP_MS)]
        outside_round_trip_ms: f64,
        /// How long automation remembers a lost region, zone or group: within it, the loss of a
        /// second one is left to a person [default: 600]
        #[arg(long, value_name = "SECONDS")]
        guard_window: Option<u64>,
        /// A disk of their own, of so many MiB, for members: NAME is a process, data group, zone or
        /// region. It is in memory, can be filled, and ends with the world
        #[arg(long = "disk", value_name = "NAME=MIB", value_parser = disk_of)]
        disks: Vec<(String, u32)>,
        /// Let members' disks be slowed down (builds a small library with cc)
        #[arg(long)]
        slow_disks: bool,
    },
    /// End a world, and prove that nothing is left of it
    Down {
        #[command(flatten)]
        which: Which,
    },
    /// Show every process of a world
    Status {
        #[command(flatten)]
        which: Which,
        /// How
        #[arg(short, long, value_enum, default_value = "table")]
        output: Output,
    },
    /// End processes with -9, all at one instant; they stay down until `start`
    Kill(Target),
    /// Start processes that are down, and return when they are ready
    Start(Target),
    /// Freeze processes, all at one instant: silent, as after a power loss
    Pause(Target),
    /// Let frozen processes run
    Resume(Target),
    /// Cut the link between two regions, silently: no reset, no answer
    Cut(Link),
    /// Heal the link between two regions
    Heal(Link),
    /// Fill the disks of members to the last page (those that `up --disk` gave one)
    FillDisk(Target),
    /// Free the disks of members again
    FreeDisk(Target),
    /// Slow down the disks of members: every wait for the disk takes longer (after `up --slow-disks`)
    SlowDisk {
        #[command(flatten)]
        target: Target,
        /// By how much; 0: as fast as ever
        #[arg(value_name = "MS")]
        delay_ms: u32,
    },
    /// Put the clocks of processes forward or back: what Atoll reads off the clock, not PostgreSQL
    /// and not the application
    Clock {
        #[command(flatten)]
        target: Target,
        /// By how much, for instance 2000 or -2000; 0: right again
        #[arg(value_name = "MS", allow_negative_numbers = true)]
        offset_ms: i64,
    },
    /// A node of etcd; started by `up`
    #[command(hide = true)]
    Etcd(Start),
    /// The parent of a world's processes; started by `up`
    #[command(hide = true)]
    Supervise {
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
    },
}

/// Where control keeps its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum StoreKind {
    /// One replica of control, with a file
    Redb,
    /// Three replicas of control, with three nodes of etcd
    Etcd,
}

/// Which world.
#[derive(Debug, clap::Args)]
pub(crate) struct Which {
    /// The world's directory [default: the only world of yours that is up]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Which processes.
#[derive(Debug, clap::Args)]
pub(crate) struct Target {
    /// A region, zone, cell or process (a data group's name means its agents)
    #[arg(value_name = "REGION|ZONE|CELL|PROCESS")]
    target: String,
    #[command(flatten)]
    which: Which,
}

/// Which link.
#[derive(Debug, clap::Args)]
pub(crate) struct Link {
    /// A region, or `outside`
    a: String,
    /// Another region
    b: String,
    /// Only the way from the first to the second
    #[arg(long)]
    one_way: bool,
    #[command(flatten)]
    which: Which,
}

pub(crate) fn run(command: Command) -> ExitCode {
    if let Command::Supervise { dir } = command {
        return supervise(&dir);
    }
    if let Command::Etcd(start) = command {
        return roles::serve("etcd", &start, |config, runtime| {
            serve_etcd(config, runtime, roles::ready("etcd"))
        });
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let done = match runtime.context("no async runtime") {
        Ok(runtime) => runtime.block_on(carry_out(command)),
        Err(error) => Err(error),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => talk::fail(error.as_ref()),
    }
}

fn supervise(dir: &Path) -> ExitCode {
    if let Err(error) = atoll_telemetry::init("supervisor", &[]) {
        return talk::fail(&error);
    }
    atoll_runtime::main_with(
        "supervisor",
        RealOptions::default(),
        async |runtime: Runtime| {
            let ready = |socket: &str| talk::data(&format!("ready supervisor {socket}"));
            atoll_world::supervise(dir, runtime, ready).await
        },
    )
}

async fn carry_out(command: Command) -> Result<()> {
    match command {
        Command::Up {
            file,
            dir,
            app,
            schema,
            canary,
            store,
            etcd,
            outside_round_trip_ms,
            guard_window,
            disks,
            slow_disks,
        } => {
            let atoll = std::env::current_exe().context("this binary's own path is unknown")?;
            let canary = match (&canary, &app) {
                (Some(words), _) => Some(canary_of(words)?),
                (None, None) => Some(canary_of(DEFAULT_CANARY)?),
                (None, Some(_)) => None,
            };
            let app = app.unwrap_or_else(|| Options::default_app(&atoll));
            let schema = schema
                .map(|s| s.canonicalize())
                .transpose()
                .context("--schema")?;
            let directory = match dir {
                Some(dir) => dir,
                None => default_directory(&file)?,
            };
            let options = Options {
                atoll,
                app,
                schema,
                canary,
                store: store_of(store, etcd)?,
                outside_round_trip_ms,
                automatic_window_seconds: guard_window,
                disks: Disks {
                    own_mib: disks.into_iter().collect(),
                    slow: slow_disks,
                },
            };
            up(&Up {
                topology: file,
                directory,
                options,
            })
            .await
        }
        Command::Down { which } => {
            let world = find(&which)?;
            let strays = world.down(progress()).await?;
            let root = world.directory().root().display();
            let killed = match strays {
                0 => String::new(),
                n => format!(" ({n} stray processes were killed)"),
            };
            talk::say(&format!("down; no process of {root} is left{killed}"));
            Ok(())
        }
        Command::Status { which, output } => {
            talk::data(&show(&find(&which)?.status()?, output)?);
            Ok(())
        }
        Command::Kill(target) => told("killed", find(&target.which)?.kill(&target.target).await?),
        Command::Start(target) => {
            told("started", find(&target.which)?.start(&target.target).await?)
        }
        Command::Pause(target) => told("frozen", find(&target.which)?.pause(&target.target).await?),
        Command::Resume(target) => {
            told("thawed", find(&target.which)?.resume(&target.target).await?)
        }
        Command::Cut(link) => {
            find(&link.which)?.cut(&link.a, &link.b, ways(&link))?;
            talk::say(&format!("cut: {}", link.words()));
            Ok(())
        }
        Command::Heal(link) => {
            find(&link.which)?.heal(&link.a, &link.b, ways(&link))?;
            talk::say(&format!("healed: {}", link.words()));
            Ok(())
        }
        Command::FillDisk(target) => told(
            "filled the disks of",
            find(&target.which)?.fill_disk(&target.target).await?,
        ),
        Command::FreeDisk(target) => told(
            "freed the disks of",
            find(&target.which)?.free_disk(&target.target).await?,
        ),
        Command::SlowDisk { target, delay_ms } => {
            let delay = Duration::from_millis(delay_ms.into());
            let slowed = find(&target.which)?.slow_disk(&target.target, delay)?;
            changed(&format!("disks slower by {delay_ms} ms"), &slowed)
        }
        Command::Clock { target, offset_ms } => {
            let wrong = find(&target.which)?.set_clock(&target.target, offset_ms)?;
            changed(&format!("clocks off by {offset_ms} ms"), &wrong)
        }
        Command::Supervise { .. } | Command::Etcd(_) => Ok(()),
    }
}

/// `g1=512`
fn disk_of(words: &str) -> Result<(String, u32), String> {
    let (name, mib) = words.split_once('=').ok_or("expected NAME=MIB")?;
    match mib.parse() {
        Ok(mib) if mib > 0 => Ok((name.to_owned(), mib)),
        _ => Err(format!("{mib:?} is no number of MiB")),
    }
}

impl Link {
    fn words(&self) -> String {
        let arrow = if self.one_way { "→" } else { "↔" };
        format!("{} {arrow} {}", self.a, self.b)
    }
}

fn ways(link: &Link) -> Ways {
    if link.one_way {
        Ways::OneWay
    } else {
        Ways::Both
    }
}

/// The store, with its program.
fn store_of(kind: StoreKind, etcd: Option<PathBuf>) -> Result<Store> {
    if kind == StoreKind::Redb {
        return Ok(Store::Redb);
    }
    let program = match etcd {
        Some(named) => Some(named),
        None => find_etcd()?,
    };
    let program = program.context(
        "no etcd is found: name its server program with --etcd FILE (3.6 or newer; Debian's 3.4 has \
         known faults), or let `cargo xtask demo --store etcd` build it",
    )?;
    let program = program.canonicalize().context("--etcd")?;
    Ok(Store::Etcd { program })
}

/// On the PATH, or where a checkout keeps what it has built: `target/tools/etcd-*/etcd`.
fn find_etcd() -> Result<Option<PathBuf>> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&paths).map(|path| path.join("etcd"));
    let binary = std::env::current_exe().context("this binary's own path is unknown")?;
    let tools = binary.ancestors().map(|above| above.join("tools"));
    let mut built: Vec<PathBuf> = tools
        .filter_map(|tools| std::fs::read_dir(tools).ok())
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| name.starts_with("etcd-"))
        })
        .map(|path| path.join("etcd"))
        .collect();
    built.sort();
    // What was built here is surely new enough.
    let mut all = built.into_iter().rev().chain(on_path);
    Ok(all.find(|path| path.is_file()))
}

/// What the application that comes with Atoll has for it.
const DEFAULT_CANARY: &str = "POST /canary";

fn canary_of(words: &str) -> Result<Canary> {
    let (method, path) = words
        .split_once(' ')
        .with_context(|| format!("--canary {words:?}: expected a method and a path"))?;
    Ok(Canary {
        method: method.to_owned(),
        path: path.trim().to_owned(),
    })
}

fn default_directory(file: &Path) -> Result<PathBuf> {
    let name = file
        .file_stem()
        .and_then(|s| s.to_str())
        .context("--file has no name; give --dir")?;
    Ok(worlds_of_this_user().join(name))
}

async fn up(up: &Up) -> Result<()> {
    talk::say(&format!(
        "bringing up {} in {}",
        up.topology.display(),
        up.directory.display()
    ));
    let world = LocalWorld::start_up(up).await?;
    let root = world.directory().root().display().to_string();
    if let Err(error) = world.wait_serving(progress()).await {
        talk::say(&format!(
            "it is left as it is; see {root}/log, then: atoll dev down --dir {root}"
        ));
        return Err(error.into());
    }
    let status = world.status()?;
    let edges: Vec<String> = status
        .processes
        .iter()
        .filter_map(|p| {
            p.addresses
                .get("edge")
                .map(|at| format!("  http://{at}  {}", p.name))
        })
        .collect();
    talk::say(&format!(
        "it serves; {} processes, gateways at\n{}",
        status.processes.len(),
        edges.join("\n")
    ));
    talk::data(&root);
    Ok(())
}

/// One line that changes on a terminal, one line per change elsewhere.
fn progress() -> impl FnMut(&str) {
    let live = std::io::stderr().is_terminal();
    let bar = live.then(|| {
        let bar = indicatif::ProgressBar::new_spinner();
        bar.enable_steady_tick(Duration::from_millis(100));
        bar
    });
    move |text: &str| match &bar {
        Some(bar) => bar.set_message(text.to_owned()),
        None => talk::say(text),
    }
}

/// The world that is meant: named by its directory, or the only one that is up.
fn find(which: &Which) -> Result<LocalWorld> {
    if let Some(dir) = &which.dir {
        return Ok(LocalWorld::open(dir)?);
    }
    let mut up = LocalWorld::all_up();
    match (up.pop(), up.is_empty()) {
        (None, _) => bail!("no world of yours is up; bring one up with: atoll dev up -f FILE"),
        (Some(world), true) => Ok(world),
        (Some(last), false) => {
            up.push(last);
            let each = up
                .iter()
                .map(|w| format!("  --dir {}", w.directory().root().display()));
            bail!(
                "several worlds are up; say which one:\n{}",
                each.collect::<Vec<_>>().join("\n")
            )
        }
    }
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "the last expression of every arm that calls it"
)]
fn changed(what: &str, names: &[String]) -> Result<()> {
    talk::say(&format!("{what}: {}", names.join(" ")));
    Ok(())
}

fn told(done: &str, outcome: Outcome) -> Result<()> {
    let names = outcome.processes.join(" ");
    match outcome.signalled {
        0 => talk::say(&format!("{done}: {names}")),
        n => talk::say(&format!(
            "{done}: {names} ({n} processes with their children)"
        )),
    }
    Ok(())
}
