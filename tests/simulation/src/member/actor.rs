//! A simulated member's actor: feeds the real state machine one input at a time and has its
//! outputs performed in order before the next input is taken.

use std::collections::VecDeque;
use std::sync::Arc;

use atoll_agent::simulation::{
    Command, Confirmed, Done, Exit, Gate, Handle, ISOLATION_LIMIT, Opened, View,
};
use atoll_ownership::member::{Durable, Input, Mark, Member, Output};
use atoll_ownership::{Answer, Call, DriveOrder, Recruit, Refused, TermRow};
use atoll_runtime::Runtime;
use atoll_streams::agent::PostgresExit;
use atoll_topology::{Lsn, MemberId, Term};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Duration, Instant, sleep};
use tracing::info;

use super::Weakened;
use super::database::{Database, Mode};
use super::link::{Down, LinkAsked, Up};
use crate::oracle::Oracle;

/// What a start of PostgreSQL takes.
const START_TIME: Duration = Duration::from_millis(150);
/// Starts that follow one another faster than this wait.
const START_INTERVAL: Duration = Duration::from_secs(1);
/// What a promotion takes.
const PROMOTION_TIME: Duration = Duration::from_millis(15);

struct Born {
    member: Member,
    volume: String,
}

/// The actor.
pub(crate) struct Actor {
    id: MemberId,
    acted: Acted,
    commands: mpsc::Sender<Command>,
    view: watch::Sender<View>,
    born: Option<Born>,
    history: Vec<TermRow>,
    exit: Option<PostgresExit>,
    promoting: Option<Done<()>>,
    opening: Option<(Box<DriveOrder>, Done<TermRow>)>,
    rebuild: u64,
    last_start: Option<Instant>,
}

/// What an actor acts upon.
pub(crate) struct Acted {
    pub(crate) runtime: Runtime,
    pub(crate) database: Arc<Database>,
    pub(crate) down: Arc<Down>,
    pub(crate) up: Arc<Up>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) oracle: Oracle,
    pub(crate) weakened: Weakened,
}

impl Actor {
    /// Reads what stands on the disk.
    pub(crate) fn open(
        id: MemberId,
        acted: Acted,
        handle: &Handle,
        view: watch::Sender<View>,
    ) -> Self {
        let found = acted.database.disk.lock().promise.clone();
        let born = found.map(|(volume, durable)| Born {
            member: Member::weakened(id.clone(), durable, acted.weakened.member),
            volume,
        });
        Self {
            id,
            acted,
            commands: handle.commands.clone(),
            view,
            born,
            history: Vec::new(),
            exit: None,
            promoting: None,
            opening: None,
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
            !self.acted.weakened.never_linked
                && self.acted.database.mode() != Mode::Down
                && born.member.accepts_link(&asked.from, asked.term)
        });
        let permit = accepted.then(|| self.acted.up.permit(&asked.from));
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
                self.acted.gate.keep_open(term);
                self.reread();
                self.input(Input::KeptOpen { term }, None).await;
            }
            Command::StandbyUp { start } if self.acted.database.is_wanted(start) => {
                self.input(Input::StandbyUp, None).await;
            }
            Command::StandbyUp { .. } => {}
            Command::Exited { start, exit } => self.exited(start, &exit).await,
            Command::Promoted { term, result, done } => {
                if result.is_ok() {
                    self.input(Input::Promoted { term }, None).await;
                }
                drop(done.send(result));
            }
            Command::Opened { term, result, done } => {
                let result = match result {
                    Ok(Opened { row, history }) => {
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
            Command::Confirmed(Confirmed::Lately) => drop(self.input(Input::Heard, None).await),
            Command::Confirmed(Confirmed::Not) => drop(self.input(Input::Isolated, None).await),
            // An entry of a log in memory is whole.
            Command::TornTail { .. } => {}
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

    async fn exited(&mut self, start: u64, exit: &Exit) {
        let ordered = !self.acted.database.is_wanted(start);
        self.exit = Some(PostgresExit {
            unix_ms: self.acted.runtime.wall_clock().0,
            ordered,
            status: format!("{exit:?}"),
        });
        if ordered {
            self.publish();
        } else {
            self.input(Input::PostgresExited, None).await;
        }
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
                Output::CompareLogs => match self.acted.database.end() {
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
                Output::AnswerDemoted { term } => match self.acted.database.line() {
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
        self.acted.gate.close(promise).await;
        self.acted.down.seal();
        self.acted.up.cut(None);
        self.acted.database.cut_sessions();
        let why = Refused::Failed {
            reason: "the log cannot be read".to_owned(),
        };
        let term = promise;
        reply(answer, Answer::Refused { term, why });
    }

    fn persist(&mut self, durable: Durable) {
        let Some(born) = &self.born else { return };
        let before = {
            let mut volume = self.acted.database.disk.lock();
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
            self.acted.oracle.violation("EPOCH_GROWS", &text);
        }
    }

    fn prepared(&self, term: Term) -> Answer {
        let (volume, readable) = self.born.as_ref().map_or_else(Default::default, |born| {
            (born.volume.clone(), born.member.readable())
        });
        let line = self.acted.database.line().filter(|_| readable);
        Answer::Prepared {
            term,
            volume,
            recruit: line.map(|(end, history)| Recruit {
                end,
                history,
                left: self.acted.database.disk.lock().fork(),
                primary: self.acted.database.mode() == Mode::Primary,
            }),
        }
    }

    async fn perform(&mut self, output: Output) {
        match output {
            Output::ClosePort => {
                let promise = self.born.as_ref().map(|born| born.member.durable().promise);
                self.acted.gate.close(promise.unwrap_or(Term::ZERO)).await;
                self.acted.database.cut_sessions();
            }
            Output::CutLinks { except } => {
                self.acted.down.seal();
                self.acted.up.cut(except.as_ref());
            }
            // A cut is complete when it is made: what was received is flushed and replayed.
            Output::CutUpstream => self.acted.down.seal(),
            Output::Link { upstream, term } => self.acted.down.link(&upstream, term),
            Output::StopPostgres => self.acted.database.quit(),
            Output::StartStandby => self.start_standby(),
            Output::Rebuild { upstream, term, .. } => {
                self.rebuild += 1;
                self.acted.database.quit();
                self.acted
                    .down
                    .rebuild(&upstream, term, self.rebuild, self.commands.clone());
            }
            Output::Promote { term } => self.promote(term),
            Output::OpeningTransaction { term, .. } => self.write_opening(term),
            Output::OpenPort { term } => {
                let volume = self.acted.database.disk.lock();
                self.acted.oracle.opens(&self.id, term, &volume);
                drop(volume);
                self.acted
                    .gate
                    .valid_until(Instant::now() + ISOLATION_LIMIT);
                self.acted.gate.open(term);
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
        let now = Instant::now();
        let pause = self.last_start.map_or(Duration::ZERO, |last| {
            (last + START_INTERVAL).saturating_duration_since(now)
        });
        self.last_start = Some(now + pause);
        let (database, commands) = (self.acted.database.clone(), self.commands.clone());
        let start = database.order_start();
        self.acted
            .runtime
            .tasks()
            .spawn("start-postgres", async move {
                sleep(pause + START_TIME).await;
                if database.start(start) {
                    drop(commands.send(Command::StandbyUp { start }).await);
                }
            });
    }

    fn promote(&mut self, term: Term) {
        let Some(done) = self.promoting.take() else {
            return;
        };
        let (database, commands) = (self.acted.database.clone(), self.commands.clone());
        let run = database.run();
        self.acted.runtime.tasks().spawn("promote", async move {
            sleep(PROMOTION_TIME).await;
            let result = database.promote(run, term);
            drop(
                commands
                    .send(Command::Promoted { term, result, done })
                    .await,
            );
        });
    }

    fn write_opening(&mut self, term: Term) {
        let Some((order, done)) = self.opening.take() else {
            return;
        };
        let (database, commands) = (self.acted.database.clone(), self.commands.clone());
        let cut = database.session();
        self.acted
            .runtime
            .tasks()
            .spawn("opening-transaction", async move {
                // The database says which timeline it is, and where it forked.
                let opening = database.open(order.term_row(0, Lsn(0)), order.grants.clone());
                let result = tokio::select! {
                    opened = opening => opened.map_err(|failed| format!("{failed:?}")),
                    () = cut.cancelled() => Err("the session was cut".to_owned()),
                };
                drop(commands.send(Command::Opened { term, result, done }).await);
            });
    }

    fn reread(&mut self) {
        if let Some((_, history)) = self.acted.database.line() {
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
        self.acted.database.disk.lock().promise = Some((volume.clone(), durable.clone()));
        let member = Member::weakened(self.id.clone(), durable, self.acted.weakened.member);
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
        view.exit.clone_from(&self.exit);
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
