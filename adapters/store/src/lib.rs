//! Where intent is remembered: a file (redb) for one control process, memory for tests and the
//! simulator. Both keep the contract of [`atoll_workflow::Store`], shown by one suite of tests.
//!
//! A third backend belongs beside them: a variant of [`Backend`], a module, and one line in the
//! suite.

mod memory;
mod mirror;
mod redb;

use std::path::PathBuf;
use std::sync::Arc;

use atoll_runtime::Tasks;
use atoll_workflow::Store;
use serde::{Deserialize, Serialize};

pub use memory::{Fault, Memory, Operation};
pub use mirror::HISTORY_REVISIONS_MAX;
pub use redb::{OpenError, Redb};

/// Which store a process uses, as its configuration says it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Backend {
    /// A file, for one process.
    Redb {
        /// The file; made when it is not there, its directory too.
        path: PathBuf,
    },
    /// Nothing is kept. For tests.
    Memory {},
}

/// Opens the store.
pub async fn open(backend: &Backend, tasks: &Tasks) -> Result<Arc<dyn Store>, OpenError> {
    Ok(match backend {
        Backend::Redb { path } => Arc::new(Redb::open(path, tasks).await?),
        Backend::Memory {} => Arc::new(Memory::new()),
    })
}
