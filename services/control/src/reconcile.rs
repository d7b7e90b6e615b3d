//! From what a record says to what is: births, and the ops of groups.

pub(crate) mod birth;
pub(crate) mod choose;
pub(crate) mod execution;
pub(crate) mod op;
