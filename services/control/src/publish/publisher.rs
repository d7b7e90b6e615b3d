//! Gives each new table its version and hands it to whoever serves it.
//!
//! The version never goes back, also over a restart: numbers are taken from the store in blocks,
//! and a block that was begun is never used again.

use std::collections::BTreeMap;
use std::sync::Arc;

use atoll_ownership::record::GroupRecord;
use atoll_proxy::table::Publisher as Tables;
use atoll_routing::{Closed, Table, TableVersion};
use atoll_topology::{GroupId, Topology};
use atoll_workflow::{Expect, Store, StoreError, Txn};
use tokio::sync::{Mutex, watch};
use tracing::{error, info};

use super::table::{self, Stages};
use crate::places::Places;

/// Numbers that are taken from the store at once.
const BLOCK: u64 = 10_000;
const RESERVED: &str = "/table/reserved";
const WORLD: &str = "/world/id";

/// The one place where tables are made.
pub(crate) struct Publisher {
    topology: Arc<Topology>,
    places: Arc<Places>,
    state: Mutex<State>,
    tables: Tables,
    current: watch::Sender<Option<Arc<Table>>>,
}

struct State {
    store: Arc<dyn Store>,
    world: String,
    number: u64,
    reserved: u64,
    stages: Stages,
    last: Option<Table>,
}

impl Publisher {
    /// Continues where the store says that the last one stopped, or begins a world.
    pub(crate) async fn open(
        store: Arc<dyn Store>,
        topology: Arc<Topology>,
        places: Arc<Places>,
        fresh_world: &str,
    ) -> Result<Self, StoreError> {
        let world = match store.get(WORLD).await? {
            Some(found) => String::from_utf8_lossy(&found.value).into_owned(),
            None => {
                let txn = Txn::new()
                    .expect(WORLD, Expect::Absent)
                    .put(WORLD, fresh_world.as_bytes().to_vec());
                store.txn(txn).await?;
                fresh_world.to_owned()
            }
        };
        let number = reserved(store.as_ref()).await?.1;
        let stages = Stages::new();
        let state = State {
            store,
            world,
            number,
            reserved: number,
            stages,
            last: None,
        };
        Ok(Self {
            topology,
            places,
            state: Mutex::new(state),
            tables: Tables::default(),
            current: watch::Sender::new(None),
        })
    }

    /// Where the streams take tables from.
    pub(crate) fn tables(&self) -> Tables {
        self.tables.clone()
    }

    /// The newest table.
    pub(crate) fn current(&self) -> Option<Arc<Table>> {
        self.current.borrow().clone()
    }

    /// Says who waits for a group's switching shards from now on, and publishes.
    pub(crate) async fn stage(
        &self,
        group: &GroupId,
        closed: Option<Closed>,
        records: &BTreeMap<GroupId, GroupRecord>,
    ) -> Result<u64, StoreError> {
        let mut state = self.state.lock().await;
        match closed {
            Some(closed) => state.stages.insert(group.clone(), closed),
            None => state.stages.remove(group),
        };
        self.make(&mut state, records).await
    }

    /// Publishes what the records say now; the number of the table that says it.
    pub(crate) async fn publish(
        &self,
        records: &BTreeMap<GroupId, GroupRecord>,
    ) -> Result<u64, StoreError> {
        self.make(&mut *self.state.lock().await, records).await
    }

    async fn make(
        &self,
        state: &mut State,
        records: &BTreeMap<GroupId, GroupRecord>,
    ) -> Result<u64, StoreError> {
        let version = TableVersion {
            world: state.world.clone(),
            number: state.number,
        };
        let mut table = table::build(
            version,
            &self.topology,
            &self.places,
            records,
            &state.stages,
        );
        if state.last.as_ref() == Some(&table) {
            return Ok(state.number);
        }
        if state.number == state.reserved {
            state.reserved = reserve(state.store.as_ref()).await?;
        }
        state.number += 1;
        table.version.number = state.number;
        state.last = Some(table.clone());
        let encoded = Arc::new(atoll_streams::encode(&table));
        self.current.send_replace(Some(Arc::new(table)));
        if let Err(error) = self.tables.publish(encoded) {
            // Numbers only grow here, so this is a defect; the data planes keep what they have.
            error!(%error, "the table was not taken");
        }
        info!(version = state.number, "table published");
        Ok(state.number)
    }
}

/// The first number of a new block is one after this; its last is the result.
async fn reserve(store: &dyn Store) -> Result<u64, StoreError> {
    loop {
        let (expect, before) = reserved(store).await?;
        let after = before + BLOCK;
        let txn = Txn::new()
            .expect(RESERVED, expect)
            .put(RESERVED, after.to_string().into_bytes());
        match store.txn(txn).await {
            Ok(_) => return Ok(after),
            // Another replica took that block; take the next.
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error),
        }
    }
}

async fn reserved(store: &dyn Store) -> Result<(Expect, u64), StoreError> {
    let Some(found) = store.get(RESERVED).await? else {
        return Ok((Expect::Absent, 0));
    };
    let text = String::from_utf8_lossy(&found.value).into_owned();
    let number = text.parse().map_err(|_| StoreError::Corrupt {
        place: RESERVED.to_owned(),
        reason: format!("{text:?} is not a number"),
    })?;
    Ok((Expect::Revision(found.revision), number))
}
