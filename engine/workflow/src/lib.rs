//! What every workflow stands on: the store of intent, with all that a step may demand of it. It
//! knows no business rule, and it performs nothing: a step machine is its owner's own (`control`
//! has two, one for executions and one for ops), see ADR 0011.

mod store;

pub use store::{
    Change, Changes, Expect, KEY_BYTES_MAX, Listed, Revision, Store, StoreError,
    TXN_OPERATIONS_MAX, Txn, VALUE_BYTES_MAX, Versioned, Watch,
};
