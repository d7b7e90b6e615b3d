//! Executions: one run of a plan, kept in the store, gone through again after a restart.
//!
//! The plan leaves nothing to choose. A step is begun in the same transaction that notes that it
//! was begun, so it is begun once whatever happens; when its op has left the record it is done.
//!
//! What runs an execution is that it stands in the store: whoever put it there, this replica or
//! another one, and whether or not its author lived to say so.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use atoll_api::Control as Wanted;
use atoll_api::Phase;
use atoll_detection::guard::Guard;
use atoll_ownership::OpKind;
use atoll_ownership::record::{GroupRecord, Refusal};
use atoll_planner::{Pace, Plan, Step};
use atoll_store::{Expect, StoreError, Txn};
use atoll_topology::{GroupId, MemberId, ShardId, Term};
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::app::Control;
use crate::follow::Kept;
use crate::proof::{self, Noted};
use crate::reconcile::op;
use crate::records::ChangeError;
use crate::stored::decode;
use crate::timeline::{BEGUN, Timeline};

/// Pause before a step that could not be done is tried again.
const AGAIN: Duration = Duration::from_millis(50);
/// How often the same transaction is tried whose outcome the store does not say.
const UNKNOWN_MAX: u32 = 5;
/// Executions that are over and are kept, with their steps; proofs and plans are kept for ever.
pub(crate) const OVER_MAX: usize = 200;
/// Older ones that are removed with one transaction.
const REMOVED_AT_ONCE: usize = 8;

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
    /// How it ends once what was begun has ended: something failed, and nothing more is begun.
    #[serde(default)]
    pub(crate) ends: Option<Phase>,
    /// When it was made, in milliseconds of Unix time.
    pub(crate) created_ms: u64,
    /// When it was over.
    pub(crate) finished_ms: Option<u64>,
    /// One for each step of the plan.
    pub(crate) steps: Vec<StepPhase>,
    /// The plan's groups before it.
    pub(crate) before: Vec<Before>,
    /// More about the world before it, for its proof.
    #[serde(default)]
    pub(crate) noted: Noted,
}

impl Kept for Stored {
    const PREFIX: &'static str = "/execution/";
    type Name = String;
    fn name(&self) -> String {
        self.name.clone()
    }
    fn key(&self) -> String {
        key(&self.name)
    }
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
            noted: proof::note(control, plan.steps.iter().map(|step| &step.group)),
            steps: vec![StepPhase::Pending; plan.steps.len()],
            plan,
            wanted: Wanted::Run,
            phase: Phase::Running,
            message: String::new(),
            ends: None,
            created_ms: control.runtime.wall_clock().0,
            finished_ms: None,
        }
    }

    /// The steps whose ops have ended.
    pub(crate) fn steps_done(&self) -> impl Iterator<Item = &Step> {
        let done = |(step, phase): (_, &StepPhase)| (*phase == StepPhase::Done).then_some(step);
        self.plan.steps.iter().zip(&self.steps).filter_map(done)
    }

    /// The groups that it is about.
    fn groups(&self) -> BTreeSet<&GroupId> {
        self.before.iter().map(|before| &before.group).collect()
    }

    fn encoded(&self) -> Vec<u8> {
        crate::stored::encode(self)
    }
}

fn key(name: &str) -> String {
    format!("{}{name}", Stored::PREFIX)
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

/// Keeps a new execution; once it returns, it will run, whatever happens to this process.
/// `Conflict` where the name is taken by another plan.
pub(crate) async fn create(control: &Arc<Control>, stored: &Stored) -> Result<(), StoreError> {
    let key = key(&stored.name);
    let mut tries = 0;
    loop {
        tries += 1;
        let txn = Txn::new()
            .expect(&key, Expect::Absent)
            .put(&key, stored.encoded());
        let error = match control.store.txn(txn).await {
            Ok(revision) => {
                control.executions.note(revision, [stored.clone()]);
                return Ok(());
            }
            Err(error) => error,
        };
        let unknown = matches!(error, StoreError::OutcomeUnknown { .. });
        if !unknown && !matches!(error, StoreError::Conflict { .. }) {
            return Err(error);
        }
        // The name is the idempotency key: the same plan under it is this very execution, be it of
        // this transaction, of an earlier one, or of another replica.
        match control.store.get(&key).await? {
            Some(found) => {
                let there: Stored = decode(&key, &found.value)?;
                let same = there.plan.hash() == stored.plan.hash();
                control.executions.note(found.revision, [there]);
                return if same {
                    Ok(())
                } else {
                    Err(StoreError::Conflict { key })
                };
            }
            // Not there, or not yet: the same again is harmless.
            None if tries < UNKNOWN_MAX => {}
            None => return Err(error),
        }
    }
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

/// The same for a verdict: the guards are bumped with the execution. What is not known to have
/// been kept is looked at again with the next verdict; if it was kept, it runs.
pub(crate) async fn create_automatic(
    control: &Arc<Control>,
    stored: &Stored,
    guarded: Guarded,
) -> Result<(), StoreError> {
    let key = key(&stored.name);
    let txn = Txn::new()
        .expect(&key, Expect::Absent)
        .put(&key, stored.encoded());
    let revision = control
        .store
        .txn(crate::guard::replace(txn, guarded.expect, &guarded.next))
        .await?;
    control.executions.note(revision, [stored.clone()]);
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
    save_with(control, stored, expect, |txn| txn).await
}

async fn save_with(
    control: &Control,
    stored: &Stored,
    expect: Expect,
    also: impl FnOnce(Txn) -> Txn,
) -> Result<(), StoreError> {
    let key = key(&stored.name);
    let txn = Txn::new().expect(&key, expect).put(&key, stored.encoded());
    let revision = control.store.txn(also(txn)).await?;
    control.executions.note(revision, [stored.clone()]);
    Ok(())
}

/// Runs every execution that is not over, for ever: after a start those that were broken off, and
/// then each that comes to stand in the store.
pub(crate) async fn run_all(control: Arc<Control>) {
    let mut executions = control.executions.subscribe();
    let mut running = BTreeMap::new();
    loop {
        control.seat.until_acts().await;
        let all = executions.borrow_and_update().clone();
        running.retain(|_, task: &mut atoll_runtime::TaskHandle<()>| !task.is_finished());
        for stored in all.values().filter(|stored| !stored.phase.is_over()) {
            if !running.contains_key(&stored.name) {
                let task = format!("execution {}", stored.name);
                let work = run(control.clone(), stored.name.clone());
                let task = control.runtime.tasks().spawn(task, work);
                running.insert(stored.name.clone(), task);
            }
        }
        tokio::select! {
            changed = executions.changed() => if changed.is_err() {
                return;
            },
            () = control.seat.until_idle() => {}
        }
    }
}

async fn run(control: Arc<Control>, name: String) {
    loop {
        control.seat.until_acts().await;
        match advance(&control, &name).await {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => {
                warn!(execution = name, %error, "execution waits; again");
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
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
    if let (Some(phase), 0) = (stored.ends, begun) {
        let message = stored.message.clone();
        return finish(control, stored, expect, phase, message).await;
    }
    let may_begin = stored.ends.is_none() && (begun == 0 || stored.plan.pace == Pace::Together);
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
        _ => paused(control, stored, expect).await,
    }
}

/// Between two steps, until the operator wants something else.
async fn paused(
    control: &Arc<Control>,
    mut stored: Stored,
    expect: Expect,
) -> Result<bool, ChangeError> {
    let mut executions = control.executions.subscribe();
    if stored.phase != Phase::Paused {
        stored.phase = Phase::Paused;
        save(control, &stored, expect).await?;
    }
    let wants = |all: &crate::follow::All<Stored>| {
        let now = all.get(&stored.name);
        now.is_none_or(|now| now.wanted != Wanted::Pause)
    };
    while !wants(&executions.borrow_and_update().clone()) {
        if executions.changed().await.is_err() {
            return Ok(true);
        }
    }
    Ok(false)
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
    if stored.steps.iter().all(|step| *step == StepPhase::Pending) {
        stored.noted.count(control);
    }
    stored.steps[at] = StepPhase::Begun;
    stored.phase = Phase::Running;
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
        |record, txn| {
            let txn = txn.expect(&key, expect).put(&key, value);
            match &record.op {
                Some(op) => control.timeline.keep_begun(txn, op, &step.group),
                None => txn,
            }
        },
    );
    match changed.await {
        Ok(record) => {
            if let Some(op) = &record.op {
                control.timeline.mark(op, &step.group, BEGUN);
            }
            Ok(false)
        }
        Err(ChangeError::Refused(refusal)) => {
            stored.steps[at] = StepPhase::Pending;
            let message = format!("group {}: {refusal}", step.group);
            // A verdict that somebody else has acted upon meanwhile is no failure: what is still
            // wrong leads to the next one.
            let phase = if stored.plan.automatic {
                Phase::Aborted
            } else {
                Phase::Failed
            };
            fail(control, stored, expect, phase, message).await
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
    // At least as new as the execution that says what was begun: another replica may have begun it,
    // and in what is followed here its op may not have come, which is not to have ended.
    control.records.refresh().await?;
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
    if !control.seat.acts() {
        // Whoever acts now says that it has ended, and compares its rows.
        return Ok(false);
    }
    let step = &stored.plan.steps[at];
    let record = control.records.get(&step.group);
    let missed = record.and_then(|record| missed(step, &record));
    stored.steps[at] = StepPhase::Done;
    if let Some(missed) = missed {
        let stopped = control.timeline.of(&stored.name).into_iter().rev();
        let stopped = stopped
            .filter(|mark| mark.group == step.group)
            .find_map(|mark| mark.step.strip_prefix("stopped: ").map(str::to_owned));
        let why = stopped.map(|why| format!(" ({why})")).unwrap_or_default();
        let message = format!("group {}: {missed}{why}", step.group);
        return fail(control, stored, expect, Phase::Failed, message).await;
    }
    save(control, &stored, expect).await?;
    Ok(false)
}

/// What the step wanted and its op did not bring about: it was called off, or a later one went
/// elsewhere. That another member leads than the one that was planned is no failure.
fn missed(step: &Step, record: &GroupRecord) -> Option<String> {
    for moved in &step.moves {
        for shard in (moved.first.0..=moved.last.0).map(ShardId) {
            let owner = &record.run_of(shard)?.cell;
            if *owner != moved.to {
                return Some(format!(
                    "shard {shard} is owned by {owner}, not {}",
                    moved.to
                ));
            }
        }
    }
    let open = record.open.as_ref()?;
    let stayed = step.kind == OpKind::Switchover && open.primary == step.from;
    stayed.then(|| format!("{} still leads", step.from))
}

/// Ends it; where ops of it still run, with the last of them: what is said of it, and signed, is
/// said of no group in the middle of its op.
async fn fail(
    control: &Arc<Control>,
    mut stored: Stored,
    expect: Expect,
    phase: Phase,
    message: String,
) -> Result<bool, ChangeError> {
    if !stored.steps.contains(&StepPhase::Begun) {
        // What failed first is why.
        let first = stored.ends.map(|ends| (ends, stored.message.clone()));
        let (phase, message) = first.unwrap_or((phase, message));
        return finish(control, stored, expect, phase, message).await;
    }
    if stored.ends.is_none() {
        stored.ends = Some(phase);
        stored.message = message;
    }
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
        converge(control, &stored).await?;
    }
    stored.phase = phase;
    stored.message = message;
    stored.finished_ms = Some(control.runtime.wall_clock().0);
    let proof = proof::make(control, &stored).await;
    let groups = stored.groups();
    let keep = |txn| {
        let keep = |txn, group: &&GroupId| control.timeline.keep(txn, &stored.name, group);
        let txn: Txn = groups.iter().fold(txn, keep);
        match proof {
            Some(proof) => txn.put(proof::key(&stored.name), proof),
            None => txn,
        }
    };
    save_with(control, &stored, expect, keep).await?;
    let (phase, message) = (stored.phase, &stored.message);
    info!(execution = stored.name, ?phase, message, "execution over");
    if let Err(error) = remove_old(control).await {
        // The next one that ends does it.
        warn!(%error, "old executions were not removed");
    }
    Ok(true)
}

/// Removes the oldest of those that are over where there are more than are kept.
async fn remove_old(control: &Control) -> Result<(), StoreError> {
    let all = control.executions.all();
    let over = all.values().filter(|stored| stored.phase.is_over());
    let mut over: Vec<&Stored> = over.collect();
    over.sort_by_key(|stored| stored.finished_ms);
    let more = over.len().saturating_sub(OVER_MAX);
    let old = over.into_iter().take(more.min(REMOVED_AT_ONCE));
    let mut old = old.peekable();
    if old.peek().is_none() {
        return Ok(());
    }
    let remove = |txn: Txn, stored: &Stored| {
        let remove = |txn, group: &GroupId| Timeline::remove(txn, &stored.name, group);
        stored
            .groups()
            .into_iter()
            .fold(txn.delete(stored.key()), remove)
    };
    control.store.txn(old.fold(Txn::new(), remove)).await?;
    Ok(())
}

/// The last mark of each group is that every live data plane uses the new table. Where the one who
/// published was lost before it could say so, it is published again, which changes nothing.
async fn converge(control: &Arc<Control>, stored: &Stored) -> Result<(), StoreError> {
    let groups: Vec<GroupId> = stored.steps_done().map(|step| step.group.clone()).collect();
    for group in &groups {
        op::published_again(control, &stored.name, group).await?;
    }
    control.timeline.settled(&stored.name, &groups).await;
    Ok(())
}
