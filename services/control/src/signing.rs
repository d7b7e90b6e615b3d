//! The key that proofs are signed with: made by the first replica that starts, kept in the store, the
//! same for all replicas.

use atoll_proof::Key;
use atoll_runtime::Runtime;
use atoll_store::{Expect, Store, StoreError, Txn};

const KEY: &str = "/key/proofs";

/// The world's key; the first to ask makes it.
pub(crate) async fn key(store: &dyn Store, runtime: &Runtime) -> Result<Key, StoreError> {
    loop {
        if let Some(found) = store.get(KEY).await? {
            return read(&found.value);
        }
        let txn = Txn::new()
            .expect(KEY, Expect::Absent)
            .put(KEY, hex::encode(secret(runtime)?));
        match store.txn(txn).await {
            // Also when another replica was first: then it is that one's.
            Ok(_) | Err(StoreError::Conflict { .. } | StoreError::OutcomeUnknown { .. }) => {}
            Err(error) => return Err(error),
        }
    }
}

fn read(value: &[u8]) -> Result<Key, StoreError> {
    let secret = hex::decode(value).ok();
    let secret: Option<[u8; 32]> = secret.and_then(|bytes| bytes.try_into().ok());
    secret
        .map(|secret| Key::from_secret(&secret))
        .ok_or_else(|| StoreError::Corrupt {
            place: KEY.to_owned(),
            reason: "not a key".to_owned(),
        })
}

fn secret(runtime: &Runtime) -> Result<[u8; 32], StoreError> {
    let mut secret = [7; 32];
    // A simulated world is the same every time, its key too.
    if !runtime.is_simulated() {
        getrandom::fill(&mut secret).map_err(|error| StoreError::Unavailable {
            reason: format!("no random numbers for a key: {error}"),
        })?;
    }
    Ok(secret)
}
