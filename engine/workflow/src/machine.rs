//! Workflows that survive crashes: a list of steps, and their progress in the store.
//!
//! A step is performed, then its progress is written by compare-and-swap, then the next one
//! begins. A crash in between repeats the step, so every step must be safe to repeat; two runners
//! at once may both perform a step, but only one of them goes on.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::store::{Expect, Revision, Store, StoreError, Txn};

/// Shape of the record. A newer one is refused.
const SCHEMA: u32 = 1;

/// One kind of workflow: what each step does, on one screen.
#[async_trait]
pub trait Workflow: Send + Sync {
    /// An enum; each value carries all that its step needs to know.
    type Step: Clone + fmt::Debug + PartialEq + Serialize + DeserializeOwned + Send + Sync;
    /// What steps learn for later steps.
    type State: Clone + fmt::Debug + Serialize + DeserializeOwned + Send + Sync;

    /// Performs a step. Must be safe to repeat, also long after it succeeded.
    async fn perform(&self, step: &Self::Step, state: &mut Self::State) -> Result<(), StepError>;

    /// Takes a step back when the workflow is called off. Must be safe to repeat, and on a step
    /// that was performed only in part.
    async fn undo(&self, step: &Self::Step, state: &mut Self::State) -> Result<(), StepError>;
}

/// Why a step did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// It may succeed when repeated.
    #[error("{0}")]
    Again(Box<dyn Error + Send + Sync>),
    /// It never will: take everything back. Not for a step behind the point of no return, and not
    /// for undoing.
    #[error("called off: {reason}")]
    CallOff {
        /// For people.
        reason: String,
    },
}

impl StepError {
    /// An error after which the step is repeated.
    pub fn again(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Again(error.into())
    }
}

/// Where an execution is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "phase")]
pub enum Phase {
    /// Steps are being performed.
    Forward,
    /// Steps are being taken back.
    Back {
        /// Why.
        reason: String,
    },
    /// All steps are done.
    Done,
    /// All steps are taken back.
    CalledOff {
        /// Why.
        reason: String,
    },
}

/// The record in the store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(bound = "P: Serialize + DeserializeOwned, S: Serialize + DeserializeOwned")]
pub struct Progress<P, S> {
    schema: u32,
    /// All steps, decided before the first one is performed.
    pub steps: Vec<P>,
    /// How many of them are done and not taken back.
    pub done: usize,
    /// Direction, or end.
    #[serde(flatten)]
    pub phase: Phase,
    /// What the steps learned.
    pub state: S,
}

/// How an execution ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome<S> {
    /// All steps are done.
    Done(S),
    /// All steps are taken back.
    CalledOff {
        /// Why.
        reason: String,
        /// What the steps learned.
        state: S,
    },
}

/// What one [`Execution::advance`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Advance<S> {
    /// One step forward or back; more are left.
    Stepped,
    /// Nothing is left.
    Ended(Outcome<S>),
}

/// Limits of one step.
#[derive(Debug, Clone, Copy)]
pub struct StepLimits {
    /// Attempts of [`Execution::run`] before it gives the error to its caller.
    pub attempts: u32,
    /// Pause between attempts.
    pub pause: Duration,
    /// An attempt that takes longer is dropped and counts as failed.
    pub attempt: Duration,
}

impl Default for StepLimits {
    fn default() -> Self {
        Self {
            attempts: 10,
            pause: Duration::from_millis(50),
            attempt: Duration::from_secs(30),
        }
    }
}

/// Why an execution stopped before its end. It can be taken up again from the store.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Another runner wrote the record: it drives now.
    #[error("another runner drives {key}")]
    Overtaken {
        /// The record.
        key: String,
    },
    /// There is no such record.
    #[error("there is no execution at {key}")]
    Missing {
        /// The record.
        key: String,
    },
    /// An execution of this name was begun before.
    #[error("{key} was begun already")]
    Begun {
        /// The record.
        key: String,
    },
    /// The record cannot be read.
    #[error("the record {key} cannot be read: {reason}")]
    Record {
        /// The record.
        key: String,
        /// Why.
        reason: String,
    },
    /// The store failed.
    #[error("the store failed")]
    Store(#[from] StoreError),
    /// A step failed.
    #[error("step {step} failed")]
    Step {
        /// The step.
        step: String,
        /// Why.
        source: Box<dyn Error + Send + Sync>,
    },
}

/// One execution of a workflow: its record's key, and who performs its steps.
pub struct Execution<W> {
    store: Arc<dyn Store>,
    key: String,
    workflow: W,
    limits: StepLimits,
}

impl<W: Workflow> Execution<W> {
    /// The execution at `key`; [`Execution::begin`] it, or take up one that was begun.
    pub fn new(store: Arc<dyn Store>, key: &str, workflow: W, limits: StepLimits) -> Self {
        Self {
            store,
            key: key.to_owned(),
            workflow,
            limits,
        }
    }

    /// The value to put for a new execution, for callers that begin it in a transaction of their
    /// own (with [`Expect::Absent`] on its key).
    pub fn first_record(steps: Vec<W::Step>, state: W::State) -> Result<Bytes, RunError> {
        let phase = if steps.is_empty() {
            Phase::Done
        } else {
            Phase::Forward
        };
        let progress = Progress {
            schema: SCHEMA,
            steps,
            done: 0,
            phase,
            state,
        };
        encode("a new execution", &progress)
    }

    /// Writes the record; performs nothing.
    pub async fn begin(&self, steps: Vec<W::Step>, state: W::State) -> Result<(), RunError> {
        let first = Self::first_record(steps, state)?;
        match self.write(Expect::Absent, first).await {
            Err(RunError::Overtaken { key }) => Err(RunError::Begun { key }),
            other => other,
        }
    }

    /// The record as it is now.
    pub async fn progress(&self) -> Result<Progress<W::Step, W::State>, RunError> {
        Ok(self.read().await?.1)
    }

    /// Who performs the steps.
    pub fn workflow(&self) -> &W {
        &self.workflow
    }

    /// Takes the execution to its end, from wherever it is.
    pub async fn run(&self) -> Result<Outcome<W::State>, RunError> {
        let mut failures = 0;
        loop {
            match self.advance().await {
                Ok(Advance::Ended(outcome)) => return Ok(outcome),
                Ok(Advance::Stepped) => failures = 0,
                Err(RunError::Step { step, source }) if failures + 1 < self.limits.attempts => {
                    failures += 1;
                    warn!(execution = %self.key, %step, error = %source, failures, "step repeats");
                    tokio::time::sleep(self.limits.pause).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// One attempt at one step, and its progress written.
    pub async fn advance(&self) -> Result<Advance<W::State>, RunError> {
        let (revision, mut progress) = self.read().await?;
        match progress.phase.clone() {
            Phase::Done => return Ok(Advance::Ended(Outcome::Done(progress.state))),
            Phase::CalledOff { reason } => {
                let state = progress.state;
                return Ok(Advance::Ended(Outcome::CalledOff { reason, state }));
            }
            Phase::Forward => self.forward(&mut progress).await?,
            Phase::Back { reason } => self.back(&mut progress, reason).await?,
        }
        let record = encode(&self.key, &progress)?;
        self.write(Expect::Revision(revision), record).await?;
        if !matches!(progress.phase, Phase::Forward | Phase::Back { .. }) {
            info!(execution = %self.key, phase = ?progress.phase, "execution ended");
        }
        Ok(Advance::Stepped)
    }

    async fn forward(&self, progress: &mut Progress<W::Step, W::State>) -> Result<(), RunError> {
        let Some(step) = progress.steps.get(progress.done) else {
            progress.phase = Phase::Done;
            return Ok(());
        };
        let attempt = self.workflow.perform(step, &mut progress.state);
        match self.within_limit(attempt).await {
            Ok(()) => {
                progress.done += 1;
                if progress.done == progress.steps.len() {
                    progress.phase = Phase::Done;
                }
                Ok(())
            }
            Err(StepError::CallOff { reason }) => {
                // The step itself is taken back too: it may have been performed in part.
                progress.done = (progress.done + 1).min(progress.steps.len());
                progress.phase = Phase::Back { reason };
                Ok(())
            }
            Err(StepError::Again(source)) => Err(failed(step, source)),
        }
    }

    async fn back(
        &self,
        progress: &mut Progress<W::Step, W::State>,
        reason: String,
    ) -> Result<(), RunError> {
        if let Some(step) = progress
            .done
            .checked_sub(1)
            .and_then(|at| progress.steps.get(at))
        {
            let attempt = self.workflow.undo(step, &mut progress.state);
            match self.within_limit(attempt).await {
                Ok(()) => progress.done -= 1,
                Err(StepError::Again(source)) => return Err(failed(step, source)),
                Err(error @ StepError::CallOff { .. }) => {
                    return Err(failed(step, error.into()));
                }
            }
        }
        if progress.done == 0 {
            progress.phase = Phase::CalledOff { reason };
        }
        Ok(())
    }

    async fn within_limit(
        &self,
        attempt: impl Future<Output = Result<(), StepError>>,
    ) -> Result<(), StepError> {
        let limit = self.limits.attempt;
        tokio::time::timeout(limit, attempt)
            .await
            .unwrap_or_else(|_| Err(StepError::again(format!("it took longer than {limit:?}"))))
    }

    async fn read(&self) -> Result<(Revision, Progress<W::Step, W::State>), RunError> {
        let found = self.store.get(&self.key).await?;
        let found = found.ok_or_else(|| RunError::Missing {
            key: self.key.clone(),
        })?;
        let record = |reason: String| RunError::Record {
            key: self.key.clone(),
            reason,
        };
        let schema: Schema =
            serde_json::from_slice(&found.value).map_err(|error| record(error.to_string()))?;
        if schema.schema > SCHEMA {
            let newer = schema.schema;
            return Err(record(format!(
                "schema {newer} was written by a newer version, this one knows {SCHEMA}; \
                 let a process of that version finish it"
            )));
        }
        let progress: Progress<W::Step, W::State> =
            serde_json::from_slice(&found.value).map_err(|error| record(error.to_string()))?;
        if progress.done > progress.steps.len() {
            return Err(record("more steps are done than there are".to_owned()));
        }
        Ok((found.revision, progress))
    }

    /// Writes the record; a write whose outcome is unknown is looked up.
    async fn write(&self, expect: Expect, record: Bytes) -> Result<(), RunError> {
        let overtaken = || RunError::Overtaken {
            key: self.key.clone(),
        };
        let txn = Txn::new()
            .expect(&self.key, expect)
            .put(&self.key, record.clone());
        match self.store.txn(txn).await {
            Ok(_) => Ok(()),
            Err(StoreError::Conflict { .. }) => Err(overtaken()),
            Err(unknown @ StoreError::OutcomeUnknown { .. }) => {
                let found = self.store.get(&self.key).await?;
                // Not written means not written yet: it may still come, so this runner stops here
                // and the next one reads again.
                match found {
                    Some(found) if found.value == record => Ok(()),
                    Some(found) if expect != Expect::Revision(found.revision) => Err(overtaken()),
                    _ => Err(unknown.into()),
                }
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// The part of a record that every version can read.
#[derive(Deserialize)]
struct Schema {
    schema: u32,
}

fn encode<T: Serialize>(key: &str, value: &T) -> Result<Bytes, RunError> {
    serde_json::to_vec(value)
        .map(Bytes::from)
        .map_err(|error| RunError::Record {
            key: key.to_owned(),
            reason: error.to_string(),
        })
}

fn failed(step: &impl fmt::Debug, source: Box<dyn Error + Send + Sync>) -> RunError {
    RunError::Step {
        step: format!("{step:?}"),
        source,
    }
}
