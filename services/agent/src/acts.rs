//! What the member's outputs mean on this machine, one act each.

use std::pin::pin;
use std::sync::Arc;

use atoll_ownership::member::{Member, Output};
use atoll_ownership::{Answer, DriveOrder, LogEnd, Recruit, TermRow};
use atoll_postgres::{
    Launcher, Line, Opening, Session, Timelines, cut_torn_tail, forget_unreached, left_at,
    open_term, placeholders, promote, read_timelines,
};
use atoll_runtime::Runtime;
use atoll_topology::{CellId, Lsn, Term};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::{Duration, Instant, sleep, timeout};
use tracing::{debug, error, warn};

use crate::actor::{Command, Done, Opened};
use crate::beats::ISOLATION_LIMIT;
use crate::config::FailPoint;
use crate::database::Database;
use crate::error::Error;
use crate::gate::Gate;
use crate::link::{Down, Up};

/// The receiver of a cut link is gone within milliseconds; replay may take longer.
const RECEIVER_GONE_LIMIT: Duration = Duration::from_secs(10);

/// PostgreSQL does not announce the end of its receiver.
const LOOK: Duration = Duration::from_millis(1);

/// Starts that follow one another faster than this wait.
const START_INTERVAL: Duration = Duration::from_secs(1);

/// Who was told to end starts again only after this: whoever takes over has the others, and users
/// wait for it, on a machine that often carries both.
const START_AFTER_END: Duration = Duration::from_millis(500);

/// Backends whose clients were cut off are left alone for so long.
const PARTED_AFTER: Duration = Duration::from_millis(500);

/// Everything that the member's outputs act upon.
pub(crate) struct Acts {
    pub(crate) runtime: Runtime,
    pub(crate) database: Arc<Database>,
    /// Our receiver's link.
    pub(crate) down: Arc<Down>,
    /// For rewinds and clones.
    pub(crate) copy: Arc<Down>,
    /// The links of standbys to us.
    pub(crate) up: Arc<Up>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) fail_after: Option<FailPoint>,
    /// Every cell of the world.
    pub(crate) cells: Vec<CellId>,
    /// Who waits for the promotion that is being ordered.
    pub(crate) promoting: Option<Done<()>>,
    /// What the opening transaction that is being ordered writes, and who waits for it.
    pub(crate) opening: Option<(Box<DriveOrder>, Done<TermRow>)>,
    /// Names the last rewind or clone.
    pub(crate) rebuild: u64,
    pub(crate) rebuilding: Arc<Mutex<()>>,
    pub(crate) last_start: Option<Instant>,
    pub(crate) ended: Option<Instant>,
}

impl Acts {
    /// Performs one output. An error: nothing that follows may be performed.
    pub(crate) async fn perform(
        &mut self,
        output: Output,
        member: &Member,
        answer: &mut Option<(Term, oneshot::Sender<Answer>)>,
    ) -> Result<(), Error> {
        match output {
            Output::ClosePort => {
                self.close_port(member.durable().promise).await;
                self.database.cut_sessions();
            }
            Output::CutLinks { except } => {
                self.down.seal().await;
                self.copy.seal().await;
                self.up.cut(except.as_ref()).await;
            }
            Output::CutUpstream => {
                self.down.seal().await;
                self.copy.seal().await;
            }
            Output::AwaitReceiverGone => self.receiver_gone().await?,
            Output::AnswerDemoted { term } => {
                let Line { end, history, .. } = self.database.line().await?;
                if let Some((_, answer)) = answer.take() {
                    // A driver that gave up calls again.
                    drop(answer.send(Answer::Demoted { term, end, history }));
                }
            }
            Output::Link { upstream, term } => {
                if self.down.upstream().is_some_and(|old| old != upstream) {
                    self.down.seal().await;
                }
                self.down.link(&upstream, term);
            }
            Output::StopPostgres => {
                self.database.quit().await?;
                self.ended = Some(Instant::now());
                self.gate.part();
            }
            Output::StartStandby => self.start_standby(member),
            Output::Rebuild {
                upstream,
                term,
                path,
            } => {
                self.rebuild += 1;
                // A rewind or clone from before loses its source and ends.
                self.copy.seal().await;
                self.copy.link(&upstream, term);
                crate::rejoin::spawn(self, path);
            }
            Output::Promote { term } => {
                self.up.hold_below(term);
                self.promote(term);
            }
            Output::OpeningTransaction { term, grants: _ } => self.write_opening(term),
            Output::OpenPort { term } => {
                self.gate.part();
                self.gate.valid_until(Instant::now() + ISOLATION_LIMIT);
                self.gate.open(term);
            }
            // The actor's own.
            Output::Persist(_)
            | Output::CompareLogs
            | Output::Answer(_)
            | Output::AnswerPrepared { .. }
            | Output::Deny(_) => {}
        }
        Ok(())
    }

    /// Cuts the clients; their backends end when the switch is over, or their PostgreSQL.
    async fn close_port(&self, promise: Term) {
        self.gate.close(promise).await;
        let gate = self.gate.clone();
        let later = async move {
            sleep(PARTED_AFTER).await;
            gate.part();
        };
        self.runtime.tasks().spawn("part", later);
    }

    /// Port, links and sessions: from here on nothing that this member does is told to anyone.
    pub(crate) async fn cut_everything(&self, promise: Term) {
        self.close_port(promise).await;
        self.down.seal().await;
        self.copy.seal().await;
        self.up.cut(None).await;
        self.database.cut_sessions();
    }

    /// The answer to `Prepare`: a recruit only where the log can be read.
    pub(crate) async fn prepared(&mut self, term: Term, volume: &str, readable: bool) -> Answer {
        let recruit = match self.database.line().await {
            Ok(line) if readable => {
                if self.must_forget(&line).await {
                    None
                } else {
                    self.recruit(line)
                }
            }
            Ok(_) => None,
            Err(error) => {
                // While it starts, its driver asks often.
                debug!(%error, "no recruit: the log cannot be read");
                None
            }
        };
        Answer::Prepared {
            term,
            volume: volume.to_owned(),
            recruit,
        }
    }

    /// What our log shows; none where its line cannot be told.
    fn recruit(&self, line: Line) -> Option<Recruit> {
        let Line {
            state,
            end,
            history,
        } = line;
        // Before the first term every log is on the first timeline.
        let written = history.last().map_or(1, |row| row.timeline);
        let left = if end.timeline == written {
            end.position.lsn
        } else {
            let timelines = read_timelines(&self.database.options.layout).ok()?;
            left_at(&timelines, written, end.timeline)?
        };
        Some(Recruit {
            end,
            history,
            left,
            primary: !state.standby,
        })
    }

    /// A standby that has heard of a timeline that it has not reached would be promoted as that
    /// one's child. It forgets it, starts again, and is a recruit at the next call.
    async fn must_forget(&mut self, line: &Line) -> bool {
        let (timeline, end) = (line.end.timeline, line.end.position.lsn);
        let layout = &self.database.options.layout;
        let unreached = |timelines: &Timelines| {
            timelines
                .iter()
                .any(|(id, fork)| *id > timeline && fork.at >= end)
        };
        if !line.state.standby
            || !read_timelines(layout).is_ok_and(|timelines| unreached(&timelines))
        {
            return false;
        }
        warn!(
            timeline,
            "a timeline that was not reached is forgotten; starting again"
        );
        if let Err(error) = self.database.quit().await {
            error!(%error, "PostgreSQL could not be ended");
            return true;
        }
        if let Err(error) = forget_unreached(&self.database.options.layout, timeline, end) {
            error!(%error, "a history file could not be removed");
        }
        self.spawn_start();
        true
    }

    /// The streaming receiver is gone, what it wrote is flushed, and all of it is replayed. Where
    /// the log ends within a record the two ends never meet; but a receiver connects anew only
    /// when its PostgreSQL has nothing left to replay.
    async fn receiver_gone(&self) -> Result<(), Error> {
        let limit_ms = RECEIVER_GONE_LIMIT.as_millis();
        let gone = async {
            let mut held = pin!(self.down.receiver_held());
            let (mut tried_anew, mut was_gone) = (false, false);
            loop {
                let log = self.database.log().await?;
                let gone = log.receiver.is_none();
                // What it flushed last counts only when it was gone before we looked.
                let replayed = was_gone && log.received == Some(log.end);
                if gone && (tried_anew || replayed) {
                    return Ok(());
                }
                if gone && !was_gone {
                    was_gone = true;
                    continue;
                }
                was_gone = gone;
                tokio::select! {
                    () = &mut held, if !tried_anew => tried_anew = true,
                    () = sleep(LOOK) => {}
                }
            }
        };
        let too_long = Error::TooLong {
            what: "the end of the receiver",
            limit_ms,
        };
        timeout(RECEIVER_GONE_LIMIT, gone)
            .await
            .unwrap_or(Err(too_long))
    }

    /// Ends PostgreSQL, cuts off a record that nobody will send the rest of, and starts again.
    pub(crate) async fn cut_tail(&mut self, end: LogEnd) {
        if let Err(error) = self.database.quit().await {
            error!(%error, "PostgreSQL could not be ended");
            return;
        }
        let layout = &self.database.options.layout;
        match cut_torn_tail(layout, end.timeline, end.position.lsn) {
            Ok(true) => warn!(end = %end.position.lsn, "a torn record was cut off; starting again"),
            Ok(false) => {}
            Err(error) => error!(%error, "a torn record could not be cut off"),
        }
        self.spawn_start();
    }

    /// Starts beside; `StandbyUp` follows. A standby that knows its upstream is linked at once:
    /// after a rewind it needs the log to become readable at all.
    fn start_standby(&mut self, member: &Member) {
        let durable = member.durable();
        if let Some(upstream) = &durable.upstream {
            self.down.link(upstream, durable.promise);
        }
        self.spawn_start();
    }

    fn spawn_start(&mut self) {
        let left = |since: Option<Instant>, interval: Duration| {
            since.map_or(Duration::ZERO, |since| {
                interval.saturating_sub(since.elapsed())
            })
        };
        let pause = left(self.last_start, START_INTERVAL).max(left(self.ended, START_AFTER_END));
        self.last_start = Some(Instant::now() + pause);
        let start = self.database.order_start();
        let (database, commands) = (self.database.clone(), self.commands.clone());
        let shutdown = self.runtime.shutdown();
        let spawner = self.runtime.clone();
        self.runtime.tasks().spawn("start-postgres", async move {
            sleep(pause).await;
            loop {
                match database.start(start).await {
                    Ok(Some(server)) => {
                        watch_exit(&spawner, &server, start, commands.clone());
                        let (runtime, layout) = (&database.runtime, &database.options.layout);
                        match server.ready(|| Session::open(runtime, layout)).await {
                            Ok(_) => drop(commands.send(Command::StandbyUp { start }).await),
                            // Its end is told by whoever watches it.
                            Err(error) => warn!(%error, "PostgreSQL did not come up"),
                        }
                        return;
                    }
                    Ok(None) => return,
                    Err(error) => {
                        error!(%error, "PostgreSQL could not be started; trying again");
                        tokio::select! {
                            () = sleep(START_INTERVAL) => {}
                            () = shutdown.requested() => return,
                        }
                    }
                }
            }
        });
    }

    /// Placeholders last, then the promotion; its end is a command.
    fn promote(&mut self, term: Term) {
        let Some(done) = self.promoting.take() else {
            return;
        };
        let (database, commands) = (self.database.clone(), self.commands.clone());
        // Of the PostgreSQL whose log was read: one that was started again meanwhile is not promoted.
        let session = self.database.warm();
        self.runtime.tasks().spawn("promote", async move {
            let promoted = async {
                let timeline = u32::try_from(term.get())
                    .map_err(|_| "the term is beyond PostgreSQL's timelines".to_owned())?;
                let session = session.ok_or("its PostgreSQL has just ended")?;
                let launcher: &Launcher = &database.options.launcher;
                let layout = &database.options.layout;
                placeholders(layout, launcher.account(), timeline)
                    .map_err(|error| error.to_string())?;
                promote(&session).await.map_err(|error| error.to_string())
            };
            // The opening transaction finds its session there.
            let (result, ()) = tokio::join!(promoted, database.open_ahead());
            // Without an actor there is nobody to lead.
            drop(
                commands
                    .send(Command::Promoted { term, result, done })
                    .await,
            );
        });
    }

    /// Over a session of our own, before any client; its end is a command.
    fn write_opening(&mut self, term: Term) {
        let Some((order, done)) = self.opening.take() else {
            return;
        };
        let (database, commands) = (self.database.clone(), self.commands.clone());
        let cells = self.cells.clone();
        self.runtime
            .tasks()
            .spawn("opening-transaction", async move {
                // PostgreSQL says which timeline it is, and where it forked.
                let row = order.term_row(0, Lsn(0));
                let opened = async {
                    let session = database.session().await?;
                    let moves = order.grants.clone();
                    let opening = Opening { row, moves, cells };
                    let row = open_term(&session, &database.options.layout, opening).await?;
                    let history = database.line().await?.history;
                    Ok::<_, Error>(Opened { row, history })
                };
                let result = opened.await.map_err(|error| crate::orders::in_full(&error));
                drop(commands.send(Command::Opened { term, result, done }).await);
            });
    }

    /// The fail point between a promise and its answer.
    pub(crate) fn die_if_promised(&self, called: bool) {
        if called && self.fail_after == Some(FailPoint::Promise) {
            die();
        }
    }
}

/// As a crash would: no drop, no goodbye.
pub(crate) fn die() {
    error!("the fail point of the configuration was reached");
    kill(Pid::this(), Signal::SIGKILL).ok();
}

fn watch_exit(
    runtime: &Runtime,
    server: &atoll_postgres::Server,
    start: u64,
    commands: mpsc::Sender<Command>,
) {
    let mut running = server.running().clone();
    runtime.tasks().spawn("watch-postgres", async move {
        let exit = running.exited().await;
        // Without an actor nobody needs to know.
        drop(commands.send(Command::Exited { start, exit }).await);
    });
}
