//! The store's contents in memory: all of them, for there is little intent (a record for each
//! group, each resource, each execution). Both backends answer reads and watches from here.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::{Change, Changes, Expect, Listed, Revision, StoreError, Txn, Versioned, Watch};

/// Transactions whose changes are kept for watches. When there are more, the older half goes: a
/// watch that is so far behind lists again.
pub const HISTORY_REVISIONS_MAX: usize = 10_000;

/// Transactions that a watch takes at once, so that it does not hold the lock for long.
const WATCH_BATCH: usize = 256;

/// The contents at one revision.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) revision: Revision,
    /// Changes up to here are gone.
    pub(crate) compacted: Revision,
    pub(crate) data: BTreeMap<String, Versioned>,
    pub(crate) history: BTreeMap<Revision, Arc<[Change]>>,
    /// Set when the file may hold something else than this.
    pub(crate) failed: Option<String>,
}

/// What a transaction whose demands hold will do.
#[derive(Debug, Clone)]
pub(crate) struct Effect {
    pub(crate) revision: Revision,
    pub(crate) changes: Arc<[Change]>,
    /// Changes up to here go, because there are too many.
    pub(crate) compact_to: Option<Revision>,
}

impl State {
    /// Checks a transaction against the contents; `None`: it changes nothing.
    fn plan(&self, txn: &Txn) -> Result<Option<Effect>, StoreError> {
        self.usable()?;
        txn.check()?;
        for (key, expect) in &txn.compare {
            let found = self.data.get(key).map(|found| found.revision);
            let holds = match expect {
                Expect::Revision(revision) => found == Some(*revision),
                Expect::Absent => found.is_none(),
                Expect::Present => found.is_some(),
            };
            if !holds {
                return Err(StoreError::Conflict { key: key.clone() });
            }
        }
        let puts = txn.puts.iter().map(|(key, value)| Change {
            key: key.clone(),
            value: Some(value.clone()),
        });
        let deletes = txn
            .deletes
            .iter()
            .filter(|key| self.data.contains_key(*key));
        let deletes = deletes.map(|key| Change {
            key: key.clone(),
            value: None,
        });
        let mut changes: Vec<_> = puts.chain(deletes).collect();
        if changes.is_empty() {
            return Ok(None);
        }
        changes.sort_by(|a, b| a.key.cmp(&b.key));
        let full = self.history.len() >= HISTORY_REVISIONS_MAX;
        Ok(Some(Effect {
            revision: Revision(self.revision.0 + 1),
            changes: changes.into(),
            compact_to: full
                .then(|| self.history.keys().nth(HISTORY_REVISIONS_MAX / 2).copied())
                .flatten(),
        }))
    }

    fn apply(&mut self, effect: Effect) {
        for change in effect.changes.iter() {
            match &change.value {
                Some(value) => {
                    let new = Versioned {
                        revision: effect.revision,
                        value: value.clone(),
                    };
                    self.data.insert(change.key.clone(), new);
                }
                None => {
                    self.data.remove(&change.key);
                }
            }
        }
        self.revision = effect.revision;
        self.history.insert(effect.revision, effect.changes);
        if let Some(revision) = effect.compact_to {
            self.compact(revision);
        }
    }

    fn compact(&mut self, revision: Revision) {
        if revision > self.compacted {
            self.compacted = revision;
            self.history = self.history.split_off(&Revision(revision.0 + 1));
        }
    }

    fn usable(&self) -> Result<(), StoreError> {
        match &self.failed {
            Some(reason) => Err(StoreError::Unavailable {
                reason: reason.clone(),
            }),
            None => Ok(()),
        }
    }

    /// Whether changes after `revision` can be told.
    fn reaches(&self, revision: Revision) -> Result<(), StoreError> {
        self.usable()?;
        if revision > self.revision {
            return Err(StoreError::Ahead {
                asked: revision,
                at: self.revision,
            });
        }
        if revision < self.compacted {
            return Err(StoreError::Compacted {
                compacted: self.compacted,
            });
        }
        Ok(())
    }
}

/// The contents, and who waits for them to change.
pub(crate) struct Mirror {
    state: Arc<Mutex<State>>,
    /// Dropped with the store: then watches end.
    revision: watch::Sender<Revision>,
}

impl Mirror {
    pub(crate) fn new(state: State) -> Self {
        let revision = watch::Sender::new(state.revision);
        Self {
            state: Arc::new(Mutex::new(state)),
            revision,
        }
    }

    pub(crate) fn get(&self, key: &str) -> Result<Option<Versioned>, StoreError> {
        let state = lock(&self.state);
        state.usable()?;
        Ok(state.data.get(key).cloned())
    }

    pub(crate) fn list(&self, prefix: &str) -> Result<Listed, StoreError> {
        let state = lock(&self.state);
        state.usable()?;
        let from = (Bound::Included(prefix), Bound::Unbounded);
        let entries = state
            .data
            .range::<str, _>(from)
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        Ok(Listed {
            entries,
            revision: state.revision,
        })
    }

    /// What a transaction will do; the caller keeps others from applying in between.
    pub(crate) fn plan(&self, txn: &Txn) -> Result<Option<Effect>, StoreError> {
        lock(&self.state).plan(txn)
    }

    pub(crate) fn revision(&self) -> Revision {
        lock(&self.state).revision
    }

    pub(crate) fn apply(&self, effect: Effect) {
        let revision = effect.revision;
        lock(&self.state).apply(effect);
        self.revision.send_replace(revision);
    }

    /// From now on nothing works: what is on disk is not known.
    pub(crate) fn fail(&self, reason: String) {
        let mut state = lock(&self.state);
        state.failed = Some(reason);
        self.revision.send_replace(state.revision);
    }

    /// Whether there is something to compact.
    pub(crate) fn may_compact(&self, revision: Revision) -> Result<bool, StoreError> {
        let state = lock(&self.state);
        state.usable()?;
        if revision > state.revision {
            return Err(StoreError::Ahead {
                asked: revision,
                at: state.revision,
            });
        }
        Ok(revision > state.compacted)
    }

    pub(crate) fn compact(&self, revision: Revision) {
        lock(&self.state).compact(revision);
    }

    pub(crate) fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        lock(&self.state).reaches(after)?;
        let watcher = Watcher {
            state: self.state.clone(),
            news: self.revision.subscribe(),
            prefix: prefix.to_owned(),
            seen: after,
            ready: VecDeque::new(),
        };
        Ok(Box::pin(futures::stream::unfold(
            Some(watcher),
            |watcher| async move {
                let mut watcher = watcher?;
                match watcher.next().await {
                    Ok(changes) => Some((Ok(changes), Some(watcher))),
                    Err(error) => Some((Err(error), None)),
                }
            },
        )))
    }
}

/// One watch. It pulls, so a slow one costs no memory; if it is too slow it is told so.
struct Watcher {
    state: Arc<Mutex<State>>,
    news: watch::Receiver<Revision>,
    prefix: String,
    seen: Revision,
    ready: VecDeque<Changes>,
}

impl Watcher {
    async fn next(&mut self) -> Result<Changes, StoreError> {
        loop {
            if let Some(changes) = self.ready.pop_front() {
                return Ok(changes);
            }
            // Before looking, so that what comes while we look wakes us again.
            self.news.borrow_and_update();
            if !self.look()? && self.news.changed().await.is_err() {
                return Err(StoreError::Unavailable {
                    reason: "it was closed".to_owned(),
                });
            }
        }
    }

    /// Takes some history; whether there was any.
    fn look(&mut self) -> Result<bool, StoreError> {
        let state = lock(&self.state);
        state.reaches(self.seen)?;
        let after = (Bound::Excluded(self.seen), Bound::Unbounded);
        let mut any = false;
        for (revision, changes) in state.history.range(after).take(WATCH_BATCH) {
            any = true;
            self.seen = *revision;
            let changes: Vec<_> = changes
                .iter()
                .filter(|c| c.key.starts_with(&self.prefix))
                .cloned()
                .collect();
            if !changes.is_empty() {
                self.ready.push_back(Changes {
                    revision: *revision,
                    changes,
                });
            }
        }
        Ok(any)
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
