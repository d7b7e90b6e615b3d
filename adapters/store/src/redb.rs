//! The store in a file, for one process. A transaction is on disk before it is acknowledged.
//!
//! Reads come from the mirror in memory; the file is read once, when it is opened. Commits run one
//! after the other off the async threads, to their end even when their caller goes away. After a
//! commit that failed nobody knows what the file holds, so the store refuses everything until it
//! is opened again.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use atoll_runtime::Tasks;
use bytes::Bytes;
use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, TableDefinition,
    TableError, TransactionError,
};
use tokio::sync::Mutex;
use tracing::error;

use crate::mirror::{Effect, Mirror, State};
use crate::{Change, Listed, Revision, Store, StoreError, Txn, Versioned, Watch};

/// Says that a file is ours: "atoll kv" in ASCII.
const MAGIC: u64 = u64::from_be_bytes(*b"atoll kv");
/// Shape of the tables. A newer one is refused, an older one will be migrated here.
const SCHEMA: u64 = 1;
/// redb's page cache. Small, because everything is in the mirror.
const CACHE_BYTES: usize = 8 << 20;

/// Names: `magic`, `schema`, `revision`, `compacted`.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// Key to revision and value.
const DATA: TableDefinition<'_, &str, (u64, &[u8])> = TableDefinition::new("data");
/// Revision and key to the value written then; none: deleted.
const HISTORY: TableDefinition<'_, (u64, &str), Option<&[u8]>> = TableDefinition::new("history");

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error(
        "the store {path} is in use by another process: one control process at a time may use a \
         file; end the other one, or give this one a store of its own"
    )]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// A newer version wrote it.
    #[error(
        "the store {path} has schema {found}, written by a newer version of Atoll; this one knows \
         schemas up to {known}: start the newer version again, or put back the copy of the file \
         that was made before the upgrade"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: String,
        /// Ours.
        known: u64,
    },
    /// It is something else.
    #[error("{path} is not a store of Atoll: {reason}; name another file")]
    NotAStore {
        /// The file.
        path: PathBuf,
        /// How that was seen.
        reason: String,
    },
    /// It is ours and broken.
    #[error(
        "the store {path} is damaged: {reason}; keep the file for examination and put back a copy"
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// How that was seen.
        reason: String,
    },
    /// The file system failed.
    #[error("the store {path} could not be opened")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A store in a file.
pub struct Redb {
    mirror: Arc<Mirror>,
    /// Locked from the check of a transaction to its end on disk.
    file: Arc<Mutex<Database>>,
    tasks: Tasks,
}

impl Redb {
    /// Opens the file, or makes it. Only one process can have it open.
    pub async fn open(path: &Path, tasks: &Tasks) -> Result<Self, OpenError> {
        let owned = path.to_owned();
        let opened = tasks
            .spawn_blocking("store open", move || open(&owned))
            .await;
        let (file, state) = opened.unwrap_or_else(|end| {
            Err(OpenError::Corrupt {
                path: path.to_owned(),
                reason: end.to_string(),
            })
        })?;
        Ok(Self {
            mirror: Arc::new(Mirror::new(state)),
            file: Arc::new(Mutex::new(file)),
            tasks: tasks.clone(),
        })
    }
}

#[async_trait]
impl Store for Redb {
    async fn get(&self, key: &str) -> Result<Option<Versioned>, StoreError> {
        self.mirror.get(key)
    }

    async fn list(&self, prefix: &str) -> Result<Listed, StoreError> {
        self.mirror.list(prefix)
    }

    async fn txn(&self, txn: Txn) -> Result<Revision, StoreError> {
        let file = self.file.clone().lock_owned().await;
        let Some(effect) = self.mirror.plan(&txn)? else {
            return Ok(self.mirror.revision());
        };
        let (mirror, revision) = (self.mirror.clone(), effect.revision);
        // The guard goes along: the next transaction is checked against this one's outcome, even
        // when nobody waits for it any more.
        let committed = self.tasks.spawn_blocking("store commit", move || {
            commit(&file, |tables| tables.write(&effect)).inspect_err(|e| e.spoil(&mirror))?;
            mirror.apply(effect);
            Ok::<_, CommitError>(())
        });
        ended(committed.await, "the transaction").map(|()| revision)
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        self.mirror.watch(prefix, after)
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        let file = self.file.clone().lock_owned().await;
        if !self.mirror.may_compact(revision)? {
            return Ok(());
        }
        let mirror = self.mirror.clone();
        let committed = self.tasks.spawn_blocking("store compact", move || {
            commit(&file, |tables| tables.compact(revision)).inspect_err(|e| e.spoil(&mirror))?;
            mirror.compact(revision);
            Ok::<_, CommitError>(())
        });
        ended(committed.await, "the compaction")
    }
}

/// How a commit failed.
enum CommitError {
    /// Before it began to be durable.
    NotDone(redb::Error),
    /// While it was made durable.
    Unknown(redb::CommitError),
}

impl CommitError {
    /// Closes the store if nobody knows what is on disk.
    fn spoil(&self, mirror: &Mirror) {
        if let Self::Unknown(cause) = self {
            error!(error = %cause, "the store failed in a commit and must be opened again");
            mirror.fail(format!(
                "a commit failed ({cause}); restart the process to open it again"
            ));
        }
    }
}

fn ended(
    result: Result<Result<(), CommitError>, atoll_runtime::TaskEnd>,
    what: &str,
) -> Result<(), StoreError> {
    match result {
        Ok(Ok(())) => Ok(()),
        Ok(Err(CommitError::NotDone(cause))) => Err(StoreError::Unavailable {
            reason: cause.to_string(),
        }),
        Ok(Err(CommitError::Unknown(cause))) => Err(StoreError::OutcomeUnknown {
            reason: cause.to_string(),
        }),
        Err(end) => Err(StoreError::OutcomeUnknown {
            reason: format!("{what}: {end}"),
        }),
    }
}

/// One transaction of redb, durable when it returns.
fn commit(
    file: &Database,
    change: impl FnOnce(&mut Tables<'_>) -> Result<(), redb::Error>,
) -> Result<(), CommitError> {
    let write = file
        .begin_write()
        .map_err(|cause| CommitError::NotDone(cause.into()))?;
    // An error drops the transaction, which takes it back.
    Tables::open(&write)
        .and_then(|mut tables| change(&mut tables))
        .map_err(CommitError::NotDone)?;
    write.commit().map_err(CommitError::Unknown)
}

struct Tables<'txn> {
    meta: redb::Table<'txn, &'static str, u64>,
    data: redb::Table<'txn, &'static str, (u64, &'static [u8])>,
    history: redb::Table<'txn, (u64, &'static str), Option<&'static [u8]>>,
}

impl<'txn> Tables<'txn> {
    fn open(write: &'txn redb::WriteTransaction) -> Result<Self, redb::Error> {
        Ok(Self {
            meta: write.open_table(META)?,
            data: write.open_table(DATA)?,
            history: write.open_table(HISTORY)?,
        })
    }

    fn write(&mut self, effect: &Effect) -> Result<(), redb::Error> {
        let revision = effect.revision.0;
        self.meta.insert("revision", revision)?;
        for Change { key, value } in effect.changes.iter() {
            let (key, value) = (key.as_str(), value.as_deref());
            self.history.insert((revision, key), value)?;
            match value {
                Some(value) => self.data.insert(key, (revision, value))?,
                None => self.data.remove(key)?,
            };
        }
        effect.compact_to.map_or(Ok(()), |to| self.compact(to))
    }

    fn compact(&mut self, to: Revision) -> Result<(), redb::Error> {
        self.meta.insert("compacted", to.0)?;
        self.history.retain_in(..(to.0 + 1, ""), |_, _| false)?;
        Ok(())
    }
}

fn open(path: &Path) -> Result<(Database, State), OpenError> {
    let io_error = |source| OpenError::Io {
        path: path.to_owned(),
        source,
    };
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let directory = directory.unwrap_or_else(|| Path::new("."));
    fs::create_dir_all(directory).map_err(io_error)?;
    let is_new = !path.try_exists().map_err(io_error)?;
    let file = Database::builder()
        .set_cache_size(CACHE_BYTES)
        .set_check_integrity_on_open(true)
        .create(path)
        .map_err(|cause| refused(path, cause))?;
    if is_new {
        fs::File::open(directory)
            .and_then(|dir| dir.sync_all())
            .map_err(io_error)?;
    }
    let state = match load(path, &file)? {
        Some(state) => state,
        None => {
            prepare(&file).map_err(|cause| damaged(path, &cause))?;
            State::default()
        }
    };
    Ok((file, state))
}

/// Makes a new file ours.
fn prepare(file: &Database) -> Result<(), redb::Error> {
    let write = file.begin_write()?;
    {
        let mut tables = Tables::open(&write)?;
        for (name, value) in [("magic", MAGIC), ("schema", SCHEMA), ("revision", 0)] {
            tables.meta.insert(name, value)?;
        }
        tables.meta.insert("compacted", 0)?;
    }
    write.commit()?;
    Ok(())
}

/// Reads everything; `None` if the file is new.
fn load(path: &Path, file: &Database) -> Result<Option<State>, OpenError> {
    let bad = |cause: redb::Error| damaged(path, &cause);
    let corrupt = |reason: &str| OpenError::Corrupt {
        path: path.to_owned(),
        reason: reason.into(),
    };
    let read = file
        .begin_read()
        .map_err(|cause: TransactionError| bad(cause.into()))?;
    let meta = match read.open_table(META) {
        Ok(meta) => meta,
        Err(TableError::TableDoesNotExist(_)) => {
            let mut tables = read.list_tables().map_err(|cause| bad(cause.into()))?;
            return match tables.next() {
                None => Ok(None),
                Some(_) => Err(OpenError::NotAStore {
                    path: path.to_owned(),
                    reason: "it has tables of something else".to_owned(),
                }),
            };
        }
        Err(cause) => return Err(bad(cause.into())),
    };
    let number = |name: &str| -> Result<Option<u64>, OpenError> {
        let found = meta.get(name).map_err(|cause| bad(cause.into()))?;
        Ok(found.map(|found| found.value()))
    };
    if number("magic")? != Some(MAGIC) {
        let reason = "it does not begin as one".to_owned();
        return Err(OpenError::NotAStore {
            path: path.to_owned(),
            reason,
        });
    }
    match number("schema")? {
        Some(SCHEMA) => {}
        Some(found) if found > SCHEMA => {
            let (path, found) = (path.to_owned(), found.to_string());
            return Err(OpenError::Newer {
                path,
                found,
                known: SCHEMA,
            });
        }
        _ => return Err(corrupt("it has no schema version")),
    }
    let mut state = State {
        revision: Revision(number("revision")?.ok_or_else(|| corrupt("it has no revision"))?),
        compacted: Revision(number("compacted")?.unwrap_or(0)),
        ..State::default()
    };
    contents(&read, &mut state).map_err(bad)?;
    let newest = state.data.values().map(|found| found.revision).max();
    if newest > Some(state.revision) {
        return Err(corrupt("a key is newer than the store"));
    }
    Ok(Some(state))
}

fn contents(read: &redb::ReadTransaction, state: &mut State) -> Result<(), redb::Error> {
    for entry in read.open_table(DATA)?.iter()? {
        let (key, value) = entry?;
        let (revision, value) = value.value();
        let value = Bytes::copy_from_slice(value);
        let value = Versioned {
            revision: Revision(revision),
            value,
        };
        state.data.insert(key.value().to_owned(), value);
    }
    let mut history: BTreeMap<Revision, Vec<Change>> = BTreeMap::new();
    for entry in read.open_table(HISTORY)?.iter()? {
        let (at, value) = entry?;
        let (revision, key) = at.value();
        let value = value.value().map(Bytes::copy_from_slice);
        history.entry(Revision(revision)).or_default().push(Change {
            key: key.to_owned(),
            value,
        });
    }
    state.history = history
        .into_iter()
        .map(|(at, changes)| (at, changes.into()))
        .collect();
    Ok(())
}

fn refused(path: &Path, cause: DatabaseError) -> OpenError {
    let path = path.to_owned();
    match cause {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => {
            OpenError::InUse { path }
        }
        DatabaseError::Storage(StorageError::Io(source))
            if source.kind() == io::ErrorKind::InvalidData =>
        {
            OpenError::NotAStore {
                path,
                reason: source.to_string(),
            }
        }
        DatabaseError::Storage(StorageError::Io(source)) => OpenError::Io { path, source },
        other => OpenError::Corrupt {
            path,
            reason: other.to_string(),
        },
    }
}

fn damaged(path: &Path, cause: &redb::Error) -> OpenError {
    OpenError::Corrupt {
        path: path.to_owned(),
        reason: cause.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn refusal(path: &Path) -> OpenError {
        Redb::open(path, &Tasks::default())
            .await
            .err()
            .expect("it is refused")
    }

    #[tokio::test]
    async fn a_second_opener_is_told_that_the_file_is_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("made/for/it/store.redb");
        let first = Redb::open(&path, &Tasks::default()).await.unwrap();
        let refused = refusal(&path).await;
        assert!(matches!(refused, OpenError::InUse { .. }), "{refused}");
        drop(first);
        Redb::open(&path, &Tasks::default()).await.unwrap();
    }

    #[tokio::test]
    async fn a_newer_schema_is_refused_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.redb");
        drop(Redb::open(&path, &Tasks::default()).await.unwrap());
        let file = Database::open(&path).unwrap();
        let write = file.begin_write().unwrap();
        write
            .open_table(META)
            .unwrap()
            .insert("schema", SCHEMA + 1)
            .unwrap();
        write.commit().unwrap();
        drop(file);
        let refused = refusal(&path).await.to_string();
        let wanted = "start the newer version again, or put back the copy";
        assert!(
            refused.contains("schema 2") && refused.contains(wanted),
            "{refused}"
        );
    }

    #[tokio::test]
    async fn what_is_not_a_store_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let text = dir.path().join("notes.txt");
        fs::write(&text, "milk, bread\n".repeat(1000)).unwrap();
        let refused = refusal(&text).await;
        assert!(
            matches!(refused, OpenError::NotAStore { .. }),
            "{refused:?}"
        );
        assert!(fs::read_to_string(&text).unwrap().starts_with("milk"));

        let other = dir.path().join("other.redb");
        let file = Database::create(&other).unwrap();
        let write = file.begin_write().unwrap();
        let theirs: TableDefinition<'_, u64, u64> = TableDefinition::new("theirs");
        write.open_table(theirs).unwrap().insert(1, 1).unwrap();
        write.commit().unwrap();
        drop(file);
        let refused = refusal(&other).await;
        assert!(
            matches!(refused, OpenError::NotAStore { .. }),
            "{refused:?}"
        );
    }

    #[tokio::test]
    async fn a_damaged_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.redb");
        let store = Redb::open(&path, &Tasks::default()).await.unwrap();
        let value = vec![b'v'; 2000];
        store
            .txn(Txn::new().put("/group/g1", value.clone()))
            .await
            .unwrap();
        drop(store);
        let mut bytes = fs::read(&path).unwrap();
        let mut damaged = 0;
        for at in 0..bytes.len() - value.len() {
            if bytes[at..at + value.len()] == value[..] {
                bytes[at + 1000] ^= 1;
                damaged += 1;
            }
        }
        assert!(damaged > 0, "the value is in the file");
        fs::write(&path, bytes).unwrap();
        let refused = refusal(&path).await;
        assert!(matches!(refused, OpenError::Corrupt { .. }), "{refused:?}");
    }

    #[tokio::test]
    async fn what_was_acknowledged_is_in_the_file_of_a_process_that_was_killed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, copy) = (
            dir.path().join("store.redb"),
            dir.path().join("killed.redb"),
        );
        let store = Redb::open(&path, &Tasks::default()).await.unwrap();
        for n in 0..20_u8 {
            let key = format!("/group/g{n}");
            let revision = store.txn(Txn::new().put(&key, vec![n])).await.unwrap();
            // The file while it is open is what kill -9 leaves behind.
            fs::copy(&path, &copy).unwrap();
            let found = Redb::open(&copy, &Tasks::default()).await.unwrap();
            let found = found.get(&key).await.unwrap().unwrap();
            assert_eq!(
                found,
                Versioned {
                    revision,
                    value: Bytes::from(vec![n])
                }
            );
        }
    }

    #[tokio::test]
    async fn a_commit_whose_caller_went_away_is_whole_or_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let store = Redb::open(&dir.path().join("store.redb"), &Tasks::default())
            .await
            .unwrap();
        for n in 0..30_u8 {
            let txn = Txn::new().put("/a", vec![n]).put("/b", vec![n]);
            // One poll begins it, and then its caller is gone.
            let begun = futures::future::poll_immediate(store.txn(txn)).await;
            drop(begun);
            store.txn(Txn::new().put("/c", vec![n])).await.unwrap();
            let value = |found: Option<Versioned>| found.map(|found| found.value);
            let a = value(store.get("/a").await.unwrap());
            assert_eq!(a, value(store.get("/b").await.unwrap()));
            assert_eq!(a, Some(Bytes::from(vec![n])), "begun, so it ends");
        }
    }
}
