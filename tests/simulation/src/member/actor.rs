//! A simulated member's actor: feeds the real state machine one input at a time and has its
//! outputs performed in order before the next input is taken.

use std::collections::VecDeque;
use std::sync::Arc;

use atoll_ownership::member::{Durable, Input, Mark, Member, Output};
use atoll_ownership::{Answer, Call, DriveOrder, Recruit, Refused, TermRow};
use atoll_runtime::Runtime;
use atoll_streams::agent::PostgresExit;
use atoll_topology::{MemberId, Term};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Duration, Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::Weakened;
use super::beats::ISOLATION_LIMIT;
use super::database::{Database, Mode};
use super::driving::coming_row;
use super::link::{Down, LinkAsked, Up};
use super::port::Port;
use super::view::View;
use crate::oracle::Oracle;

/// Commands that may wait for the member.
pub(crate) const COMMANDS_WAITING_MAX: usize = 128;
/// What a start of PostgreSQL takes.
const START_TIME: Duration = Duration::from_millis(150);
/// Starts that follow one another faster than this wait.
const START_INTERVAL: Duration = Duration::from_secs(1);
/// What a promotion takes.
const PROMOTION_TIME: Duration = Duration::from_millis(15);

/// How a local order ends: done, or why not.
pub(crate) type Done<T> = oneshot::Sender<Result<T, String>>;

/// What the actor is asked or told.
pub(crate) enum Command {
    Call {
        call: Call,
        answer: oneshot::Sender<Answer>,
    },
    Admit {
        volume: String,
    },
    Promote {
        term: Term,
        done: Done<()>,
    },
    Opening {
        order: Box<DriveOrder>,
        done: Done<TermRow>,
    },
    Open {
        term: Term,
        done: Done<()>,
    },
    KeptOpen {
        term: Term,
    },
    StandbyUp {
        start: u64,
    },
    /// A fault: PostgreSQL dies, its agent does not.
    PostgresDies,
    Promoted {
        term: Term,
        run: u64,
        done: Done<()>,
    },
    Opened {
        term: Term,
        result: Result<(TermRow, Vec<TermRow>), String>,
        done: Done<TermRow>,
    },
    Rebuilt {
        rebuild: u64,
        result: Result<(), String>,
    },
    Confirmed(bool),
}

/// A cheap way to the actor.
#[derive(Clone)]
pub(crate) struct Handle {
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) view: watch::Receiver<View>,
    sessions: Arc<std::sync::Mutex<CancellationToken>>,
}

impl Handle {
    pub(crate) fn new(commands: mpsc::Sender<Command>, view: watch::Receiver<View>) -> Self {
        let sessions = Arc::default();
        Self {
            commands,
            view,
            sessions,
        }
    }

    /// Ends when the agent's own sessions are cut.
    pub(crate) fn session(&self) -> CancellationToken {
        let sessions = self.sessions.lock();
        sessions
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
    }

    fn cut_sessions(&self) {
        let mut sessions = self
            .sessions
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        std::mem::take(&mut *sessions).cancel();
    }

    /// One call, answered by our own member.
    pub(crate) async fn call(&self, call: Call) -> Result<Answer, String> {
        let ended = || "the member has ended".to_owned();
        let (answer, answered) = oneshot::channel();
        let sent = self.commands.send(Command::Call { call, answer }).await;
        sent.map_err(|_| ended())?;
        answered.await.map_err(|_| ended())
    }

    /// One local order.
    pub(crate) async fn order<T>(
        &self,
        command: impl FnOnce(Done<T>) -> Command,
    ) -> Result<T, String> {
        let (done, result) = oneshot::channel();
        let sent = self.commands.send(command(done)).await;
        sent.map_err(|_| "the member has ended".to_owned())?;
        result
            .await
            .unwrap_or_else(|_| Err("the order was dropped".into()))
    }
}

struct Born {
    member: Member,
    volume: String,
}

/// The actor.
pub(crate) struct Actor {
    pub(crate) id: MemberId,
    pub(crate) runtime: Runtime,
    pub(crate) database: Arc<Database>,
    pub(crate) down: Arc<Down>,
    pub(crate) up: Arc<Up>,
    pub(crate) port: Arc<Port>,
    pub(crate) handle: Handle,
    pub(crate) view: watch::Sender<View>,
    pub(crate) exit: watch::Sender<Option<PostgresExit>>,
    pub(crate) oracle: Oracle,
    pub(crate) weakened: Weakened,
    born: Option<Born>,
    history: Vec<TermRow>,
    promoting: Option<Done<()>>,
    opening: Option<(Box<DriveOrder>, Done<TermRow>)>,
    start: u64,
    rebuild: u64,
    last_start: Option<Instant>,
}

/// What an actor acts upon.
pub(crate) struct Acted {
    pub(crate) database: Arc<Database>,
    pub(crate) down: Arc<Down>,
    pub(crate) up: Arc<Up>,
    pub(crate) port: Arc<Port>,
}

impl Actor {
    /// Reads what stands on the disk.
    pub(crate) fn open(
        id: MemberId,
        runtime: Runtime,
        acted: Acted,
        handle: Handle,
        view: watch::Sender<View>,
        exit: watch::Sender<Option<PostgresExit>>,
        (oracle, weakened): (Oracle, Weakened),
    ) -> Self {
        let Acted {
            database,
            down,
            up,
            port,
        } = acted;
        let found = database.disk.lock().promise.clone();
        let born = found.map(|(volume, durable)| Born {
            member: Member::weakened(id.clone(), durable, weakened.member),
            volume,
        });
        Self {
            id,
            runtime,
            database,
            down,
            up,
            port,
            handle,
            view,
            exit,
            oracle,
            weakened,
            born,
            history: Vec::new(),
            promoting: None,
            opening: None,
            start: 0,
            rebuild: 0,
            last_start: None,
        }
    }

    /// Serves commands for ever.
    pub(crate) async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        mut links: mpsc::Receiver<LinkAsked>,
    ) {
        self.publish();
        if self.born.is_some() {
            self.input(Input::Started, None).await;
        }
        loop {
            tokio::select! {
                biased;
                command = commands.recv() => match command {
                    Some(command) => self.command(command).await,
                    None => return,
                },
                Some(asked) = links.recv() => self.link_asked(asked),
            }
        }
    }

    fn link_asked(&mut self, asked: LinkAsked) {
        let accepted = self.born.as_ref().is_some_and(|born| {
            !self.weakened.never_linked
                && self.database.mode() != Mode::Down
                && born.member.accepts_link(&asked.from, asked.term)
        });
        let permit = accepted.then(|| self.up.permit(&asked.from));
        drop(asked.answer.send(permit));
    }

    async fn command(&mut self, command: Command) {
        match command {
            Command::Call { call, answer } => self.call(call, answer).await,
            Command::Admit { volume } => self.admit(volume).await,
            Command::Promote { term, done } => {
                self.promoting = Some(done);
                let denied = self.input(Input::Promote { term }, None).await;
                if let Some(done) = self.promoting.take() {
                    drop(done.send(denied.map_or(Ok(()), Err)));
                }
            }
            Command::Opening { order, done } => {
                let (term, grants) = (order.term, order.grants.clone());
                self.opening = Some((order, done));
                let denied = self
                    .input(Input::OpeningTransaction { term, grants }, None)
                    .await;
                if let Some((_, done)) = self.opening.take() {
                    let why = denied.unwrap_or_else(|| "it was not performed".into());
                    drop(done.send(Err(why)));
                }
            }
            Command::Open { term, done } => {
                let denied = self.input(Input::Open { term }, None).await;
                drop(done.send(denied.map_or(Ok(()), Err)));
            }
            Command::KeptOpen { term } => {
                self.port.keep_open(term);
                self.reread();
                self.input(Input::KeptOpen { term }, None).await;
            }
            Command::StandbyUp { start } => {
                if start == self.start {
                    self.database.start();
                    self.input(Input::StandbyUp, None).await;
                }
            }
            Command::PostgresDies => self.postgres_dies().await,
            Command::Promoted { term, run, done } => self.promoted(term, run, done).await,
            Command::Opened { term, result, done } => {
                let result = match result {
                    Ok((row, history)) => {
                        self.history = history;
                        self.input(Input::OpeningAcknowledged { term }, None).await;
                        Ok(row)
                    }
                    Err(reason) => Err(reason),
                };
                drop(done.send(result));
            }
            Command::Rebuilt { rebuild, result } if rebuild == self.rebuild => {
                let input = match result {
                    Ok(()) => Input::Rebuilt,
                    Err(_) => Input::RebuildFailed,
                };
                self.input(input, None).await;
            }
            Command::Rebuilt { .. } => {}
            Command::Confirmed(true) => drop(self.input(Input::Heard, None).await),
            Command::Confirmed(false) => drop(self.input(Input::Isolated, None).await),
        }
    }

    async fn call(&mut self, call: Call, answer: oneshot::Sender<Answer>) {
        let term = call.term();
        if self.born.is_none() {
            let why = Refused::NotReady;
            drop(answer.send(Answer::Refused { term, why }));
            return;
        }
        self.input(Input::Call(call), Some(answer)).await;
    }

    async fn postgres_dies(&mut self) {
        if self.database.mode() == Mode::Down {
            return;
        }
        self.start += 1;
        self.database.quit();
        self.exit.send_replace(Some(PostgresExit {
            unix_ms: self.runtime.wall_clock().0,
            ordered: false,
            status: "signal 9".to_owned(),
        }));
        self.input(Input::PostgresExited, None).await;
    }

    async fn promoted(&mut self, term: Term, run: u64, done: Done<()>) {
        let result = if run == self.start {
            self.database.promote(term)
        } else {
            Err("its PostgreSQL ended".to_owned())
        };
        if result.is_ok() {
            self.input(Input::Promoted { term }, None).await;
        }
        drop(done.send(result));
    }

    /// One step and all that follows from it; why it was denied, if it was.
    async fn input(
        &mut self,
        input: Input,
        answer: Option<oneshot::Sender<Answer>>,
    ) -> Option<String> {
        let mut answer = answer;
        let mut outputs: VecDeque<Output> = self.born.as_mut()?.member.step(input).into();
        let mut denied = None;
        while let Some(output) = outputs.pop_front() {
            match output {
                Output::Persist(durable) => self.persist(durable),
                Output::CompareLogs => match self.database.end() {
                    Some(end) => {
                        let born = self.born.as_mut()?;
                        outputs.extend(born.member.step(Input::Compared(end)));
                    }
                    None => {
                        denied = Some("the log cannot be read".to_owned());
                        self.failed(&mut answer).await;
                        break;
                    }
                },
                Output::Answer(given) => reply(&mut answer, given),
                Output::AnswerPrepared { term } => {
                    let given = self.prepared(term);
                    reply(&mut answer, given);
                }
                Output::AnswerDemoted { term } => match self.database.line() {
                    Some((end, history)) => {
                        reply(&mut answer, Answer::Demoted { term, end, history });
                    }
                    None => {
                        denied = Some("the log cannot be read".to_owned());
                        self.failed(&mut answer).await;
                        break;
                    }
                },
                Output::Deny(why) => denied = Some(why.to_string()),
                output => self.perform(output).await,
            }
        }
        self.publish();
        denied
    }

    /// An act failed: everything is cut, and the caller is told.
    async fn failed(&mut self, answer: &mut Option<oneshot::Sender<Answer>>) {
        let Some(born) = &self.born else { return };
        let promise = born.member.durable().promise;
        self.port.close(promise).await;
        self.down.seal();
        self.up.cut(None);
        self.handle.cut_sessions();
        let why = Refused::Failed {
            reason: "the log cannot be read".to_owned(),
        };
        let term = promise;
        reply(answer, Answer::Refused { term, why });
    }

    fn persist(&mut self, durable: Durable) {
        let Some(born) = &self.born else { return };
        let before = {
            let mut volume = self.database.disk.lock();
            let kept = (born.volume.clone(), durable.clone());
            volume.promise.replace(kept)
        };
        if let Some((_, before)) = before
            && before.promise.supersedes(durable.promise)
        {
            let text = format!(
                "{} promised term {}, then {}",
                self.id, before.promise, durable.promise
            );
            self.oracle.violation("EPOCH_GROWS", &text);
        }
    }

    fn prepared(&self, term: Term) -> Answer {
        let (volume, readable) = self.born.as_ref().map_or_else(Default::default, |born| {
            (born.volume.clone(), born.member.readable())
        });
        let line = self.database.line().filter(|_| readable);
        Answer::Prepared {
            term,
            volume,
            recruit: line.map(|(end, history)| Recruit { end, history }),
        }
    }

    async fn perform(&mut self, output: Output) {
        match output {
            Output::ClosePort => {
                let promise = self.born.as_ref().map(|born| born.member.durable().promise);
                self.port.close(promise.unwrap_or(Term::ZERO)).await;
                self.handle.cut_sessions();
            }
            Output::CutLinks { except } => {
                self.down.seal();
                self.up.cut(except.as_ref());
            }
            // A cut is complete when it is made: what was received is flushed and replayed.
            Output::CutUpstream => self.down.seal(),
            Output::Link { upstream, term } => self.down.link(&upstream, term),
            Output::StopPostgres => {
                self.start += 1;
                self.database.quit();
            }
            Output::StartStandby => self.start_standby(),
            Output::Rebuild { upstream, term, .. } => {
                self.rebuild += 1;
                self.start += 1;
                self.database.quit();
                self.down
                    .rebuild(&upstream, term, self.rebuild, self.handle.commands.clone());
            }
            Output::Promote { term } => self.promote(term),
            Output::OpeningTransaction { term, .. } => self.write_opening(term),
            Output::OpenPort { term } => {
                let volume = self.database.disk.lock();
                self.oracle.opens(&self.id, term, &volume);
                drop(volume);
                self.port.valid_until(Instant::now() + ISOLATION_LIMIT);
                self.port.open(term);
            }
            // Nothing is left to wait for, or the actor's own.
            Output::AwaitReceiverGone
            | Output::Persist(_)
            | Output::CompareLogs
            | Output::Answer(_)
            | Output::AnswerPrepared { .. }
            | Output::AnswerDemoted { .. }
            | Output::Deny(_) => {}
        }
    }

    fn start_standby(&mut self) {
        self.start += 1;
        let now = Instant::now();
        let pause = self.last_start.map_or(Duration::ZERO, |last| {
            (last + START_INTERVAL).saturating_duration_since(now)
        });
        self.last_start = Some(now + pause);
        let (start, commands) = (self.start, self.handle.commands.clone());
        self.runtime.tasks().spawn("start-postgres", async move {
            sleep(pause + START_TIME).await;
            drop(commands.send(Command::StandbyUp { start }).await);
        });
    }

    fn promote(&mut self, term: Term) {
        let Some(done) = self.promoting.take() else {
            return;
        };
        let (run, commands) = (self.start, self.handle.commands.clone());
        self.runtime.tasks().spawn("promote", async move {
            sleep(PROMOTION_TIME).await;
            drop(commands.send(Command::Promoted { term, run, done }).await);
        });
    }

    fn write_opening(&mut self, term: Term) {
        let Some((order, done)) = self.opening.take() else {
            return;
        };
        let (database, commands) = (self.database.clone(), self.handle.commands.clone());
        let cut = self.handle.session();
        self.runtime
            .tasks()
            .spawn("opening-transaction", async move {
                let opening = database.open(coming_row(&order, term), order.grants.clone());
                let result = tokio::select! {
                    opened = opening => opened.map_err(|failed| format!("{failed:?}")),
                    () = cut.cancelled() => Err("the session was cut".to_owned()),
                };
                drop(commands.send(Command::Opened { term, result, done }).await);
            });
    }

    fn reread(&mut self) {
        if let Some((_, history)) = self.database.line() {
            self.history = history;
        }
    }

    async fn admit(&mut self, volume: String) {
        if self.born.is_some() {
            return;
        }
        let durable = Durable {
            promise: Term::new(1),
            upstream: None,
            mark: Mark::None,
        };
        self.database.disk.lock().promise = Some((volume.clone(), durable.clone()));
        let member = Member::weakened(self.id.clone(), durable, self.weakened.member);
        self.born = Some(Born { member, volume });
        self.input(Input::Started, None).await;
    }

    fn publish(&mut self) {
        let mut view = match &self.born {
            Some(born) => View::of(&born.member, &born.volume),
            None => View::unborn(),
        };
        if view.leading.is_some() {
            view.history.clone_from(&self.history);
        }
        self.view.send_if_modified(|old| {
            let changed = *old != view;
            if changed {
                info!(member = %self.id, role = ?view.role, promise = %view.promise, upstream = ?view.upstream, "member");
                *old = view;
            }
            changed
        });
    }
}

fn reply(answer: &mut Option<oneshot::Sender<Answer>>, given: Answer) {
    if let Some(answer) = answer.take() {
        // A caller that gave up calls again.
        drop(answer.send(given));
    }
}
