//! The record of what automation has done and may do: `/guard/automatic`. Every automatic op compares
//! and bumps it in the transaction that begins the op; every order about automation does the same,
//! and leaves who gave it and why.

use atoll_api::{AutomaticEntry, AutomaticOrder, AutomaticVerb};
use atoll_detection::guard::Guard;
use atoll_store::{Expect, Store, StoreError, Txn};

use crate::app::Control;
use crate::follow::Kept;
use crate::stored;

const KEY: &str = "/guard/automatic";
/// Every order, by number: kept for ever.
const ORDERS: &str = "/audit/automatic/";
/// The last of them in one value, for those who look often.
const NEWEST: &str = "/audit/automatic-newest";
/// How often an order is tried again when others were first, or the store does not say.
const TRIES_MAX: u32 = 10;
/// Orders that are shown.
const ORDERS_SHOWN: usize = 20;

impl Kept for Guard {
    const PREFIX: &'static str = KEY;
    type Name = ();
    fn name(&self) {}
    fn key(&self) -> String {
        KEY.to_owned()
    }
}

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

/// As it was last seen.
pub(crate) fn seen(control: &Control) -> Guard {
    control.guard.all().get(&()).cloned().unwrap_or_default()
}

/// Carries an order about automation out, and keeps it.
pub(crate) async fn obey(control: &Control, order: AutomaticOrder) -> Result<(), StoreError> {
    let entry = AutomaticEntry {
        unix_ms: control.runtime.wall_clock().0,
        order,
    };
    let mut tries = 0;
    loop {
        tries += 1;
        let (guard, expect) = load(control.store.as_ref()).await?;
        if tries > 1 {
            // An earlier try whose outcome was not known may have been it.
            if orders(control.store.as_ref()).await?.contains(&entry) {
                return control.guard.refresh().await.map(drop);
            }
        }
        match carry_out(control, &entry, &guard, expect).await {
            Err(StoreError::Conflict { .. } | StoreError::OutcomeUnknown { .. })
                if tries < TRIES_MAX => {}
            ended => return ended,
        }
    }
}

/// One try, on the record as it was found.
pub(crate) async fn carry_out(
    control: &Control,
    entry: &AutomaticEntry,
    found: &Guard,
    expect: Expect,
) -> Result<(), StoreError> {
    let AutomaticOrder { order, by, reason } = &entry.order;
    let said = format!("{by}: {reason}");
    let next = match order {
        AutomaticVerb::Off => found.kill_switch(Some(said)),
        AutomaticVerb::On => found.kill_switch(None),
        AutomaticVerb::Freeze => found.freeze(Some(said)),
        AutomaticVerb::Thaw => found.freeze(None),
    };
    // No other order can come between: each replaces the guard as it was found.
    let mut newest = orders(control.store.as_ref()).await?;
    newest.insert(0, entry.clone());
    newest.truncate(ORDERS_SHOWN);
    let txn = replace(Txn::new(), expect, &next)
        .put(
            format!("{ORDERS}{:020}", next.number),
            stored::encode(entry),
        )
        .put(NEWEST, stored::encode(&newest));
    let revision = control.store.txn(txn).await?;
    control.guard.note(revision, [next]);
    Ok(())
}

/// The last orders, the newest first.
pub(crate) async fn orders(store: &dyn Store) -> Result<Vec<AutomaticEntry>, StoreError> {
    let Some(found) = store.get(NEWEST).await? else {
        return Ok(vec![]);
    };
    stored::decode(NEWEST, &found.value)
}
