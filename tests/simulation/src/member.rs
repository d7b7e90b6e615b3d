//! A simulated member of a data group. Real: all of the agent that speaks the protocol (beats, calls,
//! driver, leading, the streams to control), the gate of its client port, and the state machine of
//! `domain/ownership`. Simulated: the actor that has that machine's outputs performed (`actor`), and
//! what they act upon: PostgreSQL as far as anybody can see one here (`database`, `postgres`, and on
//! the wire `port`), its `disk`, and the replication links (`link`).

mod actor;
mod database;
mod disk;
mod link;
mod port;
mod postgres;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use atoll_agent::Config;
use atoll_agent::simulation::{
    COMMANDS_WAITING_MAX, Command, Exit, Gate, Handle, Peers, Postgres, View, speak,
};
use atoll_ownership::member;
use atoll_runtime::Runtime;
use tokio::sync::{mpsc, watch};

use crate::oracle::Oracle;
use actor::{Acted, Actor};
use database::Database;
pub(crate) use disk::{Disk, Volume, Write};
use link::{Down, Up};
use port::Port;
use postgres::Simulated;

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

/// What a member finds where it is started.
#[derive(Clone)]
pub(crate) struct Ground {
    pub(crate) disk: Disk,
    pub(crate) killer: Killer,
    pub(crate) oracle: Oracle,
    pub(crate) weakened: Weakened,
}

type Running = Option<(Arc<Database>, mpsc::Sender<Command>)>;

/// Lets PostgreSQL of a member die without its agent: filled while the member's process runs.
#[derive(Clone, Default)]
pub(crate) struct Killer(Arc<Mutex<Running>>);

impl Killer {
    pub(crate) fn kill(&self) {
        if let Some((database, commands)) = self.lock().as_ref()
            && let Some(start) = database.die()
        {
            let exit = Exit::Signal(9);
            // An agent that has just ended need not know.
            drop(commands.try_send(Command::Exited { start, exit }));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Running> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs a member for as long as its host does.
pub(crate) async fn serve(config: Config, runtime: Runtime, ground: Ground) -> io::Result<()> {
    let Ground {
        disk,
        killer,
        oracle,
        weakened,
    } = ground;
    let id = config.member.clone();
    let database = Database::new(disk, usize::from(config.k), weakened);
    let (commands, inbox) = mpsc::channel(COMMANDS_WAITING_MAX);
    let (asked, links) = mpsc::channel(COMMANDS_WAITING_MAX);
    let (view_out, view) = watch::channel(View::unborn());
    *killer.lock() = Some((database.clone(), commands.clone()));
    let handle = Handle { commands, view };

    let (sql, calls) = (
        runtime.listen(config.sql).await?,
        runtime.listen(config.calls).await?,
    );
    let replication = runtime.listen(config.replication).await?;
    let gate = Gate::new();
    let up = Up::new(database.clone());
    let acted = Acted {
        runtime: runtime.clone(),
        database: database.clone(),
        down: Down::new(&runtime, &config, database.clone()),
        up: up.clone(),
        gate: gate.clone(),
        oracle: oracle.clone(),
        weakened,
    };
    let heart = Actor::open(id, acted, &handle, view_out);
    let port = Port {
        runtime: runtime.clone(),
        database: database.clone(),
        gate: gate.clone(),
        oracle: oracle.clone(),
    };
    Arc::new(port).listen(sql);
    up.listen(&runtime, replication, asked);
    let peers = Arc::new(Peers::new(&runtime, &config));
    let postgres: Arc<dyn Postgres> = Arc::new(Simulated {
        runtime: runtime.clone(),
        database,
        oracle,
    });
    speak(&runtime, &config, calls, &handle, &peers, &gate, &postgres);
    heart.run(inbox, links).await;
    Ok(())
}
