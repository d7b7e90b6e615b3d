//! What the data planes are told: one table, versioned.

mod decided;
mod publisher;
mod table;

#[cfg(fuzzing)]
pub(crate) use decided::Stage;
pub(crate) use publisher::{Publisher, WORLD};
