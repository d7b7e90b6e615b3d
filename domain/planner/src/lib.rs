//! The planner: from what is wanted and what is seen to an immutable plan, or to refusals that are
//! values. It acts on nothing; a plan carries every detail, so that whoever carries it out has
//! nothing left to choose.
#![warn(missing_docs)]

mod choose;
mod failover;
mod groups;
mod limits;
mod observed;
mod plan;
mod refusal;
mod switchover;

pub use failover::plan_failover;
pub use limits::Limits;
pub use observed::{Capacity, CellSeen, MemberSeen, Observed};
pub use plan::{Check, CheckState, MadeFor, Moved, Pace, Plan, Step};
pub use refusal::{Refusal, Refused};
pub use switchover::{Order, plan_switchover};
