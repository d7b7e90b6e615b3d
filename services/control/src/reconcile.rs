//! From what a record says to what is: births, and the ops of groups.

pub mod birth;
pub mod choose;
pub mod execution;
pub mod op;
