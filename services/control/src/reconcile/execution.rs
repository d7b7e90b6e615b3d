//! Executions: one run of a plan, kept in the store, gone through again after a restart.
//!
//! The plan leaves nothing to choose. A step is begun in the same transaction that notes that it
//! was begun, so it is begun once whatever happens; when its op has left the record it is done.

use std::sync::Arc;
use std::time::Duration;

use atoll_api::Control as Wanted;
use atoll_api::Phase;
use atoll_detection::guard::Guard;
use atoll_ownership::record::Refusal;
use atoll_planner::{Pace, Plan};
use atoll_topology::{GroupId, MemberId, Term};
use atoll_workflow::{Expect, StoreError, Txn};
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::app::Control;
use crate::records::ChangeError;
use crate::stored::decode;
use crate::timeline::Mark;

const PREFIX: &str = "/execution/";
/// Pause before a step that could not be done is tried again.
const AGAIN: Duration = Duration::from_millis(50);

/// How far a step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum StepPhase {
    /// Not begun.
    Pending,
    /// Its op is, or was, in the group's record.
    Begun,
    /// Its op has ended.
    Done,
}

/// A group before the execution.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Before {
    /// Which group.
    pub(crate) group: GroupId,
    /// Its open term.
    pub(crate) term: Term,
    /// Its primary.
    pub(crate) primary: Option<MemberId>,
}

/// An execution as the store keeps it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Stored {
    /// Its name: the idempotency key.
    pub(crate) name: String,
    /// The whole plan.
    pub(crate) plan: Plan,
    /// What the operator wants.
    pub(crate) wanted: Wanted,
    /// How far it is.
    pub(crate) phase: Phase,
    /// Why, in words.
    pub(crate) message: String,
    /// When it was made, in milliseconds of Unix time.
    pub(crate) created_ms: u64,
    /// When it was over.
    pub(crate) finished_ms: Option<u64>,
    /// One for each step of the plan.
    pub(crate) steps: Vec<StepPhase>,
    /// The plan's groups before it.
    pub(crate) before: Vec<Before>,
    /// When each step of each op was reached; complete once it is over.
    pub(crate) marks: Vec<Mark>,
}

impl Stored {
    /// A new one.
    pub(crate) fn new(control: &Control, name: String, plan: Plan) -> Self {
        let records = control.records.all();
        let before = plan.steps.iter().map(|step| {
            let open = records
                .get(&step.group)
                .and_then(|record| record.open.clone());
            Before {
                group: step.group.clone(),
                term: open.as_ref().map_or(Term::ZERO, |open| open.term),
                primary: open.map(|open| open.primary),
            }
        });
        Self {
            name,
            before: before.collect(),
            steps: vec![StepPhase::Pending; plan.steps.len()],
            plan,
            wanted: Wanted::Run,
            phase: Phase::Running,
            message: String::new(),
            created_ms: control.runtime.wall_clock().0,
            finished_ms: None,
            marks: vec![],
        }
    }

    fn encoded(&self) -> Vec<u8> {
        crate::stored::encode(self)
    }
}

fn key(name: &str) -> String {
    format!("{PREFIX}{name}")
}

/// One execution, and what a transaction must find to replace it.
pub(crate) async fn load(
    control: &Control,
    name: &str,
) -> Result<Option<(Stored, Expect)>, StoreError> {
    let key = key(name);
    let Some(found) = control.store.get(&key).await? else {
        return Ok(None);
    };
    Ok(Some((
        decode(&key, &found.value)?,
        Expect::Revision(found.revision),
    )))
}

/// All executions, by name.
pub(crate) async fn all(control: &Control) -> Result<Vec<Stored>, StoreError> {
    let listed = control.store.list(PREFIX).await?;
    listed
        .entries
        .iter()
        .map(|(key, found)| decode(key, &found.value))
        .collect()
}

/// Keeps a new execution and starts it; `Conflict` where the name is taken.
pub(crate) async fn create(control: &Arc<Control>, stored: Stored) -> Result<(), StoreError> {
    let key = key(&stored.name);
    let txn = Txn::new()
        .expect(&key, Expect::Absent)
        .put(&key, stored.encoded());
    control.store.txn(txn).await?;
    start(control, stored.name);
    Ok(())
}

/// What an automatic execution must find and leave of the guards, in the transaction that begins
/// its first step.
#[derive(Debug, Clone)]
pub(crate) struct Guarded {
    /// What must be there.
    pub(crate) expect: Expect,
    /// What is there then.
    pub(crate) next: Guard,
}

/// The same for a verdict: the guards are bumped with the execution.
pub(crate) async fn create_automatic(
    control: &Arc<Control>,
    stored: Stored,
    guarded: Guarded,
) -> Result<(), StoreError> {
    let key = key(&stored.name);
    let txn = Txn::new()
        .expect(&key, Expect::Absent)
        .put(&key, stored.encoded());
    control
        .store
        .txn(crate::guard::replace(txn, guarded.expect, &guarded.next))
        .await?;
    start(control, stored.name);
    Ok(())
}

/// Notes what the operator wants.
pub(crate) async fn want(control: &Control, name: &str, wanted: Wanted) -> Result<(), StoreError> {
    loop {
        let Some((mut stored, expect)) = load(control, name).await? else {
            return Ok(());
        };
        stored.wanted = wanted;
        match save(control, &stored, expect).await {
            Err(StoreError::Conflict { .. }) => {}
            other => return other,
        }
    }
}

async fn save(control: &Control, stored: &Stored, expect: Expect) -> Result<(), StoreError> {
    let key = key(&stored.name);
    control
        .store
        .txn(Txn::new().expect(&key, expect).put(&key, stored.encoded()))
        .await?;
    Ok(())
}

/// Goes on with everything that is not over; after a start.
pub(crate) async fn resume(control: &Arc<Control>) -> Result<(), StoreError> {
    for stored in all(control).await? {
        if !stored.phase.is_over() {
            info!(execution = stored.name, "execution resumed");
            start(control, stored.name);
        }
    }
    Ok(())
}

fn start(control: &Arc<Control>, name: String) {
    let task = format!("execution {name}");
    let control_for_task = control.clone();
    control.runtime.tasks().spawn(task, async move {
        let control = control_for_task;
        loop {
            match advance(&control, &name).await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => {
                    warn!(execution = name, %error, "execution waits; again");
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    });
}

/// One look and one act; whether it is over.
async fn advance(control: &Arc<Control>, name: &str) -> Result<bool, ChangeError> {
    let Some((stored, expect)) = load(control, name).await? else {
        return Ok(true);
    };
    if stored.phase.is_over() {
        return Ok(true);
    }
    let begun = stored
        .steps
        .iter()
        .filter(|step| **step == StepPhase::Begun)
        .count();
    let pending = stored
        .steps
        .iter()
        .position(|step| *step == StepPhase::Pending);
    let may_begin = begun == 0 || stored.plan.pace == Pace::Together;
    match (pending, stored.wanted) {
        (Some(at), Wanted::Run) if may_begin => begin(control, stored, expect, at).await,
        (_, Wanted::Run) if begun > 0 => ended(control, stored, expect).await,
        (None, _) if begun == 0 => {
            finish(control, stored, expect, Phase::Succeeded, String::new()).await
        }
        (_, Wanted::Abort) if begun == 0 => {
            finish(
                control,
                stored,
                expect,
                Phase::Aborted,
                "aborted by order".to_owned(),
            )
            .await
        }
        _ if begun > 0 => ended(control, stored, expect).await,
        _ => {
            tokio::time::sleep(AGAIN * 4).await;
            Ok(false)
        }
    }
}

async fn begin(
    control: &Arc<Control>,
    mut stored: Stored,
    expect: Expect,
    at: usize,
) -> Result<bool, ChangeError> {
    let now_ms = control.runtime.wall_clock().0;
    let step = stored.plan.steps[at].clone();
    let order = step.begin(&stored.plan, &stored.name, now_ms);
    stored.steps[at] = StepPhase::Begun;
    let (key, value) = (key(&stored.name), stored.encoded());
    let changed = control.records.change(
        &step.group,
        |record| {
            // The plan names the epochs too, which an owner change moves without a new term.
            step.fits(record).map_err(|moved| Refusal::Unfit {
                kind: step.kind,
                needs: format!("the world that it was planned for: {moved}"),
            })?;
            record.begin(&order)
        },
        |txn| txn.expect(&key, expect).put(&key, value),
    );
    match changed.await {
        Ok(record) => {
            if let Some(op) = &record.op {
                control.timeline.mark(op, &step.group, "begun");
            }
            Ok(false)
        }
        Err(ChangeError::Refused(refusal)) => {
            stored.steps[at] = StepPhase::Pending;
            let message = format!("group {}: {refusal}", step.group);
            finish(control, stored, expect, Phase::Failed, message).await
        }
        Err(error) => Err(error),
    }
}

/// Waits until the op of one begun step has left its group's record.
async fn ended(
    control: &Arc<Control>,
    mut stored: Stored,
    expect: Expect,
) -> Result<bool, ChangeError> {
    let begun: Vec<usize> = (0..stored.steps.len())
        .filter(|at| stored.steps.get(*at) == Some(&StepPhase::Begun))
        .collect();
    let mut records = control.records.subscribe();
    let at = loop {
        let groups = records.borrow_and_update().clone();
        let over = begun.iter().find(|at| {
            let step = &stored.plan.steps[**at];
            groups.get(&step.group).is_none_or(|record| {
                record
                    .op
                    .as_ref()
                    .is_none_or(|op| op.execution != stored.name)
            })
        });
        if let Some(at) = over {
            break *at;
        }
        if records.changed().await.is_err() {
            return Ok(true);
        }
    };
    stored.steps[at] = StepPhase::Done;
    save(control, &stored, expect).await?;
    Ok(false)
}

async fn finish(
    control: &Arc<Control>,
    mut stored: Stored,
    expect: Expect,
    phase: Phase,
    message: String,
) -> Result<bool, ChangeError> {
    if phase == Phase::Succeeded {
        // The last mark of each group is that every live data plane uses the new table.
        control
            .timeline
            .settled(&stored.name, stored.steps.len())
            .await;
    }
    info!(execution = stored.name, ?phase, message, "execution over");
    stored.phase = phase;
    stored.message = message;
    stored.finished_ms = Some(control.runtime.wall_clock().0);
    stored.marks = control.timeline.of(&stored.name);
    save(control, &stored, expect).await?;
    Ok(true)
}
