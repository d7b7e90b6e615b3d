//! When each step of each op was reached: the raw material of an Execution's status, and of every
//! figure that is told about a switch.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use atoll_ownership::TermRow;
use atoll_ownership::record::{GroupRecord, Op};
use atoll_runtime::Runtime;
use atoll_topology::GroupId;
use serde::{Deserialize, Serialize};

/// Longest wait for the last marks of an execution: a little more than convergence may take.
const SETTLE_LIMIT: Duration = Duration::from_millis(3_500);
/// How often they are looked for.
const SETTLE_LOOK: Duration = Duration::from_millis(5);
/// Executions whose marks are kept in memory; the oldest go first.
const EXECUTIONS_MAX: usize = 1_000;

/// One step that was reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    /// Which group.
    pub(crate) group: GroupId,
    /// Under which term.
    pub(crate) term: u64,
    /// Which step.
    pub(crate) step: String,
    /// When, in milliseconds of Unix time.
    pub(crate) unix_ms: u64,
}

/// All marks, by execution.
pub(crate) struct Timeline {
    runtime: Runtime,
    marks: Mutex<BTreeMap<String, Vec<Mark>>>,
}

impl Timeline {
    /// An empty one.
    pub(crate) fn new(runtime: Runtime) -> Self {
        Self {
            runtime,
            marks: Mutex::default(),
        }
    }

    /// A step of an op was reached now.
    pub(crate) fn mark(&self, op: &Op, group: &GroupId, step: &str) {
        let mark = Mark {
            group: group.clone(),
            term: op.term.get(),
            step: step.to_owned(),
            unix_ms: self.runtime.wall_clock().0,
        };
        tracing::info!(%group, term = mark.term, execution = op.execution, step, "op step");
        let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        marks.entry(op.execution.clone()).or_default().push(mark);
        if marks.len() > EXECUTIONS_MAX {
            marks.pop_first();
        }
    }

    /// The tables name the new primary.
    pub(crate) fn published(&self, op: &Op, record: &GroupRecord, row: Option<TermRow>) {
        let step = match row {
            Some(row) => format!("published, timeline {} from {}", row.timeline, row.fork),
            None => "published".to_owned(),
        };
        self.mark(op, &record.group, &step);
    }

    /// Waits until every group of an execution has converged, or for the limit of that.
    pub(crate) async fn settled(&self, execution: &str, groups: usize) {
        let converged = async {
            loop {
                let marks = self.of(execution);
                let done = marks.iter().filter(|mark| mark.step == "converged").count();
                if done >= groups {
                    return;
                }
                tokio::time::sleep(SETTLE_LOOK).await;
            }
        };
        // Marks are for people: what is missing after the limit stays missing.
        let _late = tokio::time::timeout(SETTLE_LIMIT, converged).await;
    }

    /// What is known of an execution, oldest first.
    pub(crate) fn of(&self, execution: &str) -> Vec<Mark> {
        let marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        marks.get(execution).cloned().unwrap_or_default()
    }
}
