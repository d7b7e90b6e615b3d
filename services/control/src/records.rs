//! The group records: changed only by compare-and-swap, followed by all.

use std::sync::Arc;

use atoll_ownership::record::{GroupRecord, Refusal};
use atoll_runtime::Runtime;
use atoll_store::{Expect, Store, StoreError, Txn};
use atoll_topology::GroupId;
use thiserror::Error;
use tokio::sync::watch;

use crate::follow::{All, Followed, Kept};
use crate::stored::{decode, encode};

/// Why a record was not changed.
#[derive(Debug, Error)]
pub(crate) enum ChangeError {
    /// The rules say no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Someone else changed it first; look again.
    #[error("the record of {group} has changed meanwhile")]
    Raced {
        /// Which group.
        group: GroupId,
    },
    /// There is no such group.
    #[error("there is no data group {group}")]
    Unknown {
        /// Which group.
        group: GroupId,
    },
    /// The store did not do it, or did not say.
    #[error("the store did not take the record")]
    Store(#[from] StoreError),
}

impl Kept for GroupRecord {
    const PREFIX: &'static str = "/group/";
    type Name = GroupId;
    fn name(&self) -> GroupId {
        self.group.clone()
    }
    fn key(&self) -> String {
        key(&self.group)
    }
}

/// Records by group.
pub(crate) type Groups = All<GroupRecord>;

/// All group records, as last read or written.
pub(crate) struct Records {
    store: Arc<dyn Store>,
    followed: Arc<Followed<GroupRecord>>,
}

impl Records {
    /// Reads all records.
    pub(crate) async fn load(store: Arc<dyn Store>) -> Result<Self, StoreError> {
        let followed = Arc::new(Followed::load(store.clone()).await?);
        Ok(Self { store, followed })
    }

    /// Follows what other replicas write.
    pub(crate) fn start(&self, runtime: &Runtime) {
        let follow = self.followed.clone().follow(runtime.clone());
        runtime.tasks().spawn("following records", follow);
    }

    /// All records.
    pub(crate) fn all(&self) -> Arc<Groups> {
        self.followed.all()
    }

    /// One record.
    pub(crate) fn get(&self, group: &GroupId) -> Option<GroupRecord> {
        self.followed.all().get(group).cloned()
    }

    /// Tells when any of them changes.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<Groups>> {
        self.followed.subscribe()
    }

    /// Admits a group that has no record yet.
    pub(crate) async fn create(&self, record: GroupRecord) -> Result<(), ChangeError> {
        let key = key(&record.group);
        let txn = Txn::new()
            .expect(&key, Expect::Absent)
            .put(&key, encode(&record));
        self.commit(record, txn).await
    }

    /// Changes one record by a rule; `also` adds what must change with it, or must not have.
    pub(crate) async fn change(
        &self,
        group: &GroupId,
        rule: impl FnOnce(&GroupRecord) -> Result<GroupRecord, Refusal>,
        also: impl FnOnce(&GroupRecord, Txn) -> Txn,
    ) -> Result<GroupRecord, ChangeError> {
        let key = key(group);
        let found = self.store.get(&key).await?;
        let found = found.ok_or_else(|| ChangeError::Unknown {
            group: group.clone(),
        })?;
        let next = rule(&decode(&key, &found.value)?)?;
        let txn = Txn::new()
            .expect(&key, Expect::Revision(found.revision))
            .put(&key, encode(&next));
        self.commit(next.clone(), also(&next, txn)).await?;
        Ok(next)
    }

    async fn commit(&self, record: GroupRecord, txn: Txn) -> Result<(), ChangeError> {
        let revision = match self.store.txn(txn).await {
            Ok(revision) => revision,
            Err(StoreError::Conflict { .. }) => {
                self.refresh().await?;
                return Err(ChangeError::Raced {
                    group: record.group,
                });
            }
            Err(error @ StoreError::OutcomeUnknown { .. }) => {
                // It was done exactly if the record stands there: no two changes write the same.
                let found = self.store.get(&key(&record.group)).await?;
                match found.filter(|found| found.value == encode(&record)) {
                    Some(found) => found.revision,
                    None => return Err(ChangeError::Store(error)),
                }
            }
            Err(error) => return Err(ChangeError::Store(error)),
        };
        self.followed.note(revision, [record]);
        Ok(())
    }

    /// Reads everything again.
    pub(crate) async fn refresh(&self) -> Result<(), StoreError> {
        self.followed.refresh().await.map(drop)
    }
}

/// Where a group's record stands.
pub(crate) fn key(group: &GroupId) -> String {
    format!("{}{group}", GroupRecord::PREFIX)
}
