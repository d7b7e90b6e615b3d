//! Simulation: the real `serve(config, runtime)` of control, mesh, gateway and SQL router on
//! virtual time, with simulated data groups that are driven by the same state machines as the real
//! ones, users, an operator, faults drawn from a seed, and oracles.

mod app;
mod faults;
mod http;
mod member;
mod operator;
mod oracle;
mod run;
mod store;
mod trace;
mod users;
mod world;

pub use faults::Fault;
pub use member::Weakened;
pub use oracle::Counts;
pub use run::{History, Setup, run};
pub use store::Trouble;
