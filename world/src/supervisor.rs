//! The parent of all processes of a world: `atoll dev supervise`.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use atoll_hosts::{ProcessRef, Spec, Tree, below_directory, kill, terminate, thaw, wait_gone};
use atoll_runtime::Runtime;
use atoll_topology::{ProcessId, Topology};
use thiserror::Error;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tracing::{info, warn};

use crate::board::{Board, Wish};
use crate::config;
use crate::directory::{BadDirectory, Directory};
use crate::keeper::keep;
use crate::links::{LinkError, links_of, write_links};
use crate::number::{NoNumber, WorldNumber};
use crate::options::{BadFile, Options, Record, write_json};
use crate::order::{Answer, LINE_BYTES_MAX, Order};
use crate::orders::carry_out;
use crate::plan::{Place, Plan, Role, TooLarge};

/// Orders that are carried out at the same time.
const ORDERS_AT_ONCE: usize = 16;
/// How long processes may take to end after SIGTERM, for each wave of them.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
/// How long children may outlive their parents.
const ORPHAN_LIMIT: Duration = Duration::from_secs(1);
/// How long killed processes may take to be gone.
const GONE_LIMIT: Duration = Duration::from_secs(10);

/// Why a world cannot be supervised.
#[derive(Debug, Error)]
pub enum SuperviseError {
    /// Another supervisor holds the directory.
    #[error("the world is up already")]
    AlreadyUp,
    /// The directory is of no use.
    #[error(transparent)]
    Directory(#[from] BadDirectory),
    /// A file of ours is of no use.
    #[error(transparent)]
    File(#[from] BadFile),
    /// No world number is free.
    #[error(transparent)]
    Number(#[from] NoNumber),
    /// The topology does not fit.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    /// The topology file is wrong.
    #[error("the topology file is wrong:\n{0}")]
    Topology(String),
    /// The links cannot be written.
    #[error(transparent)]
    Links(#[from] LinkError),
    /// A configuration cannot be written.
    #[error(transparent)]
    Config(#[from] config::ConfigError),
    /// The kernel refused something.
    #[error("{what}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
}

fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> SuperviseError {
    move |source| SuperviseError::Io { what, source }
}

/// A running world, as its supervisor sees it.
pub(crate) struct World {
    pub(crate) directory: Directory,
    pub(crate) record: Record,
    pub(crate) board: Arc<Board>,
    pub(crate) runtime: Runtime,
}

/// Starts every process of the world in `root`, keeps them running and takes orders until the
/// world is ended. `ready` is told once orders are taken.
pub async fn supervise(
    root: &Path,
    runtime: Runtime,
    ready: impl FnOnce(&str),
) -> Result<(), SuperviseError> {
    // A session of our own: a Ctrl-C in the terminal that brought the world up is not for us. It
    // fails where we lead a group already, and then nothing is to be done.
    nix::unistd::setsid().ok();
    let directory = Directory::make(root)?;
    let taken = directory
        .lock()
        .map_err(io_error("the world's lock cannot be taken"))?;
    let Some(_lock) = taken else {
        return Err(SuperviseError::AlreadyUp);
    };

    let options = Options::read(&directory)?;
    let topology = fs::read_to_string(directory.topology())
        .map_err(io_error("the topology file cannot be read"))?;
    let topology = Topology::parse(&topology)
        .map_err(|violations| SuperviseError::Topology(violations.to_string()))?;
    // The same number as before, if it is free: what is on disk may name addresses.
    let before = Record::read(&directory).ok().map(|r| r.plan.world);
    let number = WorldNumber::take(before)?;
    let record = Record {
        plan: Plan::lay_out(&topology, number.get(), &options.store)?,
        options,
    };
    record.write(&directory)?;
    write_links(
        &directory.links(),
        &links_of(&topology, record.options.outside_round_trip_ms),
    )?;
    for place in &record.plan.places {
        // Clocks that were wrong when the world was ended are right again.
        drop(fs::remove_file(directory.clock_of(place.id.as_str())));
    }
    config::write_all(&directory, &record, &topology)?;

    let own = ProcessRef::own().ok_or_else(|| {
        io_error("a process that cannot read its own start time cannot supervise")(
            io::ErrorKind::NotFound.into(),
        )
    })?;
    let board = Arc::new(Board::new(
        &directory,
        number.get(),
        own,
        &record.plan.places,
    ));
    let world = Arc::new(World {
        directory,
        record,
        board,
        runtime,
    });
    // Who is told that orders are taken looks there for who takes them.
    write_json(&world.directory.processes(), &world.board.status())?;
    world.start_all()?;
    let listener = world.listen()?;
    ready(&world.directory.socket().display().to_string());
    world.take_orders(listener).await;
    world.end().await;
    write_json(&world.directory.processes(), &world.board.status())?;
    Ok(())
}

impl World {
    fn start_all(self: &Arc<Self>) -> Result<(), SuperviseError> {
        let tasks = self.runtime.tasks();
        let world = Arc::clone(self);
        tasks.spawn(
            "write processes.json",
            async move { world.keep_file().await },
        );
        for place in &self.record.plan.places {
            let spec = self.spec(place)?;
            let Some(wishes) = self.board.wishes(&place.id) else {
                continue;
            };
            let (board, id) = (Arc::clone(&self.board), place.id.clone());
            tasks.spawn(format!("keep {id}"), keep(board, id, spec, wishes));
        }
        self.board.want(&self.all(), Wish::Run);
        Ok(())
    }

    fn all(&self) -> Vec<ProcessId> {
        self.record
            .plan
            .places
            .iter()
            .map(|p| p.id.clone())
            .collect()
    }

    fn spec(&self, place: &Place) -> Result<Spec, SuperviseError> {
        let id = place.id.as_str();
        let data = self.directory.data_of(id);
        fs::create_dir_all(&data).map_err(io_error("a process's data directory cannot be made"))?;
        let (program, args) = match place.role {
            Role::Application => {
                let line = config::app_command(&self.directory, &self.record, place)?;
                (
                    "/bin/sh".into(),
                    vec!["-c".to_owned(), format!("exec {line}")],
                )
            }
            Role::Etcd => {
                let config = self.directory.config_of(id).display().to_string();
                let args = ["dev", "etcd", "--config", &config].map(str::to_owned);
                (self.record.options.atoll.clone(), args.to_vec())
            }
            role => {
                let config = self.directory.config_of(id).display().to_string();
                let args = vec![role.word().to_owned(), "--config".to_owned(), config];
                (self.record.options.atoll.clone(), args)
            }
        };
        Ok(Spec {
            program,
            args,
            env: self
                .record
                .options
                .disks
                .environment(&self.directory, place),
            directory: data,
            output: self.directory.output_of(id),
            log: self.directory.log_of(id),
        })
    }

    /// Writes `processes.json` after every change, for as long as the world is up.
    async fn keep_file(&self) {
        let mut changes = self.board.changes();
        let stop = self.runtime.shutdown();
        loop {
            if let Err(error) = write_json(&self.directory.processes(), &self.board.status()) {
                warn!(%error, "processes.json cannot be written");
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                // What came before the end has been written: the loop begins with that.
                () = stop.requested() => return,
            }
        }
    }

    fn listen(&self) -> Result<UnixListener, SuperviseError> {
        let socket = self.directory.socket();
        match fs::remove_file(&socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("the old socket cannot be removed")(error));
            }
            Ok(()) | Err(_) => {}
        }
        UnixListener::bind(&socket).map_err(io_error("the socket for orders cannot be made"))
    }

    async fn take_orders(self: &Arc<Self>, listener: UnixListener) {
        let room = Arc::new(tokio::sync::Semaphore::new(ORDERS_AT_ONCE));
        let stop = self.runtime.shutdown();
        loop {
            let Ok(place) = Arc::clone(&room).acquire_owned().await else {
                return;
            };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stop.requested() => return,
            };
            match accepted {
                Ok((stream, _)) => {
                    let world = Arc::clone(self);
                    self.runtime
                        .tasks()
                        .spawn("carry out an order", async move {
                            world.answer(stream).await;
                            drop(place);
                        });
                }
                Err(error) => warn!(%error, "an order could not be taken"),
            }
        }
    }

    async fn answer(self: &Arc<Self>, stream: UnixStream) {
        let (read, mut write) = stream.into_split();
        let mut line = String::new();
        let limit = u64::try_from(LINE_BYTES_MAX).unwrap_or(u64::MAX);
        if let Err(error) = BufReader::new(read.take(limit)).read_line(&mut line).await {
            warn!(%error, "an order could not be read");
            return;
        }
        let (talk, mut heard) = tokio::sync::mpsc::channel(ORDERS_AT_ONCE);
        let order: Order = match serde_json::from_str(&line) {
            Ok(order) => order,
            Err(error) => {
                warn!(%error, "an order that is none");
                return;
            }
        };
        info!(?order, "order");
        let world = Arc::clone(self);
        let doing = order.clone();
        self.runtime.tasks().spawn("an order", async move {
            let answer = match carry_out(&world, &doing, &talk).await {
                Ok(outcome) => Answer::Done(outcome),
                Err(why) => Answer::Refused(why),
            };
            // Whoever asked may have gone away; the order is carried out all the same.
            talk.send(answer).await.ok();
        });
        while let Some(answer) = heard.recv().await {
            let Ok(mut text) = serde_json::to_string(&answer) else {
                return;
            };
            text.push('\n');
            if write.write_all(text.as_bytes()).await.is_err() {
                return;
            }
        }
        if order == Order::Down {
            self.runtime.shutdown().request();
        }
    }

    /// Ends every process: first those that serve users, last those that carry data.
    pub(crate) async fn end(&self) {
        self.board.want(&self.all(), Wish::End);
        let waves: [&[Role]; 3] = [
            &[Role::Gateway, Role::Application, Role::SqlRouter],
            &[Role::Mesh, Role::Control],
            &[Role::Agent, Role::Etcd],
        ];
        for wave in waves {
            let roots: Vec<ProcessRef> = self
                .board
                .status()
                .processes
                .iter()
                .filter(|p| wave.contains(&p.place.role))
                .filter_map(|p| p.process)
                .collect();
            if let Err(error) = self.end_wave(&roots).await {
                warn!(%error, "processes could not be ended");
            }
        }
        match below_directory(&self.directory.data()) {
            Ok(left) if left.is_empty() => info!("nothing is left of the world"),
            Ok(left) => {
                warn!(?left, "processes without a parent are killed");
                self.kill_gone(&left).await;
            }
            Err(error) => warn!(%error, "what is left cannot be told"),
        }
    }

    async fn end_wave(&self, roots: &[ProcessRef]) -> io::Result<()> {
        let whole = Tree::now()?.below(roots);
        thaw(roots)?;
        terminate(roots)?;
        let ended = match wait_gone(roots, DRAIN_LIMIT).await {
            // Children end with their parents, or a moment later.
            Ok(()) => wait_gone(&whole, ORPHAN_LIMIT).await,
            late => late,
        };
        if let Err(late) = ended {
            warn!(left = ?late.left, "processes did not end in time and are killed");
            self.kill_gone(&late.left).await;
            wait_gone(&whole, GONE_LIMIT)
                .await
                .map_err(io::Error::other)?;
        }
        Ok(())
    }

    async fn kill_gone(&self, processes: &[ProcessRef]) {
        match kill(processes) {
            Ok(hit) => {
                if let Err(error) = wait_gone(&hit, GONE_LIMIT).await {
                    warn!(%error, "killed processes are still there");
                }
            }
            Err(error) => warn!(%error, "processes cannot be killed"),
        }
    }
}
