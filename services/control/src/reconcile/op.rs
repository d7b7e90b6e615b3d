//! One group's op, from what its record says to what the tables say: P1 is written by whoever
//! orders, P2 and P8 happen here, P3–P7 in the driver.
//!
//! It takes no hint: the path after a restart of control and after an event are the same. Every
//! step is safe to repeat, so an op that was broken off anywhere is simply gone through again.

use std::sync::Arc;
use std::time::Duration;

use atoll_ownership::record::{Begin, GroupRecord, Op, Opened, RunPhase};
use atoll_ownership::{OpKind, Progress, TermRow};
use atoll_routing::Closed;
use atoll_store::StoreError;
use atoll_streams::Role;
use atoll_streams::agent::{Heard, Order};
use atoll_topology::{GroupId, MemberId, Term};
use thiserror::Error;
use tracing::{info, warn};

use crate::app::Control;
use crate::observe::planes;
use crate::reconcile::choose;
use crate::records::ChangeError;
use crate::timeline::{CONVERGED, PUBLISHED};

/// How long requests in flight have to end before a planned switch is called off.
pub(crate) const DRAIN: Duration = Duration::from_millis(2_000);
/// How long control waits for live data planes to use a new table; then their fence guards.
pub(crate) const CONVERGENCE: Duration = Duration::from_millis(3_000);
/// How long a planned switch waits for the spare members to follow its target ahead of P2.
const CASCADED: Duration = Duration::from_millis(500);
/// Three beats: a member that another one has not heard for longer may be out of its reach.
const HEARD_LATELY_MS: u64 = 600;
/// An op's time, from P1.
pub(crate) const OP_DEADLINE: Duration = Duration::from_secs(10);
/// Pause after a step that could not be done, before everything is looked at again.
const AGAIN: Duration = Duration::from_millis(50);

/// Why an op did not get further.
#[derive(Debug, Error)]
enum Stopped {
    /// The group's requests did not end in time; nothing was cut yet.
    #[error("requests in flight did not end within {} ms", DRAIN.as_millis())]
    NotDrained,
    /// The driver says that this term leads nowhere.
    #[error("{driver} gave up: {reason}")]
    GaveUp {
        driver: MemberId,
        reason: String,
        better: Option<MemberId>,
    },
    #[error(transparent)]
    Change(#[from] ChangeError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a driver brought about.
enum Driven {
    Open(Option<TermRow>),
    GaveUp {
        reason: String,
        better: Option<MemberId>,
    },
}

/// Carries the ops of one group out, one after the other, for ever.
pub(crate) async fn run(control: Arc<Control>, group: GroupId) {
    let mut records = control.records.subscribe();
    loop {
        control.seat.until_acts().await;
        let record = records.borrow_and_update().get(&group).cloned();
        let current = record.as_ref().and_then(|record| record.op.clone());
        if let (Some(record), Some(op)) = (record, current) {
            // What the record says once it is no longer this op's: mostly its own end, which is seen
            // here before whoever wrote it has heard of it.
            let left = async {
                loop {
                    let groups = records.borrow_and_update().clone();
                    let now = groups.get(&group);
                    if now.is_none_or(|record| record.op.as_ref() != Some(&op)) {
                        return now.cloned();
                    }
                    if records.changed().await.is_err() {
                        return None;
                    }
                }
            };
            control.timeline.tells(&op, &group);
            let late = control.runtime.wall_clock().0 >= op.deadline_ms;
            let ended = tokio::select! {
                biased;
                ended = carry(&control, &record, &op), if !late => Some(ended),
                now = left => now.and_then(|record| own_end(&control, &op, record)).map(Ok),
                // Whoever acts now goes through it again.
                () = control.seat.until_idle() => None,
                () = deadline(&control, &op) => Some(Err(Stopped::GaveUp {
                    driver: op.target.clone(),
                    reason: "the op is past its deadline".to_owned(),
                    better: None,
                })),
            };
            if !matches!(ended, Some(Ok(_))) {
                control.timeline.told_nothing(&group);
            }
            let published = match ended {
                Some(Ok((finished, row))) => publish(&control, &op, &finished, row).await,
                Some(Err(stopped)) => {
                    recover(&control, &record, &op, stopped).await;
                    Ok(())
                }
                None => Ok(()),
            };
            if let Err(error) = published {
                control.timeline.told_nothing(&group);
                warn!(%group, %error, "the table could not be published; again");
                tokio::time::sleep(AGAIN).await;
            }
        } else if let Err(error) = control
            .publisher
            .stage(&group, None, &control.records.all())
            .await
        {
            warn!(%group, %error, "the table could not be published; again");
            tokio::time::sleep(AGAIN).await;
        } else if records.changed().await.is_err() {
            return;
        }
    }
}

/// The end that this op came to, where no other one has its place.
fn own_end(
    control: &Control,
    op: &Op,
    record: GroupRecord,
) -> Option<(GroupRecord, Option<TermRow>)> {
    let ended = record.op.is_none() && record.ops == op.number;
    let row = match control.agents.progress(&op.target, &op.id()) {
        Some(Progress::Open { row }) => row,
        _ => None,
    };
    ended.then_some((record, row))
}

/// Waits until the op is past its time.
async fn deadline(control: &Control, op: &Op) {
    let now = control.runtime.wall_clock().0;
    tokio::time::sleep(Duration::from_millis(op.deadline_ms.saturating_sub(now))).await;
}

async fn carry(
    control: &Control,
    record: &GroupRecord,
    op: &Op,
) -> Result<(GroupRecord, Option<TermRow>), Stopped> {
    let group = &record.group;
    let planned = matches!(op.kind, OpKind::Switchover | OpKind::OwnerChange);
    if planned && !driving(control, op) {
        cascade(control, record, op).await;
        hold(control, record).await?;
    } else {
        control
            .publisher
            .stage(group, Some(Closed::All), &control.records.all())
            .await?;
    }
    control.timeline.mark(op, group, "driving");
    control.timeline.write(op, group);
    let row = match drive(control, record, op).await {
        Driven::Open(row) => row,
        Driven::GaveUp { reason, better } => {
            return Err(Stopped::GaveUp {
                driver: op.target.clone(),
                reason,
                better,
            });
        }
    };
    control.timeline.mark(op, group, "open");
    confirm(control, record, op.term).await;
    control.timeline.mark(op, group, "confirmed");
    let opened = Opened {
        op: op.id(),
        primary: op.target.clone(),
    };
    let finished = control
        .records
        .change(
            group,
            |record| record.finish(&opened),
            |_, txn| control.timeline.keep(txn, &op.execution, group),
        )
        .await?;
    Ok((finished, row))
}

/// The tables name the new primary; that every live data plane uses them is watched beside, so
/// that the group's next op need not wait for it.
async fn publish(
    control: &Arc<Control>,
    op: &Op,
    finished: &GroupRecord,
    row: Option<TermRow>,
) -> Result<(), StoreError> {
    let group = finished.group.clone();
    let number = control
        .publisher
        .stage(&group, None, &control.records.all())
        .await?;
    control.timeline.published(op, finished, row);
    info!(%group, term = %op.term, primary = %op.target, kind = %op.kind, "group open");
    converge(control, op, &group, number);
    Ok(())
}

/// Marks, beside whatever goes on, when every live data plane uses this table.
fn converge(control: &Arc<Control>, op: &Op, group: &GroupId, number: u64) {
    let (watched, op, group) = (control.clone(), op.clone(), group.clone());
    control.runtime.tasks().spawn(format!("convergence of {group}"), async move {
        let converged = watched.planes.until(|live| planes::all_use(live, number));
        if tokio::time::timeout(CONVERGENCE, converged).await.is_err() {
            warn!(%group, number, "live data planes do not use the new table; their fence guards");
        }
        watched.timeline.mark(&op, &group, CONVERGED);
    });
}

/// Makes good for whoever wrote P8 and was lost before it published.
pub(crate) async fn published_again(
    control: &Arc<Control>,
    execution: &str,
    group: &GroupId,
) -> Result<(), StoreError> {
    let marks = control.timeline.of(execution);
    let Some(last) = marks.iter().rfind(|mark| mark.group == *group) else {
        return Ok(());
    };
    if last.step == CONVERGED || control.timeline.is_told(group, last.op) {
        return Ok(());
    }
    let number = control.publisher.publish(&control.records.all()).await?;
    let record = control.records.get(group);
    let Some((record, open)) = record.and_then(|record| Some((record.clone(), record.open?)))
    else {
        return Ok(());
    };
    // As much of the op as its marks need; it has left the record.
    let op = Op {
        number: last.op,
        kind: OpKind::Failover,
        term: Term::new(last.term),
        target: open.primary,
        plan: String::new(),
        execution: execution.to_owned(),
        deadline_ms: 0,
        automatic: false,
    };
    if !last.step.starts_with(PUBLISHED) {
        control.timeline.published(&op, &record, None);
    }
    converge(control, &op, group, number);
    Ok(())
}

/// Whether the driver is already past the point where anything could be drained.
fn driving(control: &Control, op: &Op) -> bool {
    control.agents.progress(&op.target, &op.id()).is_some()
}

/// Ahead of P2, where the primary moves: the members that the quorum can spare follow the target
/// already, so that users need not wait for that. Nothing else depends on it.
async fn cascade(control: &Control, record: &GroupRecord, op: &Op) {
    let spare = record
        .members
        .len()
        .saturating_sub(1 + usize::from(record.k));
    let Some(open) = &record.open else { return };
    // Through a member that the primary does not hear, the quorum would be cut off with it.
    let heard = control.agents.member(&open.primary).is_some_and(|primary| {
        let lately = |heard: &Heard| heard.member == op.target && heard.ago_ms < HEARD_LATELY_MS;
        primary.status.heard.iter().any(lately)
    });
    if op.kind != OpKind::Switchover || spare == 0 || !heard {
        return;
    }
    let order = |through: &MemberId| Order::Cascade {
        group: record.group.clone(),
        term: open.term,
        through: through.clone(),
    };
    if !control.agents.order(&open.primary, order(&op.target)) {
        return;
    }
    let followed = control.agents.until(|agents| {
        let members = record.members.iter().filter_map(|m| agents.member(&m.id));
        let follow = members.filter(|seen| seen.status.upstream.as_ref() == Some(&op.target));
        (follow.count() >= spare).then_some(())
    });
    if tokio::time::timeout(CASCADED, followed).await.is_ok() {
        control.timeline.mark(op, &record.group, "cascaded");
    } else {
        // Users need the quorum until P3: everybody follows the primary again.
        control.agents.order(&open.primary, order(&open.primary));
    }
}

/// P2: gateways hold, their requests in flight end; then the routers' gates close.
async fn hold(control: &Control, record: &GroupRecord) -> Result<(), Stopped> {
    let group = &record.group;
    let op = record.op.as_ref();
    // Where the primary moves, all its shards wait; in place, only those that change hands.
    let in_place = op.is_some_and(|op| op.kind == OpKind::OwnerChange);
    let mut runs = record.runs.clone();
    runs.retain(|run| !in_place || run.phase != RunPhase::Active);
    control.planes.found(&control.places.data_planes()).await;
    for (closed, role) in [
        (Closed::Gateways, Role::Gateway),
        (Closed::All, Role::SqlRouter),
    ] {
        let number = control
            .publisher
            .stage(group, Some(closed), &control.records.all())
            .await?;
        let drained = control
            .planes
            .until(|live| planes::drained(live, role, number, &runs));
        let in_time = tokio::time::timeout(DRAIN, drained).await.is_ok();
        if !in_time {
            return Err(Stopped::NotDrained);
        }
        if let Some(op) = op {
            let name = if role == Role::Gateway {
                "gateways hold"
            } else {
                "routers hold"
            };
            control.timeline.mark(op, group, name);
        }
    }
    Ok(())
}

/// P3–P7, in the target's agent. Its steps are marked as they are heard of, for those who ask where
/// the time went.
async fn drive(control: &Control, record: &GroupRecord, op: &Op) -> Driven {
    let marked = async {
        let mut last = None;
        loop {
            let reached = control.agents.until(|agents| {
                let reached = reached(op.kind, &agents.progress(&op.target, &op.id())?);
                reached.filter(|reached| last != Some(*reached))
            });
            let reached = reached.await;
            control.timeline.mark(op, &record.group, reached);
            last = Some(reached);
        }
    };
    tokio::select! {
        biased;
        driven = ordered(control, record, op) => driven,
        never = marked => match never {},
    }
}

/// What is behind a driver that is at this step.
fn reached(kind: OpKind, now: &Progress) -> Option<&'static str> {
    match now {
        Progress::CatchingUp => Some("demoted"),
        Progress::Promoting if kind == OpKind::Switchover => Some("caught up"),
        Progress::Promoting => Some("recruited"),
        Progress::Opening if kind != OpKind::OwnerChange => Some("promoted"),
        Progress::Recruiting
        | Progress::Opening
        | Progress::Open { .. }
        | Progress::GaveUp { .. } => None,
    }
}

/// Ordered again whenever the target's stream comes back.
async fn ordered(control: &Control, record: &GroupRecord, op: &Op) -> Driven {
    let Some(order) = record.drive_order() else {
        return Driven::GaveUp {
            reason: "there is nothing to drive".to_owned(),
            better: None,
        };
    };
    let mut told = None;
    loop {
        let stream = control.agents.stream(&op.target);
        if stream.is_some()
            && stream != told
            && control
                .agents
                .order(&op.target, Order::Drive(order.clone()))
        {
            told = stream;
        }
        let news = control.agents.until(|agents| {
            match agents.progress(&op.target, &op.id()) {
                Some(Progress::Open { row }) => return Some(Some(Driven::Open(row))),
                Some(Progress::GaveUp { reason, better }) => {
                    return Some(Some(Driven::GaveUp { reason, better }));
                }
                _ => {}
            }
            let lost = agents.member(&op.target).is_some_and(|seen| !seen.live());
            if lost && op.kind == OpKind::Failover {
                let reason = "the target is silent".to_owned();
                return Some(Some(Driven::GaveUp {
                    reason,
                    better: None,
                }));
            }
            (agents.stream(&op.target) != told).then_some(None)
        });
        if let Some(driven) = news.await {
            return driven;
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Before P8: a router of each new owner has read its epochs on the open primary. A failover
/// whose owner has no router left is complete at Open.
async fn confirm(control: &Control, record: &GroupRecord, term: Term) {
    let grants = record.grants();
    let group = &record.group;
    control
        .planes
        .until(|live| {
            let mut reachable = grants.clone();
            reachable.retain(|grant| planes::has_router(live, &grant.cell));
            planes::read_by_owners(live, group, term, &reachable)
        })
        .await;
}

/// What is done with an op that got stuck: nothing was cut yet, so it is called off; or it only
/// goes forward, under the next term.
async fn recover(control: &Arc<Control>, record: &GroupRecord, op: &Op, stopped: Stopped) {
    let group = &record.group;
    warn!(%group, term = %op.term, kind = %op.kind, error = %stopped, "op stopped");
    control
        .timeline
        .mark(op, group, &format!("stopped: {stopped}"));
    let (kind, target) = match &stopped {
        Stopped::NotDrained => (
            OpKind::CallOff,
            record.open.as_ref().map(|o| o.primary.clone()),
        ),
        Stopped::GaveUp { better, .. } => {
            let members = control.agents.members();
            let preferred = better
                .clone()
                .filter(|id| members.get(id).is_some_and(|m| m.live()));
            let target = preferred.or_else(|| choose::target(control, record));
            // Who hears too few members to open a term leaves the op to whoever hears more: two
            // replicas that each call the other's target silent would never come to an end.
            let target = target.filter(|_| choose::may_recruit(control, record));
            (OpKind::Failover, target)
        }
        // Look at everything again.
        Stopped::Change(_) | Stopped::Store(_) => {
            if control.records.refresh().await.is_err() {
                warn!(%group, "the store cannot be read");
            }
            tokio::time::sleep(AGAIN).await;
            return;
        }
    };
    let Some(target) = target else {
        warn!(%group, "no member can be recruited; waiting");
        tokio::time::sleep(planes::LIVE / 4).await;
        return;
    };
    let begin = Begin {
        kind,
        judged: record.open_term(),
        over: Some(op.term),
        target,
        moves: if kind == OpKind::CallOff {
            vec![]
        } else {
            choose::moves_after(control, record)
        },
        plan: op.plan.clone(),
        execution: op.execution.clone(),
        deadline_ms: control.deadline(),
        automatic: op.automatic,
    };
    control.agents.order(
        &op.target,
        Order::StandDown {
            group: group.clone(),
            term: op.term,
            op: op.id(),
        },
    );
    if let Err(error) = control
        .records
        .change(
            group,
            |record| record.begin(&begin),
            |_, txn| control.timeline.keep(txn, &op.execution, group),
        )
        .await
    {
        warn!(%group, %error, "the op could not be taken over");
        tokio::time::sleep(AGAIN).await;
    }
}
