//! Clients that append to lists and count up registers through the SQL routers of all cells, and the
//! oracles that judge what they saw: lists, registers, two owners.
//!
//! An application like any other: it links nothing of Atoll, and knows of it what an application's
//! author knows, and the table in which a shard's owner stands.
#![warn(missing_docs)]

mod client;
mod deeds;
mod history;
mod lies;
mod load;
mod oracle;

pub use history::{Deed, Event, Fate, Final, History, Owner, SessionId};
pub use lies::{Lie, lies};
pub use load::{Load, Options};
pub use oracle::{Oracle, judge};
