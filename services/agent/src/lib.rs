//! The agent of one member of a data group: parent of its PostgreSQL, its only client port, both
//! ends of its replication links, keeper of its promise, and driver of its group's ops.
//!
//! What is decided, is decided by `atoll_ownership`'s state machines; this crate carries it out.
#![warn(missing_docs)]

mod actor;
mod acts;
mod app;
mod beats;
mod calls;
mod config;
mod control;
mod database;
mod driving;
mod error;
mod hindrances;
mod leading;
mod link;
mod orders;
mod peers;
mod port;
mod promise;
mod rejoin;
mod tail;
mod view;

/// What fuzzers reach.
#[cfg(fuzzing)]
pub mod fuzzing {
    pub use crate::promise::fuzz as promise_slot;
}

pub use app::serve;
pub use config::{Config, FailPoint, Peer};
pub use error::Error;
pub use promise::{Promise, PromiseFile};
