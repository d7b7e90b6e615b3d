//! What every store promises: keys, transactions by compare-and-swap, and watches.
//!
//! The semantics are etcd's, so that one process on a file and five on etcd behave alike: one
//! revision counts the whole store's transactions, a key carries the revision that last wrote it,
//! and a watch after a revision misses nothing that came later.

use std::collections::BTreeSet;
use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::Stream;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Longest key.
pub const KEY_BYTES_MAX: usize = 512;
/// Largest value; etcd takes requests of 1.5 MiB.
pub const VALUE_BYTES_MAX: usize = 1 << 20;
/// Most comparisons, and most writes, of one transaction; etcd's own default.
pub const TXN_OPERATIONS_MAX: usize = 128;

/// Counts the store's transactions that changed something. Grows over restarts too.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A value and the revision that wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned {
    /// The transaction that last wrote the key.
    pub revision: Revision,
    /// What it wrote.
    pub value: Bytes,
}

/// A snapshot: all keys with a prefix, in order, and the store's revision then. Watch after it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listed {
    /// Keys in byte order.
    pub entries: Vec<(String, Versioned)>,
    /// The store's revision when this was true.
    pub revision: Revision,
}

/// What a transaction demands of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Last written by exactly this transaction.
    Revision(Revision),
    /// Not there.
    Absent,
    /// There, whoever wrote it.
    Present,
}

/// All or nothing: if every comparison holds, all writes happen at one revision.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Txn {
    /// Demands; the first that fails is named in [`StoreError::Conflict`].
    pub compare: Vec<(String, Expect)>,
    /// Keys to write.
    pub puts: Vec<(String, Bytes)>,
    /// Keys to delete; one that is not there is no error.
    pub deletes: Vec<String>,
}

impl Txn {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a demand.
    #[must_use]
    pub fn expect(mut self, key: impl Into<String>, expect: Expect) -> Self {
        self.compare.push((key.into(), expect));
        self
    }

    /// Adds a write.
    #[must_use]
    pub fn put(mut self, key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.puts.push((key.into(), value.into()));
        self
    }

    /// Adds a deletion.
    #[must_use]
    pub fn delete(mut self, key: impl Into<String>) -> Self {
        self.deletes.push(key.into());
        self
    }

    /// Checks the limits and that no key is written twice; every backend calls it first.
    pub fn check(&self) -> Result<(), StoreError> {
        let invalid = |reason: String| Err(StoreError::Invalid { reason });
        let writes = self.puts.len() + self.deletes.len();
        if writes > TXN_OPERATIONS_MAX || self.compare.len() > TXN_OPERATIONS_MAX {
            return invalid(format!(
                "more than {TXN_OPERATIONS_MAX} comparisons or writes"
            ));
        }
        if let Some((key, value)) = self.puts.iter().find(|(_, v)| v.len() > VALUE_BYTES_MAX) {
            let size = value.len();
            return invalid(format!(
                "{key} would get {size} bytes, limit {VALUE_BYTES_MAX}"
            ));
        }
        let written = self.puts.iter().map(|(key, _)| key).chain(&self.deletes);
        let compared = self.compare.iter().map(|(key, _)| key);
        let bad = |key: &&String| key.is_empty() || key.len() > KEY_BYTES_MAX;
        if let Some(key) = written.clone().chain(compared).find(bad) {
            return invalid(format!(
                "the key {key:?} is empty or longer than {KEY_BYTES_MAX}"
            ));
        }
        let mut seen = BTreeSet::new();
        for key in written {
            if !seen.insert(key) {
                return invalid(format!("{key} is written twice"));
            }
        }
        Ok(())
    }
}

/// One transaction's effect on the keys that are watched. Whole, so that a watch that begins
/// again after `revision` misses nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changes {
    /// The transaction.
    pub revision: Revision,
    /// Its writes in key order; at least one.
    pub changes: Vec<Change>,
}

/// One key's new value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The key.
    pub key: String,
    /// `None`: deleted.
    pub value: Option<Bytes>,
}

/// Changes in order of revision. An error ends it; list again, and watch after that.
pub type Watch = std::pin::Pin<Box<dyn Stream<Item = Result<Changes, StoreError>> + Send>>;

/// What can go wrong.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum StoreError {
    /// A demand does not hold; nothing was written.
    #[error("{key} is not as the transaction expects")]
    Conflict {
        /// The first key whose demand fails.
        key: String,
    },
    /// The transaction may have been applied or not, and may yet be: read before anything else.
    #[error("whether the transaction was applied is not known: {reason}")]
    OutcomeUnknown {
        /// What happened to it.
        reason: String,
    },
    /// Nothing was read or written; it may work later.
    #[error("the store cannot be used: {reason}")]
    Unavailable {
        /// Why.
        reason: String,
    },
    /// What was read cannot be what was written.
    #[error("the store is damaged at {place}: {reason}")]
    Corrupt {
        /// A key or a table.
        place: String,
        /// How that was seen.
        reason: String,
    },
    /// The watch asks for changes that were dropped: list again.
    #[error("changes up to revision {compacted} are gone")]
    Compacted {
        /// The last revision that is gone.
        compacted: Revision,
    },
    /// The watch or compaction names a revision that does not exist yet: the store lost its past
    /// or is another store.
    #[error("revision {asked} does not exist: the store is at {at}")]
    Ahead {
        /// As asked.
        asked: Revision,
        /// The store's revision.
        at: Revision,
    },
    /// The call itself is wrong.
    #[error("the store does not take this: {reason}")]
    Invalid {
        /// Why.
        reason: String,
    },
}

/// A store. Reads see every transaction that was acknowledged before they began.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// One key.
    async fn get(&self, key: &str) -> Result<Option<Versioned>, StoreError>;

    /// All keys that begin with `prefix`, as of one revision.
    async fn list(&self, prefix: &str) -> Result<Listed, StoreError>;

    /// Compares and writes. Gives the revision of the writes, or the store's revision if nothing
    /// changed. Durable when it returns. After a cancel the outcome is unknown.
    async fn txn(&self, txn: Txn) -> Result<Revision, StoreError>;

    /// All changes after a revision to keys that begin with `prefix`, without end.
    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError>;

    /// Drops the changes up to and with `revision`. Values stay.
    async fn compact(&self, revision: Revision) -> Result<(), StoreError>;
}
