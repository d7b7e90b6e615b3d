//! A data group of real agents and real PostgreSQL, without gateway, router or control: the test
//! plays control's part over the wire, on a record in a store in memory.

mod control;
mod ground;
mod group;
mod oracles;
mod processes;
mod record;
mod routers;
mod setup;
mod writers;

pub use atoll_postgres::SUPERUSER;
pub use atoll_store::Fault;
pub use control::ControlStub;
pub use ground::Ground;
pub use group::{Group, GroupOptions};
pub use processes::{AgentProcess, Naive, binary, rewind_by_hand};
pub use record::Recorded;
pub use routers::RouterOfCell;
pub use writers::{Tally, Writers};
