//! The group records: read from the store, changed only by compare-and-swap, watched by all.

use std::collections::BTreeMap;
use std::sync::Arc;

use atoll_ownership::record::{GroupRecord, Refusal};
use atoll_topology::GroupId;
use atoll_workflow::{Expect, Store, StoreError, Txn};
use thiserror::Error;
use tokio::sync::watch;

use crate::stored::{decode, encode};

const PREFIX: &str = "/group/";

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

/// Records by group.
pub(crate) type Groups = BTreeMap<GroupId, GroupRecord>;

/// All group records, as last read or written by this process.
pub(crate) struct Records {
    store: Arc<dyn Store>,
    current: watch::Sender<Arc<Groups>>,
}

impl Records {
    /// Reads all records.
    pub(crate) async fn load(store: Arc<dyn Store>) -> Result<Self, StoreError> {
        let groups = read_all(store.as_ref()).await?;
        Ok(Self {
            store,
            current: watch::Sender::new(Arc::new(groups)),
        })
    }

    /// All records.
    pub(crate) fn all(&self) -> Arc<Groups> {
        self.current.borrow().clone()
    }

    /// One record.
    pub(crate) fn get(&self, group: &GroupId) -> Option<GroupRecord> {
        self.current.borrow().get(group).cloned()
    }

    /// Tells when any of them changes.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<Groups>> {
        self.current.subscribe()
    }

    /// Admits a group that has no record yet.
    pub(crate) async fn create(&self, record: GroupRecord) -> Result<(), ChangeError> {
        let key = key(&record.group);
        let txn = Txn::new()
            .expect(&key, Expect::Absent)
            .put(&key, encode(&record));
        self.commit(&record, txn).await
    }

    /// Changes one record by a rule; `also` adds what must change with it, or must not have.
    pub(crate) async fn change(
        &self,
        group: &GroupId,
        rule: impl FnOnce(&GroupRecord) -> Result<GroupRecord, Refusal>,
        also: impl FnOnce(Txn) -> Txn,
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
        self.commit(&next, also(txn)).await?;
        Ok(next)
    }

    async fn commit(&self, record: &GroupRecord, txn: Txn) -> Result<(), ChangeError> {
        let group = record.group.clone();
        match self.store.txn(txn).await {
            Ok(_) => {}
            Err(StoreError::Conflict { .. }) => {
                self.refresh().await?;
                return Err(ChangeError::Raced { group });
            }
            Err(error @ StoreError::OutcomeUnknown { .. }) => {
                // It was done exactly if the record stands there: no two changes write the same.
                let found = self.store.get(&key(&group)).await?;
                if found.is_none_or(|found| found.value != encode(record)) {
                    return Err(ChangeError::Store(error));
                }
            }
            Err(error) => return Err(ChangeError::Store(error)),
        }
        self.current.send_modify(|groups| {
            let mut next = Groups::clone(groups);
            next.insert(group, record.clone());
            *groups = Arc::new(next);
        });
        Ok(())
    }

    /// Reads everything again.
    pub(crate) async fn refresh(&self) -> Result<(), StoreError> {
        let groups = read_all(self.store.as_ref()).await?;
        self.current.send_replace(Arc::new(groups));
        Ok(())
    }
}

fn key(group: &GroupId) -> String {
    format!("{PREFIX}{group}")
}

async fn read_all(store: &dyn Store) -> Result<Groups, StoreError> {
    let found = store.list(PREFIX).await?;
    found
        .entries
        .into_iter()
        .map(|(key, found)| {
            let record: GroupRecord = decode(&key, &found.value)?;
            Ok((record.group.clone(), record))
        })
        .collect()
}
