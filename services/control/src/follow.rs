//! Everything of one kind, as the store has it: read once, then followed, so that every replica
//! sees what any of them writes, and nobody asks twice.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use atoll_runtime::Runtime;
use atoll_workflow::{Change, Revision, Store, StoreError};
use futures::StreamExt;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use crate::stored::decode;

/// Pause before a store that could not be read is read again.
const AGAIN: Duration = Duration::from_millis(100);

/// How often everything is read again though it is followed: what a watch does not tell is no proof
/// that nothing happened.
pub(crate) const REFRESH: Duration = Duration::from_secs(2);

/// A kind of values that the store keeps under one prefix. None of them is ever deleted.
pub(crate) trait Kept: DeserializeOwned + Clone + Send + Sync + 'static {
    /// Where they stand.
    const PREFIX: &'static str;
    /// What tells them apart.
    type Name: Ord + Clone + Send + Sync + 'static;
    /// Its name, which its key is made of.
    fn name(&self) -> Self::Name;
}

/// All values of a kind, by name.
pub(crate) type All<T> = BTreeMap<<T as Kept>::Name, T>;

/// The newest that is known of every value of a kind.
pub(crate) struct Followed<T: Kept> {
    store: Arc<dyn Store>,
    /// By name, with the transaction that wrote it: an older one never replaces a newer one.
    revisions: Mutex<BTreeMap<T::Name, Revision>>,
    current: watch::Sender<Arc<All<T>>>,
}

impl<T: Kept> Followed<T> {
    /// Reads all of them.
    pub(crate) async fn load(store: Arc<dyn Store>) -> Result<Self, StoreError> {
        let followed = Self {
            store,
            revisions: Mutex::default(),
            current: watch::Sender::new(Arc::default()),
        };
        followed.refresh().await?;
        Ok(followed)
    }

    /// All of them.
    pub(crate) fn all(&self) -> Arc<All<T>> {
        self.current.borrow().clone()
    }

    /// Tells when any of them changes.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<All<T>>> {
        self.current.subscribe()
    }

    /// These were written, or read, at this revision.
    pub(crate) fn note(&self, revision: Revision, values: impl IntoIterator<Item = T>) {
        // Held until the values are out, so that two notes cannot pass one another.
        let mut revisions = self
            .revisions
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut newer = values
            .into_iter()
            .filter(|value| {
                let name = value.name();
                let known = revisions.get(&name).is_some_and(|known| *known >= revision);
                if !known {
                    revisions.insert(name, revision);
                }
                !known
            })
            .peekable();
        if newer.peek().is_none() {
            return;
        }
        self.current.send_modify(|all| {
            let mut next = All::<T>::clone(all);
            next.extend(newer.map(|value| (value.name(), value)));
            *all = Arc::new(next);
        });
    }

    /// Reads all of them again; the store's revision then.
    pub(crate) async fn refresh(&self) -> Result<Revision, StoreError> {
        let listed = self.store.list(T::PREFIX).await?;
        for (key, found) in &listed.entries {
            self.note(found.revision, [decode(key, &found.value)?]);
        }
        Ok(listed.revision)
    }

    /// Follows the store until the runtime ends.
    pub(crate) async fn follow(self: Arc<Self>, runtime: Runtime) {
        let shutdown = runtime.shutdown();
        let work = async {
            loop {
                if let Err(error) = self.until_broken().await {
                    match error {
                        StoreError::Compacted { .. } => info!(prefix = T::PREFIX, "listing again"),
                        error => warn!(prefix = T::PREFIX, %error, "the store is not followed"),
                    }
                }
                tokio::time::sleep(AGAIN).await;
            }
        };
        tokio::select! {
            () = work => {}
            () = shutdown.requested() => {}
        }
    }

    async fn until_broken(&self) -> Result<(), StoreError> {
        let revision = self.refresh().await?;
        let mut changes = self.store.watch(T::PREFIX, revision).await?;
        let mut ticks = interval(REFRESH);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.reset();
        loop {
            let next = tokio::select! {
                next = changes.next() => next,
                _ = ticks.tick() => {
                    self.refresh().await?;
                    continue;
                }
            };
            let Some(next) = next else { return Ok(()) };
            let next = next?;
            for Change { key, value } in next.changes {
                if let Some(value) = value {
                    self.note(next.revision, [decode(&key, &value)?]);
                }
            }
        }
    }
}
