//! Everything of one kind, as the store has it: read once, then followed, so that every replica
//! sees what any of them writes, and nobody asks twice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use atoll_runtime::Runtime;
use atoll_store::{Change, Changes, Listed, Revision, Store, StoreError, Watch};
use futures::StreamExt;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tracing::{info, warn};

use crate::stored::decode;

/// Pause before a store that could not be read is read again.
const AGAIN: Duration = Duration::from_millis(100);

/// How often everything is read again though it is followed: what a watch does not tell is no proof
/// that nothing happened.
pub(crate) const REFRESH: Duration = Duration::from_secs(2);

/// A kind of values that the store keeps under one prefix.
pub(crate) trait Kept: DeserializeOwned + Clone + Send + Sync + 'static {
    /// Where they stand.
    const PREFIX: &'static str;
    /// What tells them apart.
    type Name: Ord + Clone + Send + Sync + 'static;
    /// Its name.
    fn name(&self) -> Self::Name;
    /// Where it stands.
    fn key(&self) -> String;
}

/// What a follower does next.
pub(crate) enum Next {
    /// Takes one transaction.
    Take(Changes),
    /// Reads everything again.
    ReadAgain,
}

/// A watch of the store that now and then asks for everything to be read again.
pub(crate) struct Following {
    changes: Watch,
    ticks: Interval,
}

impl Following {
    /// Of what changes after a revision.
    pub(crate) async fn begin(
        store: &dyn Store,
        prefix: &str,
        after: Revision,
    ) -> Result<Self, StoreError> {
        let changes = store.watch(prefix, after).await?;
        let mut ticks = interval(REFRESH);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.reset();
        Ok(Self { changes, ticks })
    }

    /// None: the watch has ended.
    pub(crate) async fn next(&mut self) -> Result<Option<Next>, StoreError> {
        tokio::select! {
            next = self.changes.next() => next.map(|next| next.map(Next::Take)).transpose(),
            _ = self.ticks.tick() => Ok(Some(Next::ReadAgain)),
        }
    }
}

/// All values of a kind, by name.
pub(crate) type All<T> = BTreeMap<<T as Kept>::Name, T>;

/// The newest that is known of every value of a kind.
pub(crate) struct Followed<T: Kept> {
    store: Arc<dyn Store>,
    /// By key, with the transaction that wrote it: an older one never replaces a newer one.
    known: Mutex<BTreeMap<String, (Revision, T::Name)>>,
    current: watch::Sender<Arc<All<T>>>,
    told: Box<Told<T>>,
}

/// Is told each value that is new, and the name of each that is gone.
type Told<T> = dyn Fn(&<T as Kept>::Name, Option<&T>) + Send + Sync;

impl<T: Kept> Followed<T> {
    /// Reads all of them.
    pub(crate) async fn load(store: Arc<dyn Store>) -> Result<Self, StoreError> {
        Self::load_telling(store, |_, _| {}).await
    }

    /// The same, and tells each change by itself too.
    pub(crate) async fn load_telling(
        store: Arc<dyn Store>,
        told: impl Fn(&T::Name, Option<&T>) + Send + Sync + 'static,
    ) -> Result<Self, StoreError> {
        let followed = Self {
            store,
            known: Mutex::default(),
            current: watch::Sender::new(Arc::default()),
            told: Box::new(told),
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
        let mut known = self.known();
        let newer = values.into_iter().filter(|value| {
            let key = value.key();
            let is = known.get(&key).is_none_or(|(known, _)| *known < revision);
            if is {
                known.insert(key, (revision, value.name()));
            }
            is
        });
        let newer: Vec<T> = newer.collect();
        if newer.is_empty() {
            return;
        }
        for value in &newer {
            (self.told)(&value.name(), Some(value));
        }
        self.current.send_modify(|all| {
            let all = Arc::make_mut(all);
            all.extend(newer.into_iter().map(|value| (value.name(), value)));
        });
    }

    /// What stands under these keys was deleted, or is not there any more, as of this revision.
    fn forget(&self, revision: Revision, gone: impl Fn(&str) -> bool) {
        let mut known = self.known();
        let mut names = Vec::new();
        known.retain(|key, (written, name)| {
            let gone = *written <= revision && gone(key);
            if gone {
                names.push(name.clone());
            }
            !gone
        });
        if names.is_empty() {
            return;
        }
        for name in &names {
            (self.told)(name, None);
        }
        self.current.send_modify(|all| {
            let all = Arc::make_mut(all);
            all.retain(|name, _| !names.contains(name));
        });
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<String, (Revision, T::Name)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads all of them again; the store's revision then.
    pub(crate) async fn refresh(&self) -> Result<Revision, StoreError> {
        let Listed { entries, revision } = self.store.list(T::PREFIX).await?;
        for (key, found) in &entries {
            let old = |(known, _): &(Revision, T::Name)| *known >= found.revision;
            // What is known already need not be read to see that it is.
            if !self.known().get(key).is_some_and(old) {
                self.note(found.revision, [decode(key, &found.value)?]);
            }
        }
        let there: BTreeSet<&str> = entries.iter().map(|(key, _)| key.as_str()).collect();
        self.forget(revision, |key| !there.contains(key));
        Ok(revision)
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
        let mut following = Following::begin(self.store.as_ref(), T::PREFIX, revision).await?;
        loop {
            match following.next().await? {
                None => return Ok(()),
                Some(Next::ReadAgain) => self.refresh().await.map(drop)?,
                Some(Next::Take(Changes { revision, changes })) => {
                    for Change { key, value } in changes {
                        match value {
                            Some(value) => self.note(revision, [decode(&key, &value)?]),
                            None => self.forget(revision, |known| known == key),
                        }
                    }
                }
            }
        }
    }
}
