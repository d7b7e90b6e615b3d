//! The member's actor: feeds inputs into the state machine one at a time, and has its outputs
//! performed in order before the next input is taken.

use std::sync::Arc;

use atoll_ownership::member::{Input, Mark, Member, Output, Role};
use atoll_ownership::{Answer, Call, DriveOrder, LogEnd, Refused, TermRow};
use atoll_postgres::{Exit, Template};
use atoll_streams::agent::{MemberRole, PostgresExit};
use atoll_topology::{MemberId, Term};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use crate::acts::Acts;
use crate::error::Error;
use crate::link::{LinkAsked, Permit};
use crate::promise::{Promise, PromiseFile};
use crate::view::View;

/// Commands that may wait for the member.
pub const COMMANDS_WAITING_MAX: usize = 128;

/// How a local order ends: done, or why not.
pub type Done<T> = oneshot::Sender<Result<T, String>>;

/// What the actor is asked or told.
#[expect(missing_docs, reason = "each field is what its type says")]
pub enum Command {
    /// A driver or a leader calls.
    Call {
        call: Call,
        answer: oneshot::Sender<Answer>,
    },
    /// Control admits this volume.
    Admit { volume: String },
    /// The local driver: lead.
    Promote { term: Term, done: Done<()> },
    /// The local driver: write the opening transaction.
    Opening {
        order: Box<DriveOrder>,
        done: Done<TermRow>,
    },
    /// The local driver: serve.
    Open { term: Term, done: Done<()> },
    /// The local driver: a call-off's term row is acknowledged.
    KeptOpen { term: Term },
    /// PostgreSQL answers as a standby.
    StandbyUp { start: u64 },
    /// PostgreSQL has ended.
    Exited { start: u64, exit: Exit },
    /// PostgreSQL has left recovery, or not.
    Promoted {
        term: Term,
        result: Result<(), String>,
        done: Done<()>,
    },
    /// The opening transaction is acknowledged, or not.
    Opened {
        term: Term,
        result: Result<Opened, String>,
        done: Done<TermRow>,
    },
    /// Our standby hangs at the end of its log, which is torn there.
    TornTail { end: LogEnd },
    /// The rewind or clone has ended.
    Rebuilt {
        rebuild: u64,
        result: Result<(), String>,
    },
    /// Nobody confirms our term any more, or somebody does again.
    Confirmed(Confirmed),
}

/// The row that was written, and all rows of the log.
pub struct Opened {
    /// The row.
    pub row: TermRow,
    /// All of them, oldest first.
    pub history: Vec<TermRow>,
}

/// Whether k standbys were heard under our term lately.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confirmed {
    /// They were.
    Lately,
    /// They were not.
    Not,
}

/// A cheap way to the actor.
#[derive(Clone)]
pub struct Handle {
    /// To the actor.
    pub commands: mpsc::Sender<Command>,
    /// From the actor, after each step.
    pub view: watch::Receiver<View>,
}

impl Handle {
    /// One call, answered by our own member.
    pub(crate) async fn call(&self, call: Call) -> Result<Answer, Error> {
        let (answer, answered) = oneshot::channel();
        self.send(Command::Call { call, answer }).await?;
        answered.await.map_err(|_| Error::Ended)
    }

    /// One local order.
    pub(crate) async fn order<T>(
        &self,
        command: impl FnOnce(Done<T>) -> Command,
    ) -> Result<T, String> {
        let (done, result) = oneshot::channel();
        let sent = self.send(command(done)).await;
        sent.map_err(|error| error.to_string())?;
        result
            .await
            .unwrap_or_else(|_| Err("the order was dropped".into()))
    }

    pub(crate) async fn send(&self, command: Command) -> Result<(), Error> {
        self.commands.send(command).await.map_err(|_| Error::Ended)
    }
}

/// A member that was admitted.
struct Born {
    member: Member,
    volume: String,
    file: PromiseFile,
    /// The promise that the file holds.
    promised: Term,
}

/// The actor.
pub(crate) struct Actor {
    id: MemberId,
    born: Option<Born>,
    /// The directory is not what the promise says, or the other way round.
    lost: bool,
    acts: Acts,
    view: watch::Sender<View>,
    history: Vec<TermRow>,
    exit: Option<PostgresExit>,
    template: Arc<Template>,
}

impl Actor {
    /// Reads what stands on disk. A promise without its data, or data without its promise, is
    /// lost: the member promises, does not count, and stays out.
    pub(crate) fn open(
        id: MemberId,
        acts: Acts,
        view: watch::Sender<View>,
        template: Arc<Template>,
    ) -> Result<Self, Error> {
        let layout = &acts.database.options.layout;
        let has_data = layout
            .data()
            .join("PG_VERSION")
            .try_exists()
            .unwrap_or(false);
        let (mut born, mut lost) = (None, false);
        match PromiseFile::open(&layout.promise()) {
            Ok(Some((mut file, mut promise))) => {
                let rebuilding = promise.durable.mark == Mark::Rebuilding;
                if !has_data && !rebuilding && promise.durable.mark != Mark::Lost {
                    error!(member = %id, "the data directory is lost: this member stays out");
                    promise.durable.mark = Mark::Lost;
                    file.write(&promise)?;
                }
                let promised = promise.durable.promise;
                let member = Member::new(id.clone(), promise.durable);
                born = Some(Born {
                    member,
                    volume: promise.volume,
                    file,
                    promised,
                });
            }
            Ok(None) => lost = has_data,
            Err(error @ Error::PromiseContent { .. }) => {
                error!(member = %id, %error, "the promise is lost: this member stays out");
                lost = true;
            }
            Err(error) => return Err(error),
        }
        let (history, exit) = (Vec::new(), None);
        Ok(Self {
            id,
            born,
            lost,
            acts,
            view,
            history,
            exit,
            template,
        })
    }

    /// Serves commands until shutdown, or until the promise can no longer be kept.
    pub(crate) async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        mut links: mpsc::Receiver<LinkAsked>,
    ) -> Result<(), Error> {
        let shutdown = self.acts.runtime.shutdown();
        self.publish();
        if self.born.is_some() {
            self.input(Input::Started, None).await?;
        }
        loop {
            tokio::select! {
                biased;
                () = shutdown.requested() => break,
                command = commands.recv() => match command {
                    Some(command) => self.command(command).await?,
                    None => break,
                },
                Some(asked) = links.recv() => self.link_asked(asked),
            }
        }
        self.acts.cut_everything(Term::ZERO).await;
        self.acts.database.quit().await
    }

    fn link_asked(&mut self, asked: LinkAsked) {
        let LinkAsked { greeting, answer } = asked;
        let accepted = self
            .born
            .as_ref()
            .is_some_and(|born| born.member.accepts_link(&greeting.from, greeting.term));
        let permit: Option<Permit> = accepted.then(|| self.acts.up.permit(&greeting));
        // A standby that went away meanwhile: its permit ends here.
        drop(answer.send(permit));
    }

    async fn command(&mut self, command: Command) -> Result<(), Error> {
        match command {
            Command::Call { call, answer } => self.call(call, answer).await,
            Command::Admit { volume } => self.admit(volume).await,
            Command::Promote { term, done } => {
                self.acts.promoting = Some(done);
                let denied = self.input(Input::Promote { term }, None).await?;
                // A running primary that wins again has nothing to wait for.
                if let Some(done) = self.acts.promoting.take() {
                    reply(done, denied.map_or(Ok(()), Err));
                }
                Ok(())
            }
            Command::Opening { order, done } => {
                let (term, grants) = (order.term, order.grants.clone());
                self.acts.opening = Some((order, done));
                let denied = self
                    .input(Input::OpeningTransaction { term, grants }, None)
                    .await?;
                if let Some((_, done)) = self.acts.opening.take() {
                    reply(
                        done,
                        Err(denied.unwrap_or_else(|| "it was not performed".into())),
                    );
                }
                Ok(())
            }
            Command::Open { term, done } => {
                let denied = self.input(Input::Open { term }, None).await?;
                reply(done, denied.map_or(Ok(()), Err));
                Ok(())
            }
            Command::KeptOpen { term } => {
                self.acts.gate.keep_open(term);
                self.reread().await;
                self.input(Input::KeptOpen { term }, None).await.map(drop)
            }
            Command::StandbyUp { start } if self.acts.database.is_wanted(start) => {
                self.input(Input::StandbyUp, None).await.map(drop)
            }
            Command::StandbyUp { .. } => Ok(()),
            Command::Exited { start, exit } => self.exited(start, &exit).await,
            Command::Promoted { term, result, done } => {
                let ended = match &result {
                    Ok(_) => Input::Promoted { term },
                    Err(_) => Input::NotPromoted { term },
                };
                self.input(ended, None).await?;
                reply(done, result);
                Ok(())
            }
            Command::Opened { term, result, done } => self.opened(term, result, done).await,
            Command::TornTail { end } => {
                self.torn_tail(end).await;
                Ok(())
            }
            Command::Rebuilt { rebuild, result } => self.rebuilt(rebuild, result).await,
            Command::Confirmed(Confirmed::Lately) => self.input(Input::Heard, None).await.map(drop),
            Command::Confirmed(Confirmed::Not) => self.input(Input::Isolated, None).await.map(drop),
        }
    }

    async fn call(&mut self, call: Call, answer: oneshot::Sender<Answer>) -> Result<(), Error> {
        let term = call.term();
        if self.born.is_none() {
            let why = if self.lost {
                Refused::Lost
            } else {
                Refused::NotReady
            };
            drop(answer.send(Answer::Refused { term, why }));
            return Ok(());
        }
        self.input(Input::Call(call), Some((term, answer)))
            .await
            .map(drop)
    }

    /// One step and all that follows from it; why it was denied, if it was.
    async fn input(
        &mut self,
        input: Input,
        mut answer: Option<(Term, oneshot::Sender<Answer>)>,
    ) -> Result<Option<String>, Error> {
        let Some(born) = self.born.as_mut() else {
            return Ok(None);
        };
        let mut outputs: std::collections::VecDeque<Output> = born.member.step(input).into();
        let mut denied = None;
        while let Some(output) = outputs.pop_front() {
            let Born {
                member,
                volume,
                file,
                promised,
            } = born;
            let (act, began) = (name_of(&output), Instant::now());
            let performed = match output {
                Output::Persist(durable) => {
                    let raised = durable.promise.supersedes(*promised);
                    *promised = promised.newest(durable.promise);
                    let promise = Promise {
                        volume: volume.clone(),
                        durable,
                    };
                    // A promise that may not be durable binds all the same: cut, and end.
                    if let Err(error) = file.write(&promise) {
                        self.acts.cut_everything(promise.durable.promise).await;
                        return Err(error);
                    }
                    self.acts.die_if_promised(raised && answer.is_some());
                    Ok(())
                }
                Output::CompareLogs => match self.acts.database.line().await {
                    Ok(line) => {
                        outputs.extend(member.step(Input::Compared(line.end)));
                        Ok(())
                    }
                    Err(error) => Err(error),
                },
                Output::Answer(given) => {
                    send(&mut answer, given);
                    Ok(())
                }
                Output::AnswerPrepared { term } => {
                    let readable = member.readable();
                    let given = self.acts.prepared(term, volume, readable).await;
                    send(&mut answer, given);
                    Ok(())
                }
                Output::Deny(why) => {
                    denied = Some(why.to_string());
                    Ok(())
                }
                output => self.acts.perform(output, member, &mut answer).await,
            };
            let took_ms = began.elapsed().as_secs_f64() * 1e3;
            debug!(member = %self.id, act, took_ms, "performed");
            if let Err(failure) = performed {
                warn!(member = %self.id, %failure, "an act failed: cut off");
                self.acts.cut_everything(member.durable().promise).await;
                let reason = failure.to_string();
                if let Some((term, answer)) = answer.take() {
                    let why = Refused::Failed {
                        reason: reason.clone(),
                    };
                    drop(answer.send(Answer::Refused { term, why }));
                }
                denied = Some(reason);
                break;
            }
        }
        self.publish();
        Ok(denied)
    }

    async fn exited(&mut self, start: u64, exit: &Exit) -> Result<(), Error> {
        let ordered = !self.acts.database.is_wanted(start);
        let unix_ms = self.acts.runtime.wall_clock().0;
        self.exit = Some(PostgresExit {
            unix_ms,
            ordered,
            status: format!("{exit:?}"),
        });
        if ordered {
            self.publish();
            return Ok(());
        }
        warn!(member = %self.id, ?exit, "PostgreSQL ended");
        self.input(Input::PostgresExited, None).await.map(drop)
    }

    async fn opened(
        &mut self,
        term: Term,
        result: Result<Opened, String>,
        done: Done<TermRow>,
    ) -> Result<(), Error> {
        match result {
            Ok(Opened { row, history }) => {
                self.history = history;
                self.input(Input::OpeningAcknowledged { term }, None)
                    .await?;
                info!(member = %self.id, %term, timeline = row.timeline, "opening transaction acknowledged");
                reply(done, Ok(row));
            }
            Err(reason) => reply(done, Err(reason)),
        }
        Ok(())
    }

    async fn rebuilt(&mut self, rebuild: u64, result: Result<(), String>) -> Result<(), Error> {
        if rebuild != self.acts.rebuild {
            return Ok(());
        }
        let input = match result {
            Ok(()) => Input::Rebuilt,
            Err(reason) => {
                warn!(member = %self.id, reason, "rebuilding failed");
                Input::RebuildFailed
            }
        };
        self.input(input, None).await.map(drop)
    }

    /// Only for a standby that still follows: whatever else it has become, it is not stuck.
    async fn torn_tail(&mut self, end: LogEnd) {
        let follows = |born: &Born| matches!(born.member.role(), Role::Standby { linked: true });
        if self.born.as_ref().is_some_and(follows) {
            self.acts.cut_tail(end).await;
        }
    }

    async fn reread(&mut self) {
        match self.acts.database.line().await {
            Ok(line) => self.history = line.history,
            Err(error) => warn!(%error, "the term rows could not be read again"),
        }
    }

    /// An empty directory is initialised for the admitted volume, once.
    async fn admit(&mut self, volume: String) -> Result<(), Error> {
        if let Some(born) = &self.born {
            if born.volume != volume {
                warn!(
                    mine = born.volume,
                    admitted = volume,
                    "another volume is admitted"
                );
            }
            return Ok(());
        }
        if self.lost {
            return Ok(());
        }
        let options = &self.acts.database.options;
        self.template
            .copy_to(&options.layout, &options.launcher)
            .await?;
        let promise = Promise::born(volume.clone());
        let file = PromiseFile::create(&options.layout.promise(), &promise)?;
        let promised = promise.durable.promise;
        let member = Member::new(self.id.clone(), promise.durable);
        info!(member = %self.id, volume, "admitted");
        self.born = Some(Born {
            member,
            volume,
            file,
            promised,
        });
        self.input(Input::Started, None).await.map(drop)
    }

    fn publish(&mut self) {
        let mut view = match &self.born {
            Some(born) => View::of(&born.member, &born.volume),
            None => View::unborn(),
        };
        if self.lost {
            view.role = MemberRole::Lost;
        }
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

/// The act's name: the first word of what it is.
fn name_of(output: &Output) -> String {
    let text = format!("{output:?}");
    let end = text.find(|c: char| !c.is_ascii_alphanumeric());
    text[..end.unwrap_or(text.len())].to_owned()
}

fn reply<T>(done: Done<T>, result: Result<T, String>) {
    // A driver that was told to stand down no longer waits.
    drop(done.send(result));
}

fn send(answer: &mut Option<(Term, oneshot::Sender<Answer>)>, given: Answer) {
    if let Some((_, answer)) = answer.take() {
        // A caller that gave up calls again.
        drop(answer.send(given));
    }
}
