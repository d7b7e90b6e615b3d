//! A table as it travels: named entries with a hash; snapshots, deltas and beats of it. Mesh passes
//! these on without looking inside, so that an older mesh does not cut what a newer control says.

use std::collections::BTreeMap;

use atoll_routing::TableVersion;
use bytes::Bytes;
use thiserror::Error;
use xxhash_rust::xxh64::Xxh64;

use crate::proto::table::{self as wire, table_update::Update};
use crate::text::{self, DecodeError, Place};

/// A table as named entries; immutable, its hash always that of its entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedTable {
    version: TableVersion,
    entries: BTreeMap<String, Bytes>,
    hash: u64,
}

/// Why an update cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum UpdateError {
    /// The message itself is wrong.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The delta was made for another table than the one held.
    #[error(
        "the delta applies to {base} (hash {base_hash:016x}), not to {held} (hash {held_hash:016x})"
    )]
    OtherBase {
        /// What the delta was made for.
        base: TableVersion,
        /// Its hash.
        base_hash: u64,
        /// What is held.
        held: TableVersion,
        /// Its hash.
        held_hash: u64,
    },
    /// What results is not what the source has.
    #[error("table {version} has hash {actual:016x}, its source says {expected:016x}")]
    Hash {
        /// Of which table.
        version: TableVersion,
        /// As announced.
        expected: u64,
        /// As computed.
        actual: u64,
    },
}

fn hash(entries: &BTreeMap<String, Bytes>) -> u64 {
    let mut hash = Xxh64::new(0);
    let mut part = |bytes: &[u8]| {
        // A part of 4 GiB cannot pass MESSAGE_BYTES_MAX; saturating keeps the function total.
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        hash.update(&length.to_le_bytes());
        hash.update(bytes);
    };
    for (key, entry) in entries {
        part(key.as_bytes());
        part(entry);
    }
    hash.digest()
}

fn named((key, entry): (&String, &Bytes)) -> wire::NamedEntry {
    wire::NamedEntry {
        key: key.clone(),
        entry: entry.clone(),
    }
}

impl EncodedTable {
    /// From a version and its entries.
    pub fn new(version: TableVersion, entries: BTreeMap<String, Bytes>) -> Self {
        let hash = hash(&entries);
        Self {
            version,
            entries,
            hash,
        }
    }

    /// Which table.
    pub fn version(&self) -> &TableVersion {
        &self.version
    }

    /// Its entries.
    pub fn entries(&self) -> &BTreeMap<String, Bytes> {
        &self.entries
    }

    /// XXH64 of its entries.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// The whole table as a message.
    pub fn to_snapshot(&self) -> wire::Snapshot {
        wire::Snapshot {
            version: Some(text::version(&self.version)),
            entries: self.entries.iter().map(named).collect(),
            hash: self.hash,
        }
    }

    /// Checks a snapshot: keys ascending, hash as announced.
    pub fn from_snapshot(snapshot: wire::Snapshot) -> Result<Self, UpdateError> {
        let place = Place("snapshot");
        let version = place.version(snapshot.version.ok_or_else(|| place.absent("version"))?)?;
        let count = snapshot.entries.len();
        let entries: BTreeMap<_, _> = snapshot
            .entries
            .into_iter()
            .map(|named| (named.key, named.entry))
            .collect();
        if entries.len() != count {
            return Err(place.inconsistent("a key occurs twice").into());
        }
        Self::checked(version, entries, snapshot.hash)
    }

    /// What turns `base` into this table.
    pub fn diff(&self, base: &Self) -> wire::Delta {
        let changed = |(key, entry): &(&String, &Bytes)| base.entries.get(*key) != Some(*entry);
        wire::Delta {
            base: Some(text::version(&base.version)),
            base_hash: base.hash,
            version: Some(text::version(&self.version)),
            set: self.entries.iter().filter(changed).map(named).collect(),
            removed: base
                .entries
                .keys()
                .filter(|key| !self.entries.contains_key(*key))
                .cloned()
                .collect(),
            hash: self.hash,
        }
    }

    /// The table that a delta makes of this one.
    pub fn apply(&self, delta: wire::Delta) -> Result<Self, UpdateError> {
        let place = Place("delta");
        let base = place.version(delta.base.ok_or_else(|| place.absent("base"))?)?;
        let version = place.version(delta.version.ok_or_else(|| place.absent("version"))?)?;
        if base != self.version || delta.base_hash != self.hash {
            return Err(UpdateError::OtherBase {
                base,
                base_hash: delta.base_hash,
                held: self.version.clone(),
                held_hash: self.hash,
            });
        }
        let mut entries = self.entries.clone();
        for key in &delta.removed {
            entries.remove(key);
        }
        entries.extend(delta.set.into_iter().map(|named| (named.key, named.entry)));
        Self::checked(version, entries, delta.hash)
    }

    fn checked(
        version: TableVersion,
        entries: BTreeMap<String, Bytes>,
        expected: u64,
    ) -> Result<Self, UpdateError> {
        let table = Self::new(version, entries);
        if table.hash == expected {
            Ok(table)
        } else {
            Err(UpdateError::Hash {
                version: table.version,
                expected,
                actual: table.hash,
            })
        }
    }
}

impl From<wire::Snapshot> for wire::TableUpdate {
    fn from(snapshot: wire::Snapshot) -> Self {
        Self {
            update: Some(Update::Snapshot(snapshot)),
        }
    }
}

impl From<wire::Delta> for wire::TableUpdate {
    fn from(delta: wire::Delta) -> Self {
        Self {
            update: Some(Update::Delta(delta)),
        }
    }
}

impl From<wire::Beat> for wire::TableUpdate {
    fn from(beat: wire::Beat) -> Self {
        Self {
            update: Some(Update::Beat(beat)),
        }
    }
}

impl wire::Beat {
    /// A beat of a source that holds `table` and heard of it from control `age_ms` ago.
    pub fn of(table: Option<&EncodedTable>, unix_ms: u64, age_ms: u64) -> Self {
        Self {
            version: table.map(|table| text::version(&table.version)),
            hash: table.map_or(0, EncodedTable::hash),
            unix_ms,
            age_ms,
        }
    }

    /// What the source holds.
    pub fn held(&self) -> Result<Option<TableVersion>, DecodeError> {
        Place("beat").version_or_none(self.version.clone())
    }
}
