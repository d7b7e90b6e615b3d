//! The SQL router of a cell: PostgreSQL's protocol in, PostgreSQL's protocol out, each transaction
//! to the primary that holds its user's shard, with the privileges of this cell.
//!
//! A connection goes through `accept` (start-up), `identify` (who is the user), `gate` (may its
//! shard begin a transaction now), `route` (a connection to the open primary) and `forward` (bytes
//! there and back, and what the client hears when a primary is lost).
#![warn(missing_docs)]

mod accept;
mod app;
mod backend;
mod config;
mod error;
mod forward;
mod gate;
mod identify;
mod local;
mod lost;
mod messages;
mod metrics;
mod openings;
mod pool;
mod refuse;
mod route;
mod session;
mod side;
mod statement;

pub use app::{Facts, serve, serve_with};
pub use config::{Config, Limits};
pub use error::{Error, Refusal};
