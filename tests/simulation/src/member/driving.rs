//! Carries P3–P7 of an op out, when our member is its target: the real driver, on simulated acts.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use atoll_ownership::driver::{Driver, Input, Output};
use atoll_ownership::{Answer, Call, DriveOrder, Grant, Progress, Refused, TermRow};
use atoll_runtime::{Runtime, ScopedTask};
use atoll_streams::agent::ReportBody;
use atoll_topology::{Lsn, MemberId, Term};
use tokio::sync::mpsc;
use tokio::time::{Duration, sleep};
use tracing::info;

use super::actor::{Command, Handle};
use super::calls::Peers;
use super::database::Database;
use crate::oracle::Oracle;

/// A member that cannot be reached, or is not ready, is called again after this.
const CALL_AGAIN: Duration = Duration::from_millis(50);
/// Answers that wait for the driver.
const EVENTS_WAITING_MAX: usize = 64;

/// Everything that a driver acts upon.
pub(crate) struct Driving {
    pub(crate) runtime: Runtime,
    pub(crate) member: MemberId,
    pub(crate) actor: Handle,
    pub(crate) peers: Arc<Peers>,
    pub(crate) database: Arc<Database>,
    pub(crate) reports: mpsc::Sender<ReportBody>,
    pub(crate) oracle: Oracle,
    pub(crate) now: Mutex<Option<Run>>,
}

/// The op that is, or was last, driven.
pub(crate) struct Run {
    order: DriveOrder,
    task: ScopedTask<()>,
    last: Progress,
}

impl Driving {
    /// Begins, unless this very order is under way or done: then control is told again.
    pub(crate) fn drive(self: &Arc<Self>, order: DriveOrder) {
        if order.target != self.member {
            return;
        }
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(run) = now.as_ref() {
            if run.order == order && (!run.task.is_finished() || run.ended()) {
                drop(
                    self.reports
                        .try_send(progress(&run.order, run.last.clone())),
                );
                return;
            }
            if run.order.term.supersedes(order.term) {
                return;
            }
        }
        let (driving, starting) = (self.clone(), order.clone());
        let task = self.runtime.tasks().spawn("driver", async move {
            driving.run(starting).await;
        });
        *now = Some(Run {
            order,
            task: task.scoped(),
            last: Progress::Recruiting,
        });
    }

    /// Stops driving this op, if it is the one.
    pub(crate) fn stand_down(&self, term: Term, op: &str) {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        if now
            .as_ref()
            .is_some_and(|run| run.order.term == term && run.order.op == op)
        {
            *now = None;
        }
    }

    /// What control is told after its stream was lost.
    pub(crate) fn last(&self) -> Option<ReportBody> {
        let now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        now.as_ref()
            .map(|run| progress(&run.order, run.last.clone()))
    }

    fn note(&self, order: &DriveOrder, step: Progress) {
        info!(member = %self.member, term = %order.term, op = order.op, kind = %order.kind, ?step, "op");
        if let Some(run) = self
            .now
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_mut()
            && run.order == *order
        {
            run.last = step.clone();
        }
        drop(self.reports.try_send(progress(order, step)));
    }

    async fn run(self: Arc<Self>, order: DriveOrder) {
        let (events, mut inputs) = mpsc::channel(EVENTS_WAITING_MAX);
        let mut driver = Driver::new(order.clone());
        let mut calls: BTreeMap<MemberId, ScopedTask<()>> = BTreeMap::new();
        let mut acts: Vec<ScopedTask<()>> = Vec::new();
        let mut outputs = driver.step(Input::Start);
        loop {
            for output in outputs {
                match output {
                    Output::Report(step) => self.note(&order, step),
                    Output::Call { to, call } => {
                        let task = self.clone().calling(to.clone(), call, events.clone());
                        let task = self.runtime.tasks().spawn(format!("call-{to}"), task);
                        calls.insert(to, task.scoped());
                    }
                    Output::Open { term } => {
                        let opened = self.actor.order(|done| Command::Open { term, done }).await;
                        if let Err(reason) = opened {
                            let better = None;
                            self.note(&order, Progress::GaveUp { reason, better });
                            return;
                        }
                    }
                    output => {
                        let (driving, order) = (self.clone(), order.clone());
                        let events = events.clone();
                        let act = async move {
                            let input = driving.act(&order, output).await;
                            drop(events.send(input).await);
                        };
                        acts.push(self.runtime.tasks().spawn("driver-act", act).scoped());
                    }
                }
            }
            if driver.ended() {
                return;
            }
            let Some(input) = inputs.recv().await else {
                return;
            };
            outputs = driver.step(input);
        }
    }

    /// Calls until there is an answer that needs no other; each answer is told.
    async fn calling(self: Arc<Self>, to: MemberId, call: Call, events: mpsc::Sender<Input>) {
        loop {
            let answer = if to == self.member {
                self.actor.call(call.clone()).await
            } else {
                self.peers.call(&to, &call).await
            };
            let from = to.clone();
            let (input, again) = match answer {
                Ok(answer) => {
                    let again = asks_again(&answer);
                    (Input::Answer { from, answer }, again)
                }
                Err(_) => (Input::Unreachable { from }, true),
            };
            if events.send(input).await.is_err() || !again {
                return;
            }
            sleep(CALL_AGAIN).await;
        }
    }

    async fn act(&self, order: &DriveOrder, output: Output) -> Input {
        let result = match output {
            Output::AwaitReplayed(lsn) => self.replayed(lsn).await.map(|()| Input::Replayed),
            Output::Promote { term } => {
                let done = self
                    .actor
                    .order(|done| Command::Promote { term, done })
                    .await;
                done.map(|()| Input::Promoted)
            }
            Output::OpeningTransaction { .. } => {
                let order = Box::new(order.clone());
                let row = self
                    .actor
                    .order(|done| Command::Opening { order, done })
                    .await;
                row.map(|row| Input::Acknowledged { row: Some(row) })
            }
            Output::ChangeOwners { term, grants } => self
                .in_place(term, grants, None)
                .await
                .map(|row| Input::Acknowledged { row }),
            Output::KeepOpen { term, grants } => {
                let row = Some(coming_row(order, term));
                let kept = self.in_place(term, grants, row).await;
                if kept.is_ok() {
                    drop(self.actor.commands.send(Command::KeptOpen { term }).await);
                }
                kept.map(|row| Input::Acknowledged { row })
            }
            // Performed by `run`.
            Output::Report(_) | Output::Call { .. } | Output::Open { .. } => {
                Err("not an act".into())
            }
        };
        result.unwrap_or_else(|reason| Input::Denied { reason })
    }

    async fn replayed(&self, lsn: Lsn) -> Result<(), String> {
        let mut changes = self.database.changes();
        loop {
            changes.borrow_and_update();
            let end = self.database.end().ok_or("its PostgreSQL is not up")?;
            if end.position.lsn >= lsn {
                return Ok(());
            }
            changes.changed().await.map_err(|error| error.to_string())?;
        }
    }

    async fn in_place(
        &self,
        term: Term,
        grants: Vec<Grant>,
        row: Option<TermRow>,
    ) -> Result<Option<TermRow>, String> {
        let view = self.actor.view.borrow().clone();
        let open = if row.is_some() {
            view.led.is_some()
        } else {
            view.leading == Some(term)
        };
        if !open || view.promise != term {
            return Err(Refused::NotReady.to_string());
        }
        let cut = self.actor.session();
        // A backend goes on when its session is cut, and keeps its locks until it ends.
        let database = self.database.clone();
        let oracle = self.oracle.clone();
        let backend = async move {
            let changed = database.change_owners(row, grants.clone()).await;
            if changed.is_ok() {
                oracle.serves(&grants);
            }
            changed
        };
        let mut backend = self.runtime.tasks().spawn("owner-change", backend);
        tokio::select! {
            changed = backend.join() => match changed {
                Ok(Ok(row)) => Ok(row),
                Ok(Err(failed)) => Err(format!("{failed:?}")),
                Err(end) => Err(end.to_string()),
            },
            // A newer promise cuts this session: what it waits for is told to nobody.
            () = cut.cancelled() => Err("the session was cut".to_owned()),
        }
    }
}

/// The row that an op writes.
pub(crate) fn coming_row(order: &DriveOrder, term: Term) -> TermRow {
    TermRow {
        term,
        timeline: 0,
        fork: Lsn(0),
        primary: order.target.clone(),
        members: order
            .members
            .iter()
            .map(|member| member.id.clone())
            .collect(),
        k: order.k,
        op: order.op.clone(),
    }
}

impl Run {
    fn ended(&self) -> bool {
        matches!(self.last, Progress::Open { .. } | Progress::GaveUp { .. })
    }
}

fn asks_again(answer: &Answer) -> bool {
    match answer {
        Answer::Prepared { recruit, .. } => recruit.is_none(),
        Answer::Refused { why, .. } => matches!(why, Refused::NotReady | Refused::Failed { .. }),
        _ => false,
    }
}

fn progress(order: &DriveOrder, progress: Progress) -> ReportBody {
    ReportBody::Progress {
        term: order.term,
        op: order.op.clone(),
        progress,
    }
}
