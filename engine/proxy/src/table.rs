//! The table's way: from its source to every worker thread, and back what is in use.
//!
//! A data plane starts a [`TableFollower`] and gives each worker thread a [`Worker`]; a mesh uses
//! the same [`follow()`] with its own uplink; mesh and control serve with [`source`]. A receiver
//! never goes back, keeps its last good table on disk, and serves on when its source is lost.

mod data_plane;
pub mod file;
pub mod follow;
mod receive;
mod reports;
pub mod source;

pub use data_plane::{FollowerConfig, Observed, TableFollower, TableHandle, Worker};
pub use follow::{Age, FollowConfig, Followed, Held, Uplink, follow, follow_all};
pub use receive::{Gap, Received, receive};
pub use reports::Pace;
pub use source::{
    AgeMs, Collect, Publisher, ServeError, Stale, StreamId, serve_tables, table_service,
};

use std::time::Duration;

/// A source says at least this often that it is there.
pub const BEAT_INTERVAL: Duration = Duration::from_millis(500);
/// After so many missed beats a receiver tries another source.
pub const BEATS_MISSED: u32 = 3;
/// A receiver reports at least this often.
pub const REPORT_INTERVAL: Duration = Duration::from_millis(200);
/// Reports of one receiver are at least so far apart: the first of a burst goes at once, the rest
/// of it together.
pub const REPORT_SPACING: Duration = Duration::from_millis(1);
