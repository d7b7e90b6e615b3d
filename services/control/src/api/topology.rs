//! The resources of the topology file, as the store keeps them.

use std::path::Path;

use atoll_api::{AnyObject, Kind, Object};
use atoll_store::{Expect, Store, StoreError, Txn};

use crate::error::Error;

/// Where the file stands.
pub(super) const TOPOLOGY: &str = "/topology";

/// Writes the topology at the first start, and refuses another one later: what the records say
/// was decided for it.
pub(crate) async fn remember(store: &dyn Store, text: &str, path: &Path) -> Result<(), Error> {
    loop {
        if let Some(found) = store.get(TOPOLOGY).await? {
            return if found.value == text.as_bytes() {
                Ok(())
            } else {
                Err(Error::OtherTopology {
                    path: path.to_owned(),
                })
            };
        }
        let txn = Txn::new()
            .expect(TOPOLOGY, Expect::Absent)
            .put(TOPOLOGY, text.to_owned());
        match store.txn(txn).await {
            // Also when another replica was first: then it is compared with this one's.
            Ok(_) | Err(StoreError::Conflict { .. } | StoreError::OutcomeUnknown { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// All resources of one of the file's kinds, by name.
pub(crate) async fn list(store: &dyn Store, kind: Kind) -> Result<Vec<AnyObject>, StoreError> {
    let Some(found) = store.get(TOPOLOGY).await? else {
        return Ok(vec![]);
    };
    let text = String::from_utf8_lossy(&found.value).into_owned();
    let corrupt = |error: &dyn std::fmt::Display| StoreError::Corrupt {
        place: TOPOLOGY.to_owned(),
        reason: error.to_string(),
    };
    let resources = atoll_topology::resources(&text).map_err(|error| corrupt(&error))?;
    let mut objects: Vec<AnyObject> = resources
        .into_iter()
        .filter(|resource| resource.kind == kind.name())
        .map(|resource| {
            let mut object = Object::new(kind, resource.name, resource.spec);
            object.metadata.resource_version = found.revision.to_string();
            object.metadata.generation = 1;
            object
        })
        .collect();
    objects.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    Ok(objects)
}
