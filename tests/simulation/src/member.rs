//! A simulated member of a data group: the real state machines of `domain/ownership`, the real
//! wire of the agents, and a PostgreSQL that is only as much of one as the protocol can see.

mod actor;
mod beats;
mod calls;
mod control;
mod database;
mod disk;
mod driving;
mod leading;
mod link;
mod port;
mod view;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use atoll_ownership::member;
use atoll_runtime::Runtime;
use atoll_topology::{GroupId, MemberId, ProcessId};
use tokio::sync::{mpsc, watch};

use crate::oracle::Oracle;
use actor::{Acted, Actor, COMMANDS_WAITING_MAX, Command, Handle};
use beats::Beats;
pub(crate) use calls::Peer;
use calls::Peers;
use control::ToControl;
use database::Database;
pub(crate) use disk::{Disk, Volume, Write};
use driving::Driving;
use leading::Cascade;
use link::{Down, Up};
use port::Port;
use view::View;

/// Reports that wait for control.
const OUTBOX_MAX: usize = 64;

/// Which protections of the simulated groups are switched off, to show that the oracles see it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Weakened {
    /// A commit is reported before any standby has it.
    pub acknowledge_before_quorum: bool,
    /// The database lets every cell write every shard.
    pub no_revoke: bool,
    /// What is written once stands in the log twice.
    pub write_twice: bool,
    /// A standby alters what it receives.
    pub alter_received: bool,
    /// No member takes another one's log.
    pub never_linked: bool,
    /// The application calls failed what nobody knows.
    pub unknown_is_failed: bool,
    /// Protections of the member's own state machine.
    pub member: member::Weakened,
}

/// What a simulated member is told at its start.
#[derive(Clone)]
pub(crate) struct Config {
    pub(crate) process: ProcessId,
    pub(crate) group: GroupId,
    pub(crate) member: MemberId,
    pub(crate) sql: SocketAddr,
    pub(crate) calls: SocketAddr,
    pub(crate) replication: SocketAddr,
    pub(crate) control: Vec<SocketAddr>,
    pub(crate) members: BTreeMap<MemberId, Peer>,
    pub(crate) k: usize,
    pub(crate) weakened: Weakened,
    pub(crate) disk: Disk,
    pub(crate) oracle: Oracle,
}

/// Lets PostgreSQL of a member die without its agent: filled while the member's process runs.
#[derive(Clone, Default)]
pub(crate) struct Killer(Arc<Mutex<Option<mpsc::Sender<Command>>>>);

impl Killer {
    pub(crate) fn kill(&self) {
        let commands = self.0.lock();
        let commands = commands.unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(commands) = commands.as_ref() {
            // A process that has just ended has no PostgreSQL to kill.
            drop(commands.try_send(Command::PostgresDies));
        }
    }
}

/// Runs a member for as long as its host does.
pub(crate) async fn serve(config: Config, runtime: Runtime, killer: Killer) -> io::Result<()> {
    let (id, group) = (config.member.clone(), config.group.clone());
    let database = Database::new(config.disk.clone(), config.k, config.weakened);
    let peers = Arc::new(Peers::new(
        &runtime,
        group.clone(),
        id.clone(),
        &config.members,
    ));
    let (commands, inbox) = mpsc::channel(COMMANDS_WAITING_MAX);
    let (asked, links) = mpsc::channel(COMMANDS_WAITING_MAX);
    let (view_out, view) = watch::channel(View::unborn());
    let (exit_out, exit) = watch::channel(None);
    let handle = Handle::new(commands.clone(), view);
    *killer
        .0
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner) = Some(commands);

    let (sql, calls_port) = (
        runtime.listen(config.sql).await?,
        runtime.listen(config.calls).await?,
    );
    let replication = runtime.listen(config.replication).await?;
    let port = Port::new(&runtime, database.clone(), config.oracle.clone());
    let up = Up::new(database.clone());
    let down = Down::new(&runtime, id.clone(), peers.clone(), database.clone());
    let acted = Acted {
        database: database.clone(),
        down,
        up: up.clone(),
        port: port.clone(),
    };
    let heart = Actor::open(
        id.clone(),
        runtime.clone(),
        acted,
        handle.clone(),
        view_out,
        exit_out,
        (config.oracle.clone(), config.weakened),
    );
    let beats = Beats::new(group, id.clone(), handle.view.clone(), database.clone());
    port.listen(sql);
    up.listen(&runtime, replication, asked);
    calls::serve(&runtime, calls_port, handle.clone(), beats.clone());
    beats.dial(&runtime, &peers);
    let cascade = Cascade::default();
    leading::repeat_follow(&runtime, &id, &peers, &handle, (&cascade, config.k));
    leading::watch_isolation(&runtime, &handle, &beats, &port, config.k);
    let (reports, outbox) = mpsc::channel(OUTBOX_MAX);
    let driving = Arc::new(Driving {
        runtime: runtime.clone(),
        member: id,
        actor: handle.clone(),
        peers,
        database,
        reports: reports.clone(),
        oracle: config.oracle.clone(),
        now: Mutex::default(),
    });
    let to_control = Arc::new(ToControl {
        runtime: runtime.clone(),
        process: config.process.clone(),
        actor: handle,
        beats,
        port,
        driving,
        reports,
        cascade,
        exit,
    });
    to_control.run(config.control.clone(), outbox);
    heart.run(inbox, links).await;
    Ok(())
}
