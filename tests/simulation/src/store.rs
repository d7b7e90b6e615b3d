//! The way of one replica of control to the store that all share: it may be cut, and outcomes may
//! be lost on it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use atoll_store::{Listed, Memory, Revision, Store, StoreError, Txn, Versioned, Watch};

/// What a replica meets at its store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Trouble {
    /// None.
    #[default]
    None,
    /// It cannot be reached.
    Unavailable,
    /// Of three transactions one is done and one is not done, and nobody is told which.
    Doubtful,
}

/// One replica's way to the store. Clones are the same way.
#[derive(Clone)]
pub(crate) struct Way {
    memory: Memory,
    met: Arc<Mutex<Met>>,
}

#[derive(Default)]
struct Met {
    trouble: Trouble,
    /// Transactions so far.
    transactions: u64,
    /// Whether this replica's city reaches no other: then it has no majority of the store.
    apart: bool,
}

impl Way {
    pub(crate) fn to(memory: Memory) -> Self {
        let met = Arc::default();
        Self { memory, met }
    }

    fn met(&self) -> MutexGuard<'_, Met> {
        self.met.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn meets(&self, trouble: Trouble) {
        self.met().trouble = trouble;
    }

    pub(crate) fn apart(&self, apart: bool) {
        self.met().apart = apart;
    }

    fn available(&self) -> Result<(), StoreError> {
        let met = self.met();
        if met.apart || met.trouble == Trouble::Unavailable {
            let reason = "simulated".to_owned();
            return Err(StoreError::Unavailable { reason });
        }
        Ok(())
    }

    /// Which transaction this is, where outcomes are lost.
    fn doubtful(&self) -> Option<u64> {
        let mut met = self.met();
        met.transactions += 1;
        (met.trouble == Trouble::Doubtful).then_some(met.transactions % 3)
    }
}

#[async_trait]
impl Store for Way {
    async fn get(&self, key: &str) -> Result<Option<Versioned>, StoreError> {
        self.available()?;
        self.memory.get(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Listed, StoreError> {
        self.available()?;
        self.memory.list(prefix).await
    }

    async fn txn(&self, txn: Txn) -> Result<Revision, StoreError> {
        self.available()?;
        let unknown = || StoreError::OutcomeUnknown {
            reason: "simulated".to_owned(),
        };
        match self.doubtful() {
            Some(0) => Err(unknown()),
            Some(1) => {
                // Whether its demands held is part of what is not known.
                drop(self.memory.txn(txn).await);
                Err(unknown())
            }
            _ => self.memory.txn(txn).await,
        }
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        self.available()?;
        self.memory.watch(prefix, after).await
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.available()?;
        self.memory.compact(revision).await
    }
}
