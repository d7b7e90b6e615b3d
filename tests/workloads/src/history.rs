//! What clients did and saw, on one clock: that of the process that they all run in.

use std::collections::BTreeMap;

use serde::Serialize;

/// One connection of one client to one router, from its beginning to its end.
pub type SessionId = u64;

/// Who had the shard when a transaction ran, as the database itself said inside that transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Owner {
    /// Which ownership of the shard.
    pub epoch: i64,
    /// Which primaryship of its data group.
    pub term: i64,
}

/// What was done, and what was answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Deed {
    /// An element was appended to the key's list; where, if there was an answer.
    Append {
        /// Never appended twice.
        element: i64,
        /// Its position.
        at: Option<i64>,
    },
    /// The key's register was counted up; to what, if there was an answer.
    Count {
        /// The new version.
        version: Option<i64>,
    },
    /// The end of the key's list was read: positions with their elements.
    ReadList {
        /// In the order of their positions.
        tail: Vec<(i64, i64)>,
    },
    /// The key's register was read.
    ReadRegister {
        /// 0: it was not there.
        version: i64,
    },
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Fate {
    /// Done, and said so.
    Acknowledged,
    /// Surely not done.
    Failed,
    /// Nobody knows.
    Unknown,
}

/// One transaction. Times are in µs since the beginning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Event {
    /// Whose.
    pub session: SessionId,
    /// On which shard.
    pub shard: u16,
    /// On which key.
    pub key: String,
    /// Before anything of it was sent.
    pub start_us: u64,
    /// After its first statement was answered: from here on it was inside.
    pub inside_us: u64,
    /// Before COMMIT was sent: until here it was inside.
    pub commit_us: u64,
    /// After its outcome was known.
    pub end_us: u64,
    /// What became of it.
    pub fate: Fate,
    /// As it said itself; of writes only.
    pub owner: Option<Owner>,
    /// What it was.
    pub deed: Deed,
}

/// What a key held when everything was over.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Final {
    /// Positions with elements, in the order of the positions.
    pub list: Vec<(i64, i64)>,
    /// The register's version.
    pub version: i64,
}

/// All that is judged.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct History {
    /// In the order of their ends, for each client.
    pub events: Vec<Event>,
    /// By key; one that could not be read is missing.
    pub finals: BTreeMap<String, Final>,
    /// Every key that was used.
    pub keys: Vec<String>,
    /// How often which refusal was heard.
    pub refusals: BTreeMap<String, u64>,
}

impl History {
    /// How many transactions that write ended this way.
    pub fn writes(&self, fate: Fate) -> u64 {
        let writes = self.events.iter().filter(|event| {
            let write = matches!(event.deed, Deed::Append { .. } | Deed::Count { .. });
            write && event.fate == fate
        });
        writes.count() as u64
    }
}
