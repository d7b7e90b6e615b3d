//! The machinery of intent: the store it lives in, workflows that survive crashes, and loops that
//! bring what is towards what should be. It knows no business rule.

pub mod faults;
mod machine;
mod reconcile;
mod store;

pub use machine::{
    Advance, Execution, Outcome, Phase, Progress, RunError, StepError, StepLimits, Workflow,
};
pub use reconcile::{LoopLimits, Reconcile, Reconciled, reconcile_until};
pub use store::{
    Change, Changes, Expect, KEY_BYTES_MAX, Listed, Revision, Store, StoreError,
    TXN_OPERATIONS_MAX, Txn, VALUE_BYTES_MAX, Versioned, Watch,
};
