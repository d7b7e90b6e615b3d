//! The gateway: every client's request reaches the one cell that owns its user, waits while that
//! changes, and is never sent twice when it may have been executed.
#![warn(missing_docs)]

mod accept;
mod admit;
mod app;
mod canary;
mod config;
mod error;
mod forward;
mod gate;
mod health;
mod identify;
mod metrics;
mod peer;
mod record;
mod route;

/// What fuzzers reach.
#[cfg(fuzzing)]
pub mod fuzzing {
    pub use crate::identify::fuzz as identify;
}

pub use app::{Gateway, Running, serve};
pub use config::{Canary, Config, Health, Hold, Limits};
pub use error::{Error, Outcome, Problem};
pub use peer::{PeerIdentity, PeerKey, Stamp};
