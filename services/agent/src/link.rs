//! Replication links, both ends. PostgreSQL's receiver always connects to a socket of ours; whose
//! log it gets is our state. A seal cuts the link and holds the receiver: it is neither refused
//! nor answered.

mod down;
mod greeting;
mod relay;
mod turn;
mod up;

pub(crate) use down::{Down, Purpose};
pub(crate) use up::{LinkAsked, Permit, Up, listen as listen_up};
