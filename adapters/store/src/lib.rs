//! Where intent is remembered: etcd for several replicas of control, a file (redb) for one, memory
//! for tests and the simulator. All keep the contract of [`Store`], shown by one
//! suite of tests.

mod contract;
mod etcd;
mod memory;
mod mirror;
mod redb;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use atoll_runtime::Runtime;
use serde::{Deserialize, Serialize};

pub use contract::{
    Change, Changes, Expect, KEY_BYTES_MAX, Listed, Revision, Store, StoreError,
    TXN_OPERATIONS_MAX, Txn, VALUE_BYTES_MAX, Versioned, Watch,
};
pub use etcd::Etcd;
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
    /// Several nodes, for several processes.
    Etcd {
        /// Their client addresses, the nearest first.
        endpoints: Vec<SocketAddr>,
    },
}

/// Opens the store.
pub async fn open(backend: &Backend, runtime: &Runtime) -> Result<Arc<dyn Store>, OpenError> {
    Ok(match backend {
        Backend::Redb { path } => Arc::new(Redb::open(path, runtime.tasks()).await?),
        Backend::Etcd { endpoints } => Arc::new(Etcd::new(runtime, endpoints)),
    })
}
