//! The step machine on the memory store: faults, unknown outcomes, two runners.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use atoll_store::{Fault as StoreFault, Memory, Operation};
use atoll_workflow::faults::{Fault, every_fault};
use atoll_workflow::{
    Execution, Outcome, Phase, RunError, StepError, StepLimits, Store, StoreError, Txn, Workflow,
};
use serde::{Deserialize, Serialize};

const KEY: &str = "/execution/move";
const LIMIT: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Step {
    Fence { cell: String },
    Copy { rows: u64 },
    Refuse,
    Open { cell: String },
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Learned {
    rows: u64,
}

/// A world that the steps change; setting a thing twice is the same as once.
#[derive(Default)]
struct Move {
    fenced: Mutex<Vec<String>>,
    open: Mutex<Vec<String>>,
    performed: AtomicUsize,
}

fn set(list: &Mutex<Vec<String>>, cell: &str) {
    let mut list = list.lock().unwrap();
    if !list.iter().any(|found| found == cell) {
        list.push(cell.into());
    }
}

fn unset(list: &Mutex<Vec<String>>, cell: &str) {
    list.lock().unwrap().retain(|found| found != cell);
}

#[async_trait]
impl Workflow for Move {
    type Step = Step;
    type State = Learned;

    async fn perform(&self, step: &Step, learned: &mut Learned) -> Result<(), StepError> {
        self.performed.fetch_add(1, Ordering::SeqCst);
        match step {
            Step::Fence { cell } => set(&self.fenced, cell),
            Step::Copy { rows } => learned.rows = *rows,
            Step::Refuse => {
                return Err(StepError::CallOff {
                    reason: "no room".into(),
                });
            }
            Step::Open { cell } => set(&self.open, cell),
        }
        Ok(())
    }

    async fn undo(&self, step: &Step, learned: &mut Learned) -> Result<(), StepError> {
        match step {
            Step::Fence { cell } => unset(&self.fenced, cell),
            Step::Copy { .. } => learned.rows = 0,
            Step::Refuse => {}
            Step::Open { cell } => unset(&self.open, cell),
        }
        Ok(())
    }
}

fn steps() -> Vec<Step> {
    vec![
        Step::Fence { cell: "a".into() },
        Step::Copy { rows: 7 },
        Step::Open { cell: "b".into() },
    ]
}

fn refused() -> Vec<Step> {
    let mut steps = steps();
    steps.insert(2, Step::Refuse);
    steps
}

fn is(list: &Mutex<Vec<String>>, wanted: &[&str]) -> bool {
    *list.lock().unwrap() == wanted
}

fn execution(store: &Memory, workflow: Move) -> Execution<Move> {
    let limits = StepLimits {
        attempts: 3,
        pause: Duration::ZERO,
        attempt: LIMIT,
    };
    Execution::new(Arc::new(store.clone()), KEY, workflow, limits)
}

#[tokio::test]
async fn a_workflow_ends_the_same_whatever_fails_on_its_way() {
    let seen = Mutex::new(Vec::new());
    let fresh = async || {
        (
            Arc::new(Memory::new()) as Arc<dyn Store>,
            Arc::default(),
            steps(),
            Learned::default(),
        )
    };
    let check = async |fault: Fault, world: &Move, outcome| {
        assert_eq!(outcome, Outcome::Done(Learned { rows: 7 }), "{fault:?}");
        assert!(
            is(&world.fenced, &["a"]) && is(&world.open, &["b"]),
            "{fault:?}"
        );
        seen.lock().unwrap().push(fault);
    };
    every_fault::<Move>(fresh, check).await.unwrap();
    let seen = seen.into_inner().unwrap();
    assert_eq!(
        seen.len(),
        2 + 3 * 3,
        "none, twice, and three faults at each of three steps"
    );
}

#[tokio::test]
async fn a_workflow_that_is_called_off_leaves_nothing_whatever_fails_on_its_way() {
    let fresh = async || {
        (
            Arc::new(Memory::new()) as Arc<dyn Store>,
            Arc::default(),
            refused(),
            Learned::default(),
        )
    };
    let check = async |fault: Fault, world: &Move, outcome| {
        let reason = "no room".to_owned();
        assert_eq!(
            outcome,
            Outcome::CalledOff {
                reason,
                state: Learned::default()
            },
            "{fault:?}"
        );
        assert!(is(&world.fenced, &[]) && is(&world.open, &[]), "{fault:?}");
    };
    every_fault::<Move>(fresh, check).await.unwrap();
}

/// The negative control: a workflow whose step counts must be caught by the faults.
#[tokio::test]
async fn a_step_that_is_not_safe_to_repeat_is_caught() {
    #[derive(Default)]
    struct Counts(AtomicUsize);

    #[async_trait]
    impl Workflow for Counts {
        type Step = ();
        type State = ();

        async fn perform(&self, (): &(), (): &mut ()) -> Result<(), StepError> {
            self.0.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }

        async fn undo(&self, (): &(), (): &mut ()) -> Result<(), StepError> {
            Ok(())
        }
    }

    let caught = Mutex::new(Vec::new());
    let fresh = async || {
        (
            Arc::new(Memory::new()) as Arc<dyn Store>,
            Arc::default(),
            vec![()],
            (),
        )
    };
    let check = async |fault: Fault, counts: &Counts, _| {
        if counts.0.load(Ordering::SeqCst) != 1 {
            caught.lock().unwrap().push(fault);
        }
    };
    every_fault::<Counts>(fresh, check).await.unwrap();
    let caught = caught.into_inner().unwrap();
    assert_eq!(
        caught,
        [Fault::Twice, Fault::FailAfter(0), Fault::CrashAfter(0)]
    );
}

#[tokio::test]
async fn a_write_of_progress_whose_outcome_is_unknown_is_neither_lost_nor_doubled() {
    for fault in [StoreFault::UnknownApplied, StoreFault::UnknownNotApplied] {
        let store = Memory::new();
        let runner = execution(&store, Move::default());
        runner.begin(steps(), Learned::default()).await.unwrap();
        let txns = AtomicUsize::new(0);
        store.inject(move |operation| match operation {
            Operation::Txn(_) if txns.fetch_add(1, Ordering::SeqCst) == 1 => fault,
            _ => StoreFault::None,
        });
        let first = runner.run().await;
        if fault == StoreFault::UnknownNotApplied {
            let unknown = matches!(
                first,
                Err(RunError::Store(StoreError::OutcomeUnknown { .. }))
            );
            assert!(
                unknown,
                "it stops, because the write may still come: {first:?}"
            );
            assert_eq!(runner.progress().await.unwrap().done, 1);
        }
        assert_eq!(
            runner.run().await.unwrap(),
            Outcome::Done(Learned { rows: 7 })
        );
        let repeats = usize::from(fault == StoreFault::UnknownNotApplied);
        assert_eq!(
            runner.workflow().performed.load(Ordering::SeqCst),
            3 + repeats
        );
    }
}

#[tokio::test]
async fn of_two_runners_one_goes_on_and_the_write_of_the_other_is_refused() {
    let store = Memory::new();
    let (one, two) = (
        execution(&store, Move::default()),
        execution(&store, Move::default()),
    );
    one.begin(steps(), Learned::default()).await.unwrap();
    assert!(matches!(
        two.begin(refused(), Learned::default()).await,
        Err(RunError::Begun { .. })
    ));
    // The first one's write is on its way while the second one goes on.
    let late = Arc::new(Mutex::new(None));
    let keep = late.clone();
    store.inject(move |operation| match operation {
        Operation::Txn(txn) if keep.lock().unwrap().is_none() => {
            *keep.lock().unwrap() = Some(txn.clone());
            StoreFault::UnknownNotApplied
        }
        _ => StoreFault::None,
    });
    assert!(matches!(
        one.run().await,
        Err(RunError::Store(StoreError::OutcomeUnknown { .. }))
    ));
    assert_eq!(two.run().await.unwrap(), Outcome::Done(Learned { rows: 7 }));
    let late: Txn = late.lock().unwrap().clone().unwrap();
    let refused = store.txn(late).await;
    assert!(
        matches!(refused, Err(StoreError::Conflict { .. })),
        "{refused:?}"
    );
    assert_eq!(two.progress().await.unwrap().phase, Phase::Done);
}

#[tokio::test]
async fn a_record_of_a_newer_version_is_refused_with_what_to_do() {
    let store = Memory::new();
    let runner = execution(&store, Move::default());
    assert!(matches!(runner.run().await, Err(RunError::Missing { .. })));
    let newer = br#"{"schema":2,"steps":[],"shape":"unknown"}"#;
    store.txn(Txn::new().put(KEY, &newer[..])).await.unwrap();
    let refused = runner.run().await.unwrap_err().to_string();
    assert!(
        refused.contains("let a process of that version finish it"),
        "{refused}"
    );
}
