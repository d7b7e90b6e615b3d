//! An execution: one run of a plan, or of what a verdict ordered.

use atoll_topology::{GroupId, MemberId, Term};
use serde::{Deserialize, Serialize};

use crate::{Object, Timestamp};

/// What the operator wants of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Control {
    /// Go on.
    #[default]
    Run,
    /// Begin no further group.
    Pause,
    /// Undo what can be undone, begin nothing more.
    Abort,
}

/// What is wanted. The resource's name is the idempotency key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecutionSpec {
    /// Hash of the plan.
    pub plan: String,
    /// What the operator wants.
    #[serde(default)]
    pub control: Control,
    /// Whether a verdict ordered it, not a person.
    #[serde(default)]
    pub automatic: bool,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Taken, not begun.
    Pending,
    /// At work.
    Running,
    /// Stopped between groups, because it was told to.
    Paused,
    /// All done.
    Succeeded,
    /// Ended without reaching its end; `message` says why.
    Failed,
    /// Undone as far as it could be.
    Aborted,
}

impl Phase {
    /// Whether nothing more will happen.
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Aborted)
    }
}

/// How far a step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StepState {
    /// Not begun.
    Pending,
    /// At work.
    Running,
    /// Done.
    Done,
    /// Not done; `message` says why.
    Failed,
    /// Not needed.
    Skipped,
}

/// One step for one group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// `P1 record`, `P6 opening transaction`, …
    pub name: String,
    /// For which group; none for what concerns all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupId>,
    /// How far it is.
    pub state: StepState,
    /// When it began, in ms since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_unix_ms: Option<u64>,
    /// When it ended, in ms since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_unix_ms: Option<u64>,
    /// What there is to say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// What became of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupOutcome {
    /// Which group.
    pub group: GroupId,
    /// Its open term before.
    pub term_before: Term,
    /// Its open term now.
    pub term: Term,
    /// Its primary before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub primary_before: Option<MemberId>,
    /// Its primary now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub primary: Option<MemberId>,
    /// Owners now, as in `0-24 sh-1 epoch 3`.
    pub owners: Vec<String>,
}

/// Figures in ms; none where one does not apply or is not known yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// From the loss to the verdict.
    pub detection_ms: Option<f64>,
    /// From the closing of the gates to the publication of the new owner.
    pub hold_ms: Option<f64>,
    /// From the publication to the last live acknowledgement.
    pub convergence_ms: Option<f64>,
    /// From the loss or the order to the new owner's publication, the worst group.
    pub rto_ms: Option<f64>,
}

/// What is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExecutionStatus {
    /// How far it is.
    pub phase: Phase,
    /// Why, in words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// When it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Timestamp>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished: Option<Timestamp>,
    /// In the order in which they began.
    pub steps: Vec<Step>,
    /// By group.
    pub groups: Vec<GroupOutcome>,
    /// How long it took.
    #[serde(default)]
    pub figures: Figures,
}

/// An execution as a resource.
pub type Execution = Object<ExecutionSpec, ExecutionStatus>;

/// What the proofs of executions are verified with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PublicKey {
    /// `Ed25519`.
    pub algorithm: String,
    /// In hexadecimal.
    pub public_key: String,
}
