//! The store in memory: for tests and the simulator. No threads, no randomness, no waiting; faults
//! where a test asks for them.

use std::sync::{Arc, Mutex, PoisonError};

use crate::mirror::{Mirror, State};
use crate::{Listed, Revision, Store, StoreError, Txn, Versioned, Watch};
use async_trait::async_trait;

/// A store in memory. Clones are the same store.
#[derive(Clone)]
pub struct Memory(Arc<Shared>);

struct Shared {
    mirror: Mirror,
    hook: Mutex<Option<Hook>>,
}

type Hook = Box<dyn FnMut(Operation<'_>) -> Fault + Send>;

/// What is about to be done.
#[derive(Debug, Clone, Copy)]
pub enum Operation<'a> {
    /// Reads a key.
    Get(&'a str),
    /// Reads a prefix.
    List(&'a str),
    /// A transaction.
    Txn(&'a Txn),
    /// Begins a watch of a prefix.
    Watch(&'a str),
    /// Compacts.
    Compact(Revision),
}

/// What happens to an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fault {
    /// Nothing special.
    #[default]
    None,
    /// It fails and is not done.
    Unavailable,
    /// A transaction is done, if its demands hold, and its outcome is reported as unknown. What
    /// is not a transaction is unavailable.
    UnknownApplied,
    /// A transaction is not done, and its outcome is reported as unknown. What is not a
    /// transaction is unavailable.
    UnknownNotApplied,
    /// A transaction is done, if its demands hold, and its caller hears nothing any more: the
    /// process dies here. What is not a transaction is unavailable.
    DiesAfter,
    /// The caller dies before the transaction. What is not a transaction is unavailable.
    DiesBefore,
}

impl Memory {
    /// Empty, at revision 0.
    pub fn new() -> Self {
        let mirror = Mirror::new(State::default());
        Self(Arc::new(Shared {
            mirror,
            hook: Mutex::default(),
        }))
    }

    /// Asks `hook` before each operation what happens to it. It must not use the store.
    pub fn inject(&self, hook: impl FnMut(Operation<'_>) -> Fault + Send + 'static) {
        *self.hook() = Some(Box::new(hook));
    }

    /// No faults from now on.
    pub fn heal(&self) {
        *self.hook() = None;
    }

    fn hook(&self) -> std::sync::MutexGuard<'_, Option<Hook>> {
        self.0.hook.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fault(&self, operation: Operation<'_>) -> Fault {
        self.hook()
            .as_mut()
            .map_or(Fault::None, |hook| hook(operation))
    }

    fn available(&self, operation: Operation<'_>) -> Result<(), StoreError> {
        match self.fault(operation) {
            Fault::None => Ok(()),
            _ => Err(unavailable()),
        }
    }

    fn apply(&self, txn: &Txn) -> Result<Revision, StoreError> {
        let mirror = &self.0.mirror;
        Ok(match mirror.plan(txn)? {
            Some(effect) => {
                let revision = effect.revision;
                mirror.apply(effect);
                revision
            }
            None => mirror.revision(),
        })
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

fn unavailable() -> StoreError {
    StoreError::Unavailable {
        reason: "a fault of the test".to_owned(),
    }
}

fn unknown() -> StoreError {
    StoreError::OutcomeUnknown {
        reason: "a fault of the test".to_owned(),
    }
}

#[async_trait]
impl Store for Memory {
    async fn get(&self, key: &str) -> Result<Option<Versioned>, StoreError> {
        self.available(Operation::Get(key))?;
        self.0.mirror.get(key)
    }

    async fn list(&self, prefix: &str) -> Result<Listed, StoreError> {
        self.available(Operation::List(prefix))?;
        self.0.mirror.list(prefix)
    }

    async fn txn(&self, txn: Txn) -> Result<Revision, StoreError> {
        match self.fault(Operation::Txn(&txn)) {
            Fault::None => self.apply(&txn),
            Fault::Unavailable => Err(unavailable()),
            Fault::UnknownApplied => {
                // Whether its demands held is part of what is not known.
                drop(self.apply(&txn));
                Err(unknown())
            }
            Fault::UnknownNotApplied => Err(unknown()),
            Fault::DiesAfter => {
                drop(self.apply(&txn));
                std::future::pending().await
            }
            Fault::DiesBefore => std::future::pending().await,
        }
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        self.available(Operation::Watch(prefix))?;
        self.0.mirror.watch(prefix, after)
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.available(Operation::Compact(revision))?;
        if self.0.mirror.may_compact(revision)? {
            self.0.mirror.compact(revision);
        }
        Ok(())
    }
}
