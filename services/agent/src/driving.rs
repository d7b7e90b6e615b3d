//! Carries P3–P7 of an op out, when our member is its target.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use atoll_ownership::driver::{Driver, Input, Output};
use atoll_ownership::{Answer, Call, DriveOrder, Grant, Progress, Refused, TermRow};
use atoll_runtime::{Runtime, ScopedTask};
use atoll_streams::agent::ReportBody;
use atoll_topology::{GroupId, Lsn, MemberId, Term};
use tokio::sync::mpsc;
use tokio::time::{Duration, sleep, timeout};
use tracing::{info, warn};

use crate::actor::{Command, Handle};
use crate::acts::die;
use crate::calls::call_member;
use crate::config::FailPoint;
use crate::peers::Peers;
use crate::postgres::Postgres;

/// A member that cannot be reached, or is not ready, is called again after this.
const CALL_AGAIN: Duration = Duration::from_millis(50);

/// From a member's answer to its published view: the rest of one step.
const PUBLISHED_LIMIT: Duration = Duration::from_secs(1);

/// Answers that wait for the driver.
const EVENTS_WAITING_MAX: usize = 64;

/// Everything that a driver acts upon.
pub(crate) struct Driving {
    pub(crate) runtime: Runtime,
    pub(crate) group: GroupId,
    pub(crate) member: MemberId,
    pub(crate) actor: Handle,
    pub(crate) peers: Arc<Peers>,
    pub(crate) postgres: Arc<dyn Postgres>,
    pub(crate) reports: mpsc::Sender<ReportBody>,
    pub(crate) fail_after: Option<FailPoint>,
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
        if order.target != self.member || order.group != self.group {
            warn!(target = %order.target, group = %order.group, "an order for another member");
            return;
        }
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(run) = now.as_ref() {
            if run.order == order && (!run.task.is_finished() || run.ended()) {
                self.report(&run.order, run.last.clone());
                return;
            }
            // A replica of control that is behind may order an op that is over; within a term the
            // later op has the greater number.
            let earlier = number(&order.op) < number(&run.order.op);
            if run.order.term.supersedes(order.term) || run.order.term == order.term && earlier {
                return;
            }
        }
        info!(term = %order.term, op = order.op, kind = %order.kind, "driving");
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

    fn report(&self, order: &DriveOrder, step: Progress) {
        // A full line is a lost control, which is told the last one when it is back.
        drop(self.reports.try_send(progress(order, step)));
    }

    fn note(&self, order: &DriveOrder, step: Progress) {
        info!(term = %order.term, op = order.op, ?step, "op");
        if let Some(run) = self
            .now
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_mut()
            && run.order == *order
        {
            run.last = step.clone();
        }
        self.report(order, step);
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
                        // A newer call to the same member takes the older one's place.
                        let task = self.clone().calling(to.clone(), call, events.clone());
                        let task = self.runtime.tasks().spawn(format!("call-{to}"), task);
                        calls.insert(to, task.scoped());
                    }
                    Output::Open { term } => {
                        let done = self.actor.order(|done| Command::Open { term, done }).await;
                        if let Err(reason) = done {
                            self.note(
                                &order,
                                Progress::GaveUp {
                                    reason,
                                    better: None,
                                },
                            );
                            return;
                        }
                        self.fail_at(FailPoint::P7);
                    }
                    output => {
                        let (driving, order) = (self.clone(), order.clone());
                        let events = events.clone();
                        let act = async move {
                            let input = driving.act(&order, output).await;
                            // The driver may have ended meanwhile.
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
            match &input {
                Input::Answer {
                    answer: Answer::Demoted { .. },
                    ..
                } => {
                    self.fail_at(FailPoint::P3);
                }
                Input::Replayed => self.fail_at(FailPoint::P4),
                Input::Promoted => self.fail_at(FailPoint::P5),
                Input::Acknowledged { .. } => self.fail_at(FailPoint::P6),
                _ => {}
            }
            outputs = driver.step(input);
        }
    }

    fn fail_at(&self, point: FailPoint) {
        if self.fail_after == Some(point) {
            die();
        }
    }

    /// Calls until there is an answer that needs no other; each answer is told.
    async fn calling(self: Arc<Self>, to: MemberId, call: Call, events: mpsc::Sender<Input>) {
        let mut silent = true;
        loop {
            let answer = if to == self.member {
                self.actor
                    .call(call.clone())
                    .await
                    .map_err(|error| error.to_string())
            } else {
                call_member(&self.peers, &self.group, &self.member, &to, &call).await
            };
            let from = to.clone();
            let (input, again) = match answer {
                Ok(answer) => {
                    let again = answer.asks_again();
                    (Input::Answer { from, answer }, again)
                }
                Err(reason) => {
                    // One event for a member that stays away.
                    if std::mem::take(&mut silent) {
                        info!(member = %to, reason, term = %call.term(), "not reached");
                    }
                    (Input::Unreachable { from }, true)
                }
            };
            if events.send(input).await.is_err() || !again {
                return;
            }
            sleep(CALL_AGAIN).await;
        }
    }

    async fn act(&self, order: &DriveOrder, output: Output) -> Input {
        let result = match output {
            Output::AwaitReplayed(lsn) => {
                self.postgres.replayed(lsn).await.map(|()| Input::Replayed)
            }
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
            Output::ChangeOwners { term, grants } => {
                let changed = self.in_place(term, grants, None).await;
                changed.map(|row| Input::Acknowledged { row })
            }
            Output::KeepOpen { term, grants } => self.keep_open(order, term, grants).await,
            // Performed by `run`.
            Output::Report(_) | Output::Call { .. } | Output::Open { .. } => {
                Err("not an act".into())
            }
        };
        result.unwrap_or_else(|reason| Input::Denied { reason })
    }

    async fn in_place(
        &self,
        term: Term,
        grants: Vec<Grant>,
        row: Option<TermRow>,
    ) -> Result<Option<TermRow>, String> {
        // Our own promise is answered a moment before it is published.
        let mut views = self.actor.view.clone();
        let published = views.wait_for(|view| !term.supersedes(view.promise));
        let view = match timeout(PUBLISHED_LIMIT, published).await {
            Ok(Ok(view)) => view.clone(),
            _ => return Err(Refused::NotReady.to_string()),
        };
        let open = if row.is_some() {
            view.led.is_some()
        } else {
            view.leading == Some(term)
        };
        if !open || view.promise != term {
            return Err(Refused::NotReady.to_string());
        }
        self.postgres.change_owners(grants, row).await
    }

    async fn keep_open(
        &self,
        order: &DriveOrder,
        term: Term,
        grants: Vec<Grant>,
    ) -> Result<Input, String> {
        // PostgreSQL says which timeline it is, and where it forked.
        let row = order.term_row(0, Lsn(0));
        let row = self.in_place(term, grants, Some(row)).await?;
        let kept = self.actor.send(Command::KeptOpen { term }).await;
        kept.map_err(|error| error.to_string())?;
        Ok(Input::Acknowledged { row })
    }
}

/// The op's number within its group: `<execution>#<number>`.
fn number(op: &str) -> Option<u64> {
    op.rsplit_once('#')?.1.parse().ok()
}

impl Run {
    fn ended(&self) -> bool {
        matches!(self.last, Progress::Open { .. } | Progress::GaveUp { .. })
    }
}

fn progress(order: &DriveOrder, progress: Progress) -> ReportBody {
    ReportBody::Progress {
        term: order.term,
        op: order.op.clone(),
        progress,
    }
}
