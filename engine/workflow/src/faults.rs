//! Faults for the tests of every workflow: a failure after each step, each step twice, and a crash
//! between each step and its record.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;

use crate::machine::{Execution, Outcome, RunError, StepError, StepLimits, Workflow};
use crate::store::Store;

/// Where a fault is put into an execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// None, for comparison.
    None,
    /// The n-th attempt (from 0) is carried out, and then reported as failed.
    FailAfter(usize),
    /// The n-th attempt is not carried out and reported as failed.
    FailBefore(usize),
    /// Every step is carried out twice.
    Twice,
    /// The n-th attempt is carried out and its record is not written: the runner dies, and
    /// another takes the execution up.
    CrashAfter(usize),
}

/// A workflow with a fault in it.
pub struct Faulty<W> {
    inner: Arc<W>,
    fault: Fault,
    attempts: AtomicUsize,
    crashed: Notify,
}

impl<W: Workflow> Faulty<W> {
    /// Puts the fault in.
    pub fn new(inner: Arc<W>, fault: Fault) -> Self {
        Self {
            inner,
            fault,
            attempts: AtomicUsize::new(0),
            crashed: Notify::new(),
        }
    }

    /// What happens at this attempt: how often it is carried out, and what is said after.
    fn next(&self) -> (usize, After) {
        let at = self.attempts.fetch_add(1, Ordering::SeqCst);
        match self.fault {
            Fault::FailAfter(n) if n == at => (1, After::Fail),
            Fault::FailBefore(n) if n == at => (0, After::Fail),
            Fault::CrashAfter(n) if n == at => (1, After::Crash),
            Fault::Twice => (2, After::Report),
            _ => (1, After::Report),
        }
    }

    async fn then(&self, after: After, done: Result<(), StepError>) -> Result<(), StepError> {
        match after {
            After::Report => done,
            After::Fail => Err(StepError::again("a fault of the test")),
            After::Crash => {
                self.crashed.notify_one();
                // The runner that awaits this is dropped by the test.
                std::future::pending().await
            }
        }
    }
}

enum After {
    Report,
    Fail,
    Crash,
}

#[async_trait]
impl<W: Workflow> Workflow for Faulty<W> {
    type Step = W::Step;
    type State = W::State;

    async fn perform(&self, step: &W::Step, state: &mut W::State) -> Result<(), StepError> {
        let (times, after) = self.next();
        let mut done = Ok(());
        for _ in 0..times {
            done = self.inner.perform(step, state).await;
        }
        self.then(after, done).await
    }

    async fn undo(&self, step: &W::Step, state: &mut W::State) -> Result<(), StepError> {
        let (times, after) = self.next();
        let mut done = Ok(());
        for _ in 0..times {
            done = self.inner.undo(step, state).await;
        }
        self.then(after, done).await
    }
}

/// Attempts while a fault is in; enough for repeats, few enough to end a test that cannot.
const LIMITS: StepLimits = StepLimits {
    attempts: 5,
    pause: Duration::ZERO,
    attempt: Duration::from_secs(3600),
};

/// Runs a workflow once for every fault at every attempt, each time afresh: `fresh` gives a store,
/// the workflow, its steps and its first state; `check` looks at the outcome.
pub async fn every_fault<W: Workflow>(
    fresh: impl AsyncFn() -> (Arc<dyn Store>, Arc<W>, Vec<W::Step>, W::State),
    check: impl AsyncFn(Fault, &W, Outcome<W::State>),
) -> Result<(), RunError> {
    let attempts = run_with(Fault::None, &fresh, &check).await?;
    run_with(Fault::Twice, &fresh, &check).await?;
    for at in 0..attempts {
        for fault in [
            Fault::FailAfter(at),
            Fault::FailBefore(at),
            Fault::CrashAfter(at),
        ] {
            run_with(fault, &fresh, &check).await?;
        }
    }
    Ok(())
}

async fn run_with<W: Workflow>(
    fault: Fault,
    fresh: &impl AsyncFn() -> (Arc<dyn Store>, Arc<W>, Vec<W::Step>, W::State),
    check: &impl AsyncFn(Fault, &W, Outcome<W::State>),
) -> Result<usize, RunError> {
    const KEY: &str = "/execution/faults";
    let (store, workflow, steps, state) = fresh().await;
    let faulty = Faulty::new(workflow.clone(), fault);
    let first = Execution::new(store.clone(), KEY, faulty, LIMITS);
    first.begin(steps, state).await?;
    let outcome = tokio::select! {
        biased;
        outcome = first.run() => outcome?,
        () = first.workflow().crashed.notified() => {
            let faultless = Faulty::new(workflow.clone(), Fault::None);
            Execution::new(store, KEY, faultless, LIMITS).run().await?
        }
    };
    check(fault, &workflow, outcome).await;
    Ok(first.workflow().attempts.load(Ordering::SeqCst))
}
