//! The group's record in a store: all that one control leaves to the next.

use anyhow::{Context, Result};
use atoll_ownership::record::GroupRecord;
use atoll_store::{Expect, Fault, Memory, Operation, Revision, Store, StoreError, Txn};

const KEY: &str = "group/g";

/// What a control does when it does not know whether its write was done: reads, and writes again.
const ATTEMPTS_MAX: u32 = 3;

/// The record in a store in memory.
#[derive(Clone, Default)]
pub struct Recorded {
    store: Memory,
}

impl Recorded {
    /// The record and the write that made it.
    pub async fn read(&self) -> Result<(GroupRecord, Revision)> {
        let found = self.store.get(KEY).await?.context("no record")?;
        Ok((serde_json::from_slice(&found.value)?, found.revision))
    }

    /// Writes `record` in the place of `old`, or where there is none; no other control may have
    /// come between.
    pub(crate) async fn write(
        &self,
        old: Option<&GroupRecord>,
        record: &GroupRecord,
    ) -> Result<()> {
        for _ in 0..ATTEMPTS_MAX {
            let expected = match old {
                None => Expect::Absent,
                Some(old) => {
                    let (stored, revision) = self.read().await?;
                    if stored == *record {
                        return Ok(());
                    }
                    anyhow::ensure!(stored == *old, "another control has written the record");
                    Expect::Revision(revision)
                }
            };
            let txn = Txn::new().expect(KEY, expected);
            match self
                .store
                .txn(txn.put(KEY, serde_json::to_vec(record)?))
                .await
            {
                Ok(_) => return Ok(()),
                Err(StoreError::OutcomeUnknown { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        anyhow::bail!("the outcome of the record's write stayed unknown")
    }

    /// The next write is done, or not, and nobody is told which.
    pub fn next_outcome_is_unknown(&self, fault: Fault) {
        let mut pending = Some(fault);
        self.store.inject(move |operation| match operation {
            Operation::Txn(_) => pending.take().unwrap_or_default(),
            _ => Fault::None,
        });
    }
}
