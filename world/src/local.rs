//! A local world from the outside: bring it up, do things to it, end it. This is what `atoll dev`
//! and the tests call.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use atoll_hosts::{
    NotReady, ProcessRef, SlowDisks, SpawnError, Spec, StillAlive, Tree, below_directory, kill,
    ready_line, seen_by, spawn, wait_gone,
};
use atoll_runtime::LinksFile;
use atoll_topology::Topology;
use thiserror::Error;

use crate::directory::{BadDirectory, Directory, worlds_of_this_user};
use crate::disks::{DiskError, members};
use crate::links::{Change, LinkError, Ways, change_link, edit_links, read_links, write_whole};
use crate::options::{BadFile, Options, Record, read_json};
use crate::order::{Order, OrderError, Outcome, give};
use crate::plan::{Plan, Role, TooLarge};
use crate::status::WorldStatus;

/// How long the supervisor may take until it takes orders.
const SUPERVISOR_LIMIT: Duration = Duration::from_secs(20);
/// How long everything may take to be gone after an order to end.
const GONE_LIMIT: Duration = Duration::from_secs(10);

/// What to bring up, and where.
#[derive(Debug, Clone)]
pub struct Up {
    /// The topology file.
    pub topology: PathBuf,
    /// The world's directory; made if it is not there.
    pub directory: PathBuf,
    /// Choices that hold for the whole world.
    pub options: Options,
}

/// Why something could not be done to a world.
#[derive(Debug, Error)]
pub enum WorldError {
    /// The topology file cannot be read.
    #[error("{} cannot be read", path.display())]
    TopologyFile {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The topology file is wrong.
    #[error("{} is wrong:\n{violations}", path.display())]
    Topology {
        /// Which file.
        path: PathBuf,
        /// Each violation with its line and column.
        violations: String,
    },
    /// What control knows of the data in the directory is in another store.
    #[error(
        "the world in {} was begun with the store {before}, and its data belongs to what that store \
         holds: bring it up with --store {before}, or begin another one with --dir",
        path.display()
    )]
    OtherStore {
        /// Which directory.
        path: PathBuf,
        /// The word for its store.
        before: &'static str,
    },
    /// Its directory is of no use.
    #[error(transparent)]
    Directory(#[from] BadDirectory),
    /// A file of the world is of no use.
    #[error(transparent)]
    File(#[from] BadFile),
    /// A world runs there.
    #[error("a world is up in {}; see it with: atoll dev status --dir {}", path.display(), path.display())]
    AlreadyUp {
        /// Its directory.
        path: PathBuf,
    },
    /// No world runs there.
    #[error("the world in {} is not up; bring it up with: atoll dev up", path.display())]
    NotUp {
        /// Its directory.
        path: PathBuf,
    },
    /// The supervisor could not be started.
    #[error("the supervisor cannot be started")]
    Supervisor(#[from] SpawnError),
    /// The supervisor gave up.
    #[error("the supervisor does not come up: {0}")]
    SupervisorNotReady(#[from] NotReady),
    /// An order was not carried out.
    #[error(transparent)]
    Order(#[from] OrderError),
    /// Members do not have the disks that were asked for.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The topology does not fit.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    /// Nobody has the clock that was to be changed.
    #[error("{0:?} means no process of this world whose clock can be changed")]
    NoClock(String),
    /// A link cannot be changed.
    #[error(transparent)]
    Links(#[from] LinkError),
    /// Something is left of a world that was ended.
    #[error("something is left of the world: {0}")]
    Left(#[from] StillAlive),
    /// The kernel refused something.
    #[error("the processes of this machine cannot be looked at")]
    Io(#[from] io::Error),
}

/// A world on this machine.
#[derive(Debug, Clone)]
pub struct LocalWorld {
    directory: Directory,
}

/// The command that becomes the supervisor, on the disks that members are to have; and the means to
/// slow them down.
fn supervisor_on_disks(
    up: &Up,
    directory: &Directory,
    topology: &Topology,
) -> Result<Vec<String>, WorldError> {
    let (atoll, disks) = (&up.options.atoll, &up.options.disks);
    if disks.slow {
        let slow = SlowDisks::in_folder(&directory.slow_disks());
        slow.build().map_err(DiskError::Slow)?;
    }
    // The processes' names are the same in every world, whatever its number.
    let plan = Plan::lay_out(topology, 1, &up.options.store)?;
    Ok(disks.command(directory, &plan, atoll)?)
}

impl LocalWorld {
    /// Starts the supervisor of a new world, or of one that was ended before (its data is kept).
    /// Returns once it takes orders; `wait_serving` waits for the rest.
    pub async fn start_up(up: &Up) -> Result<Self, WorldError> {
        let path = up.topology.clone();
        let text = fs::read_to_string(&up.topology).map_err(|source| WorldError::TopologyFile {
            path: path.clone(),
            source,
        })?;
        let topology = Topology::parse(&text).map_err(|violations| WorldError::Topology {
            path,
            violations: violations.to_string(),
        })?;
        let directory = Directory::make(&up.directory)?;
        match directory.lock()? {
            // Given back at once: from here on it is the supervisor's.
            Some(lock) => drop(lock),
            None => {
                return Err(WorldError::AlreadyUp {
                    path: directory.root().to_path_buf(),
                });
            }
        }
        // Whatever refuses it comes before the first change.
        if let Some(before) = Record::of_earlier(&directory)? {
            let path = directory.root().to_path_buf();
            let (store, disks) = (&before.options.store, &before.options.disks);
            if store.word() != up.options.store.word() {
                let before = store.word();
                return Err(WorldError::OtherStore { path, before });
            }
            if !disks.own_mib.is_empty() {
                return Err(DiskError::Gone { path }.into());
            }
        }
        let mut words = supervisor_on_disks(up, &directory, &topology)?;
        if up.topology.canonicalize()? != directory.topology() {
            fs::write(directory.topology(), text)?;
        }
        up.options.write(&directory)?;
        let root = directory.root().display().to_string();
        words.extend(["dev", "supervise", "--dir", &root].map(str::to_owned));
        let program = words.remove(0).into();
        let spec = Spec {
            program,
            args: words,
            env: Vec::new(),
            directory: directory.root().to_path_buf(),
            output: directory.output_of("supervisor"),
            log: directory.log_of("supervisor"),
        };
        let supervisor = spawn(&spec)?.process();
        ready_line(supervisor, &spec.output, &spec.log, SUPERVISOR_LIMIT).await?;
        Ok(Self { directory })
    }

    /// The world in `root`, up or not.
    pub fn open(root: &Path) -> Result<Self, WorldError> {
        Ok(Self {
            directory: Directory::open(root)?,
        })
    }

    /// This user's worlds that are up, in the usual place.
    pub fn all_up() -> Vec<Self> {
        let entries = fs::read_dir(worlds_of_this_user())
            .into_iter()
            .flatten()
            .flatten();
        let mut found: Vec<Self> = entries
            .filter_map(|entry| Self::open(&entry.path()).ok())
            .filter(|world| world.is_up())
            .collect();
        found.sort_by(|a, b| a.directory.root().cmp(b.directory.root()));
        found
    }

    /// Whether its supervisor lives.
    pub fn is_up(&self) -> bool {
        self.read_status()
            .is_ok_and(|status| status.supervisor.is_alive())
    }

    /// Its files.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Its plan and options.
    pub fn record(&self) -> Result<Record, WorldError> {
        Ok(Record::read(&self.directory)?)
    }

    /// Waits until every process serves; `talk` hears how far it is.
    pub async fn wait_serving(&self, talk: impl FnMut(&str)) -> Result<Outcome, WorldError> {
        self.give(&Order::WaitServing, talk).await
    }

    /// Every process and what it does now.
    pub fn status(&self) -> Result<WorldStatus, WorldError> {
        let mut status = self.read_status()?;
        status.look();
        Ok(status)
    }

    /// Ends processes with -9, at one instant, children included; they stay down. `target` is a
    /// region, zone, cell or process.
    pub async fn kill(&self, target: &str) -> Result<Outcome, WorldError> {
        self.give(
            &Order::Kill {
                target: target.to_owned(),
            },
            |_| {},
        )
        .await
    }

    /// Freezes processes at one instant, children included: silence, as of a lost city.
    pub async fn pause(&self, target: &str) -> Result<Outcome, WorldError> {
        self.give(
            &Order::Pause {
                target: target.to_owned(),
            },
            |_| {},
        )
        .await
    }

    /// Lets frozen processes run.
    pub async fn resume(&self, target: &str) -> Result<Outcome, WorldError> {
        self.give(
            &Order::Resume {
                target: target.to_owned(),
            },
            |_| {},
        )
        .await
    }

    /// Starts processes that are down and waits until they are ready.
    pub async fn start(&self, target: &str) -> Result<Outcome, WorldError> {
        self.give(
            &Order::Start {
                target: target.to_owned(),
            },
            |_| {},
        )
        .await
    }

    /// Takes all that is left of the disks of members that have their own.
    pub async fn fill_disk(&self, target: &str) -> Result<Outcome, WorldError> {
        let target = target.to_owned();
        self.give(&Order::FillDisk { target }, |_| {}).await
    }

    /// Gives it back.
    pub async fn free_disk(&self, target: &str) -> Result<Outcome, WorldError> {
        let target = target.to_owned();
        self.give(&Order::FreeDisk { target }, |_| {}).await
    }

    /// From now on everything takes so much longer that waits for the disk of these members; returns
    /// who they are.
    pub fn slow_disk(&self, target: &str, delay: Duration) -> Result<Vec<String>, WorldError> {
        let record = self.record()?;
        let disks = self.slow_disks(&record)?;
        let members = members(&record.plan, target)?;
        let mut slowed = Vec::new();
        for member in members {
            disks
                .slow(member.id.as_str(), delay)
                .map_err(DiskError::Io)?;
            slowed.push(member.id.to_string());
        }
        Ok(slowed)
    }

    /// How long a small write to the disk of this member takes now, as its own processes feel it.
    pub async fn disk_latency(&self, process: &str) -> Result<Duration, WorldError> {
        let disks = self.slow_disks(&self.record()?)?;
        let at = self.directory.data_of(process);
        let at = seen_by(self.status()?.supervisor.pid, &at);
        Ok(disks.latency(process, &at).await.map_err(DiskError::Slow)?)
    }

    /// How many processes of this member, PostgreSQL's among them, feel its disk slowed down, and how
    /// many do not.
    pub fn on_slow_disk(&self, process: &str) -> Result<(usize, usize), WorldError> {
        let disks = self.slow_disks(&self.record()?)?;
        let status = self.status()?;
        let meant = status.processes.iter().find(|p| p.name.as_str() == process);
        let root = meant.and_then(|p| p.process);
        let all = Tree::now()?.below(root.as_slice());
        let alive: Vec<bool> = all.iter().filter_map(|p| disks.is_under(p.pid)).collect();
        let under = alive.iter().filter(|under| **under).count();
        Ok((under, alive.len() - under))
    }

    fn slow_disks(&self, record: &Record) -> Result<SlowDisks, DiskError> {
        if !record.options.disks.slow {
            return Err(DiskError::NeverSlow);
        }
        Ok(SlowDisks::in_folder(&self.directory.slow_disks()))
    }

    /// From now on the clocks of these processes are wrong by so much (0: they are right); returns
    /// whose. Only what Atoll itself reads off the clock: neither PostgreSQL nor the application.
    pub fn set_clock(&self, target: &str, offset_ms: i64) -> Result<Vec<String>, WorldError> {
        let plan = self.record()?.plan;
        let mut meant = plan.meant_by(target);
        meant.retain(|place| place.role != Role::Application);
        if meant.is_empty() {
            return Err(WorldError::NoClock(target.to_owned()));
        }
        let mut wrong = Vec::new();
        for place in meant {
            let file = self.directory.clock_of(place.id.as_str());
            write_whole(&file, offset_ms.to_string().as_bytes())?;
            wrong.push(place.id.to_string());
        }
        Ok(wrong)
    }

    /// Cuts the link between two regions, silently.
    pub fn cut(&self, a: &str, b: &str, ways: Ways) -> Result<LinksFile, WorldError> {
        let links = self.directory.links();
        Ok(edit_links(&links, |links| {
            change_link(links, [a, b], ways, Change::Cut)
        })?)
    }

    /// Heals the link between two regions.
    pub fn heal(&self, a: &str, b: &str, ways: Ways) -> Result<LinksFile, WorldError> {
        let links = self.directory.links();
        Ok(edit_links(&links, |links| {
            change_link(links, [a, b], ways, Change::Heal)
        })?)
    }

    /// The links as they are now.
    pub fn links(&self) -> Result<LinksFile, WorldError> {
        Ok(read_links(&self.directory.links())?)
    }

    /// Puts all links in this state.
    pub fn set_links(&self, wanted: &LinksFile) -> Result<(), WorldError> {
        edit_links(&self.directory.links(), |links| {
            links.clone_from(wanted);
            Ok(())
        })?;
        Ok(())
    }

    /// Ends the world and proves that no process of it is left; returns how many had to be killed
    /// because nobody looked after them any more. Its data stays.
    pub async fn down(&self, talk: impl FnMut(&str)) -> Result<usize, WorldError> {
        if let Ok(status) = self.status() {
            if status.supervisor.is_alive() {
                self.give(&Order::Down, talk).await?;
                wait_gone(&[status.supervisor], GONE_LIMIT).await?;
            } else {
                // Its processes may live on without their parent.
                let roots: Vec<ProcessRef> =
                    status.processes.iter().filter_map(|p| p.process).collect();
                wait_gone(&kill(&roots)?, GONE_LIMIT).await?;
            }
        }
        let left = below_directory(&self.directory.data())?;
        kill(&left)?;
        wait_gone(&left, GONE_LIMIT).await?;
        let left_still = below_directory(&self.directory.data())?;
        if !left_still.is_empty() {
            return Err(StillAlive {
                left: left_still,
                waited: GONE_LIMIT,
            }
            .into());
        }
        Ok(left.len())
    }

    fn read_status(&self) -> Result<WorldStatus, WorldError> {
        Ok(read_json(&self.directory.processes())?)
    }

    async fn give(&self, order: &Order, talk: impl FnMut(&str)) -> Result<Outcome, WorldError> {
        if !self.is_up() {
            return Err(WorldError::NotUp {
                path: self.directory.root().to_path_buf(),
            });
        }
        Ok(give(&self.directory.socket(), order, talk).await?)
    }
}
