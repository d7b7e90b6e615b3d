//! What the protocol sees of a member's PostgreSQL. The beats, the driver and the streams to control
//! go through this and know nothing else of it; so `tests/simulation` runs the very same code, on a
//! PostgreSQL in memory.

use atoll_ownership::{Grant, LogEnd, TermRow};
use atoll_streams::agent::{RowsHashed, SchemaApplied};
use atoll_topology::{Lsn, ShardId};

use crate::hindrances::Hindrances;

/// A member's PostgreSQL. Calls that fail say why, for people.
#[tonic::async_trait]
pub trait Postgres: Send + Sync {
    /// Where its log ends; none while it does not answer.
    async fn end(&self) -> Option<Reading>;

    /// Returns once the log is replayed up to here.
    async fn replayed(&self, lsn: Lsn) -> Result<(), String>;

    /// Moves shards to other owners while clients are served, and returns when the quorum has it.
    /// With a term row it is the call-off of an op, and the row comes back as the log has it. A
    /// newer promise of the member cuts this: then it is an error, and may have happened.
    async fn change_owners(
        &self,
        grants: Vec<Grant>,
        row: Option<TermRow>,
    ) -> Result<Option<TermRow>, String>;

    /// What would hold up an op, as last looked at.
    fn hindrances(&self) -> Hindrances;

    /// Runs a schema file in these shards, or in all.
    async fn apply_schema(&self, id: String, sql: String, shards: Vec<ShardId>) -> SchemaApplied;

    /// Hashes the rows of these shards, or of all, once the log is replayed up to `at_least`.
    async fn hash_rows(&self, id: String, shards: Vec<ShardId>, at_least: Lsn) -> RowsHashed;
}

/// What was read of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// Where it ends.
    pub end: LogEnd,
    /// What has arrived behind it and is not replayed, in bytes.
    pub replay_lag_bytes: u64,
}
