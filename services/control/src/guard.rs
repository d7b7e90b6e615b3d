//! The record of what automation has done: `/guard/automatic`. Every automatic op compares and
//! bumps it in the transaction that begins the op.

use atoll_detection::guard::Guard;
use atoll_workflow::{Expect, Store, StoreError, Txn};

use crate::stored;

const KEY: &str = "/guard/automatic";

/// The record, and what a transaction must find to replace it.
pub(crate) async fn load(store: &dyn Store) -> Result<(Guard, Expect), StoreError> {
    let Some(found) = store.get(KEY).await? else {
        return Ok((Guard::default(), Expect::Absent));
    };
    let guard = stored::decode(KEY, &found.value)?;
    Ok((guard, Expect::Revision(found.revision)))
}

/// Adds the next record to a transaction.
pub(crate) fn replace(txn: Txn, expect: Expect, guard: &Guard) -> Txn {
    txn.expect(KEY, expect).put(KEY, stored::encode(guard))
}
