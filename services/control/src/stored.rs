//! How control's values stand in the store: as JSON, read back strictly.

use atoll_store::StoreError;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The bytes to keep.
pub(crate) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    // An empty value in its place would be a lost record, so this may not be passed over.
    #[expect(
        clippy::expect_used,
        reason = "what control keeps has only string keys"
    )]
    serde_json::to_vec(value).expect("a stored value is JSON")
}

/// What was kept under `key`.
pub(crate) fn decode<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(value).map_err(|error| StoreError::Corrupt {
        place: key.to_owned(),
        reason: error.to_string(),
    })
}
