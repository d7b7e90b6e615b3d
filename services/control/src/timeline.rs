//! When each step of each op was reached: the raw material of an Execution's status, of its proof,
//! and of every figure that is told about a switch.
//!
//! A mark is in memory at once, and in the store with the next transaction of its op (P1, P8) or of
//! its execution; between those, beside the op and without holding it up. A step that is gone
//! through again after a restart keeps the time at which it was first reached.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use atoll_ownership::TermRow;
use atoll_ownership::record::{GroupRecord, Op};
use atoll_runtime::Runtime;
use atoll_store::{Store, StoreError, Txn};
use atoll_topology::GroupId;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::follow::{Followed, Kept};
use crate::stored::encode;

/// Longest wait for the last marks of an execution: a little more than convergence may take.
const SETTLE_LIMIT: Duration = Duration::from_millis(3_500);
/// The op stands in the group's record.
pub(crate) const BEGUN: &str = "begun";
/// The tables name the new primary.
pub(crate) const PUBLISHED: &str = "published";
/// Every live data plane uses the table that names the new primary.
pub(crate) const CONVERGED: &str = "converged";

/// One step that was reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    /// Which group.
    pub(crate) group: GroupId,
    /// Under which term.
    pub(crate) term: u64,
    /// By which of the group's ops.
    pub(crate) op: u64,
    /// Which step.
    pub(crate) step: String,
    /// When, in milliseconds of Unix time.
    pub(crate) unix_ms: u64,
}

impl Mark {
    /// The step without its details.
    fn name(&self) -> &str {
        self.step.split(',').next().unwrap_or_default()
    }
}

/// The marks of one group in one execution, as the store keeps them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Marks {
    execution: String,
    group: GroupId,
    marks: Vec<Mark>,
}

impl Kept for Marks {
    const PREFIX: &'static str = "/marks/";
    type Name = (String, GroupId);
    fn name(&self) -> Self::Name {
        (self.execution.clone(), self.group.clone())
    }
    fn key(&self) -> String {
        key(&self.execution, &self.group)
    }
}

/// Where a group's marks in an execution stand.
fn key(execution: &str, group: &GroupId) -> String {
    format!("{}{execution}/{group}", Marks::PREFIX)
}

/// When a group came to a step for the last time, in milliseconds of Unix time.
pub(crate) fn reached(marks: &[Mark], group: &GroupId, step: &str) -> Option<u64> {
    let of = |mark: &&Mark| mark.group == *group && mark.step.starts_with(step);
    marks.iter().rfind(of).map(|mark| mark.unix_ms)
}

/// Milliseconds from one step of a group to another; none where it did not come to both.
pub(crate) fn span(marks: &[Mark], group: &GroupId, from: &str, to: &str) -> Option<u64> {
    let (from, to) = (reached(marks, group, from)?, reached(marks, group, to)?);
    Some(to.saturating_sub(from))
}

/// All marks.
pub(crate) struct Timeline {
    runtime: Runtime,
    store: Arc<dyn Store>,
    kept: Arc<Followed<Marks>>,
    marks: Arc<AllMarks>,
    /// The op of each group whose end this process says.
    telling: Mutex<BTreeMap<GroupId, u64>>,
}

/// What is known here, by execution and group.
struct AllMarks {
    marks: Mutex<BTreeMap<(String, GroupId), Vec<Mark>>>,
    changed: watch::Sender<u64>,
}

impl AllMarks {
    fn with<T>(&self, f: impl FnOnce(&mut BTreeMap<(String, GroupId), Vec<Mark>>) -> T) -> T {
        f(&mut self.marks.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The first time that a step was reached stands. Whether there were news.
    fn add(&self, name: (String, GroupId), new: &[Mark]) -> bool {
        let news = self.with(|all| merge(all.entry(name).or_default(), new));
        if news {
            self.changed.send_modify(|count| *count += 1);
        }
        news
    }
}

fn merge(marks: &mut Vec<Mark>, new: &[Mark]) -> bool {
    let mut news = false;
    for mark in new {
        let same = |known: &&mut Mark| known.op == mark.op && known.name() == mark.name();
        match marks.iter_mut().find(same) {
            Some(known) => {
                let before = known.clone();
                known.unix_ms = known.unix_ms.min(mark.unix_ms);
                // Who was there says more than who came after.
                if mark.step.len() > known.step.len() {
                    known.step.clone_from(&mark.step);
                }
                news |= *known != before;
            }
            None => {
                marks.push(mark.clone());
                news = true;
            }
        }
    }
    marks.sort_by_key(|mark| mark.unix_ms);
    news
}

impl Timeline {
    /// What the store has.
    pub(crate) async fn load(runtime: Runtime, store: Arc<dyn Store>) -> Result<Self, StoreError> {
        let marks = Arc::new(AllMarks {
            marks: Mutex::default(),
            changed: watch::Sender::new(0),
        });
        let merged = marks.clone();
        // Each by itself, as it comes: what is known of all the others is as it was.
        let told = move |name: &(String, GroupId), kept: Option<&Marks>| match kept {
            Some(kept) => drop(merged.add(name.clone(), &kept.marks)),
            None => drop(merged.with(|all| all.remove(name))),
        };
        Ok(Self {
            runtime,
            kept: Arc::new(Followed::load_telling(store.clone(), told).await?),
            store,
            marks,
            telling: Mutex::default(),
        })
    }

    /// Follows what other replicas mark.
    pub(crate) fn start(&self) {
        let follow = self.kept.clone().follow(self.runtime.clone());
        self.runtime.tasks().spawn("following marks", follow);
    }

    fn now(&self, op: &Op, group: &GroupId, step: &str) -> Mark {
        Mark {
            group: group.clone(),
            term: op.term.get(),
            op: op.number,
            step: step.to_owned(),
            unix_ms: self.runtime.wall_clock().0,
        }
    }

    /// A step of an op was reached now.
    pub(crate) fn mark(&self, op: &Op, group: &GroupId, step: &str) {
        let mark = self.now(op, group, step);
        if self
            .marks
            .add((op.execution.clone(), group.clone()), &[mark])
        {
            let (term, execution) = (op.term.get(), &op.execution);
            tracing::info!(%group, term, execution, step, "op step");
        }
    }

    /// The tables name the new primary.
    pub(crate) fn published(&self, op: &Op, record: &GroupRecord, row: Option<TermRow>) {
        let step = match row {
            Some(row) => format!("{PUBLISHED}, timeline {} from {}", row.timeline, row.fork),
            None => PUBLISHED.to_owned(),
        };
        self.mark(op, &record.group, &step);
    }

    /// Adds what is known of a group in an execution to a transaction of either.
    pub(crate) fn keep(&self, txn: Txn, execution: &str, group: &GroupId) -> Txn {
        put(txn, execution, group, self.of_group(execution, group))
    }

    /// The same for the transaction that begins an op: that it was begun is true only if the
    /// transaction is done.
    pub(crate) fn keep_begun(&self, txn: Txn, op: &Op, group: &GroupId) -> Txn {
        let mut marks = self.of_group(&op.execution, group);
        marks.push(self.now(op, group, BEGUN));
        put(txn, &op.execution, group, marks)
    }

    /// Writes what is known, beside whatever goes on: no step waits for it.
    pub(crate) fn write(self: &Arc<Self>, op: &Op, group: &GroupId) {
        let (timeline, execution) = (self.clone(), op.execution.clone());
        let group = group.clone();
        let name = format!("marks of {execution}");
        self.runtime.tasks().spawn(name, async move {
            let txn = timeline.keep(Txn::new(), &execution, &group);
            if let Err(error) = timeline.store.txn(txn).await {
                // The next transaction of the op brings them.
                tracing::debug!(%group, execution, %error, "marks were not kept");
            }
        });
    }

    /// This process says the last marks of an op, once the op's end is here.
    pub(crate) fn tells(&self, op: &Op, group: &GroupId) {
        self.telling().insert(group.clone(), op.number);
    }

    /// Its end was not said here after all.
    pub(crate) fn told_nothing(&self, group: &GroupId) {
        self.telling().remove(group);
    }

    /// Whether the end of a group's op was, or will be, said by this process.
    pub(crate) fn is_told(&self, group: &GroupId, op: u64) -> bool {
        self.telling().get(group) == Some(&op)
    }

    fn telling(&self) -> MutexGuard<'_, BTreeMap<GroupId, u64>> {
        self.telling.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the removal of what is kept of an execution to a transaction.
    pub(crate) fn remove(txn: Txn, execution: &str, group: &GroupId) -> Txn {
        txn.delete(key(execution, group))
    }

    /// Waits until each of these groups has converged in an execution, or for the limit of that.
    pub(crate) async fn settled(&self, execution: &str, groups: &[GroupId]) {
        let mut changed = self.subscribe();
        let converged = async {
            loop {
                changed.borrow_and_update();
                let done = |group: &GroupId| {
                    let marks = self.of_group(execution, group);
                    marks.last().is_some_and(|mark| mark.step == CONVERGED)
                };
                if groups.iter().all(done) {
                    return;
                }
                // The sender lives as long as `self`.
                let _ended = changed.changed().await;
            }
        };
        // Marks are for people: what is missing after the limit stays missing.
        let _late = tokio::time::timeout(SETTLE_LIMIT, converged).await;
    }

    /// What is known of an execution, oldest first.
    pub(crate) fn of(&self, execution: &str) -> Vec<Mark> {
        let mut marks: Vec<Mark> = self.marks.with(|all| {
            let own = all.iter().filter(|((name, _), _)| name == execution);
            own.flat_map(|(_, marks)| marks.clone()).collect()
        });
        marks.sort_by_key(|mark| mark.unix_ms);
        marks
    }

    fn of_group(&self, execution: &str, group: &GroupId) -> Vec<Mark> {
        let name = (execution.to_owned(), group.clone());
        self.marks
            .with(|all| all.get(&name).cloned().unwrap_or_default())
    }

    /// Tells when there are new marks.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.marks.changed.subscribe()
    }
}

fn put(txn: Txn, execution: &str, group: &GroupId, marks: Vec<Mark>) -> Txn {
    if marks.is_empty() {
        return txn;
    }
    let kept = Marks {
        execution: execution.to_owned(),
        group: group.clone(),
        marks,
    };
    txn.put(key(execution, group), encode(&kept))
}
