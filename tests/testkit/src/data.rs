//! A data group of real agents and real PostgreSQL, without gateway, router or control: the test
//! plays control's part over the wire, on a record in memory.

mod control;
mod group;
mod processes;
mod writers;

pub use control::ControlStub;
pub use group::{Group, GroupOptions};
pub use processes::{AgentProcess, binary};
pub use writers::{Tally, Writers};
