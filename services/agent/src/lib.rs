//! The agent of one member of a data group: parent of its PostgreSQL, its only client port, both
//! ends of its replication links, keeper of its promise, and driver of its group's ops.
//!
//! What is decided, is decided by `atoll_ownership`'s state machines; this crate carries it out. It
//! has two halves: what speaks the protocol ([`simulation::speak`]), and what it stands on, which is
//! this machine (`actor`, `acts`, `database`, `port`, `link`).
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
mod gate;
mod hindrances;
mod leading;
mod link;
mod local;
mod orders;
mod peers;
mod port;
mod postgres;
mod promise;
mod protocol;
mod rejoin;
mod tail;
mod view;

/// What fuzzers reach.
#[cfg(fuzzing)]
pub mod fuzzing {
    pub use crate::promise::fuzz as promise_slot;
}

/// What a simulation takes of an agent: all that speaks the protocol, and the gate of the client
/// port. It brings what these stand on: an actor behind a [`simulation::Handle`], and a
/// [`simulation::Postgres`].
pub mod simulation {
    pub use crate::actor::{COMMANDS_WAITING_MAX, Command, Confirmed, Done, Handle, Opened};
    pub use crate::beats::ISOLATION_LIMIT;
    pub use crate::gate::{Gate, Place};
    pub use crate::hindrances::Hindrances;
    pub use crate::peers::Peers;
    pub use crate::postgres::{Postgres, Reading};
    pub use crate::protocol::speak;
    pub use crate::view::View;
    pub use atoll_postgres::Exit;
}

pub use app::serve;
pub use config::{Config, FailPoint, Peer};
pub use error::Error;
pub use promise::{Promise, PromiseFile};
