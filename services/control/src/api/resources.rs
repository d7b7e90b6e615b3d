//! The resources of the topology file, as the store keeps them.

use std::path::Path;

use atoll_workflow::{Expect, Store, StoreError, Txn};

use crate::error::Error;

const TOPOLOGY: &str = "/topology";

/// Writes the topology at the first start, and refuses another one later: what the records say
/// was decided for it.
pub async fn remember_topology(store: &dyn Store, text: &str, path: &Path) -> Result<(), Error> {
    loop {
        if let Some(found) = store.get(TOPOLOGY).await? {
            return if found.value == text.as_bytes() {
                Ok(())
            } else {
                Err(Error::OtherTopology { path: path.to_owned() })
            };
        }
        let txn = Txn::new().expect(TOPOLOGY, Expect::Absent).put(TOPOLOGY, text.to_owned());
        match store.txn(txn).await {
            // Also when another replica was first: then it is compared with this one's.
            Ok(_) | Err(StoreError::Conflict { .. } | StoreError::OutcomeUnknown { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
