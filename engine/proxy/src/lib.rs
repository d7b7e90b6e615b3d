//! The machinery of a proxy: strict HTTP/1 listeners, one worker a core, upstream connections, and
//! the gate where requests wait. It knows no business rule: it gates by opaque keys.
#![warn(missing_docs)]

mod body;
mod guarded;
mod hold;
mod pool;
mod server;
mod strict;
pub mod table;
mod worker;

pub use body::{Answer, AnswerError, End, Kept, Outgoing, Witness};
pub use guarded::ReadTimes;
pub use hold::{Hold, HoldLimits, HoldRefused, Ticket};
pub use pool::{Failure, Lease, Pool, PoolLimits, Unsent};
pub use server::{Served, ServerLimits, Service, serve};
pub use strict::{Strict, StrictLimits, Violation};
pub use worker::{Worker, WorkerError, cores, start};
