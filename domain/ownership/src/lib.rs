//! The ownership protocol: who may write, and how that changes.
//!
//! One state machine a role, without I/O: [`record`] is what control may do to a group record,
//! [`driver`] carries P3–P7 out, [`member`] is one PostgreSQL with its agent, [`gate`] is where a
//! gateway or a router holds requests, [`rejoin`] is what a leader remembers of the others. Agent,
//! control, gateway and router run exactly this code.
#![warn(missing_docs)]

pub mod driver;
pub mod gate;
mod line;
pub mod member;
mod messages;
pub mod record;
pub mod rejoin;
#[cfg(feature = "mutants")]
pub mod walker;

pub use line::join_path;
pub use messages::{
    Admitted, Answer, Call, DriveOrder, Grant, JoinPath, LogEnd, OpKind, Progress, Recruit,
    Refused, TermRow,
};
