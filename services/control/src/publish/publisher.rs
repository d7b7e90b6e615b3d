//! Makes the tables and hands them to whoever serves them.
//!
//! A table is made of what the store holds, and its number is the store's revision: replicas need
//! not agree on who publishes, and the number never goes back, also over a restart. Whoever
//! carries an op out writes into the store who waits, and goes on once the table that says so is
//! out.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use atoll_ownership::record::GroupRecord;
use atoll_proxy::table::Publisher as Tables;
use atoll_routing::{Closed, Table, TableVersion};
use atoll_runtime::Shutdown;
use atoll_store::{Expect, Store, StoreError, Txn};
use atoll_topology::{GroupId, Topology};
use tokio::sync::watch;
use tracing::{error, info, warn};

use super::decided::{Decided, INPUTS, Stage, stage_key, waits};
use super::table;
use crate::follow::{Following, Next};
use crate::places::Places;
use crate::records::Groups;
use crate::stored::{decode, encode};

/// Where the world's name stands.
pub(crate) const WORLD: &str = "/world/id";
/// Pause before a store that could not be followed is read again.
const AGAIN: Duration = Duration::from_millis(100);

/// The one place where tables are made.
pub(crate) struct Publisher {
    store: Arc<dyn Store>,
    topology: Arc<Topology>,
    places: Arc<Places>,
    world: String,
    inputs: String,
    decided: Mutex<Decided>,
    tables: Tables,
    current: watch::Sender<Option<Arc<Table>>>,
}

impl Publisher {
    /// Continues with what the store says, or begins a world.
    pub(crate) async fn open(
        store: Arc<dyn Store>,
        topology: Arc<Topology>,
        places: Arc<Places>,
        fresh_world: &str,
    ) -> Result<Self, StoreError> {
        let world = keep(store.as_ref(), WORLD, fresh_world, KeepOld::Yes).await?;
        let version = env!("CARGO_PKG_VERSION");
        let inputs = format!("{version} {}", places.hash());
        keep(store.as_ref(), INPUTS, &inputs, KeepOld::No).await?;
        let decided = Decided::read(store.as_ref()).await?;
        let publisher = Self {
            store,
            topology,
            places,
            world,
            inputs,
            decided: Mutex::new(decided),
            tables: Tables::default(),
            current: watch::Sender::new(None),
        };
        publisher.make(&publisher.decided());
        Ok(publisher)
    }

    /// Whether this replica's tables go out: those of its version and its address book do.
    pub(crate) fn publishes(&self) -> bool {
        self.decided().inputs == self.inputs
    }

    /// From now on this replica's version and address book are the ones that count, and every
    /// replica with others falls silent. The table that they make has a number of its own.
    pub(crate) async fn claim(&self) -> Result<(), StoreError> {
        keep(self.store.as_ref(), INPUTS, &self.inputs, KeepOld::No).await?;
        self.refresh().await
    }

    /// Where the streams take tables from.
    pub(crate) fn tables(&self) -> Tables {
        self.tables.clone()
    }

    /// The newest table.
    pub(crate) fn current(&self) -> Option<Arc<Table>> {
        self.current.borrow().clone()
    }

    /// Says who waits for a group's op from now on, and waits for the table that says so; its
    /// number. Whoever waits already goes on waiting.
    pub(crate) async fn stage(
        &self,
        group: &GroupId,
        closed: Option<Closed>,
        records: &Groups,
    ) -> Result<u64, StoreError> {
        let Some(record) = records.get(group) else {
            return self.publish(records).await;
        };
        let number = self.covering(record).await;
        let (Some(closed), Some(op)) = (closed, record.op.as_ref().map(|op| op.id())) else {
            return Ok(number);
        };
        let (written, now, number) = {
            let decided = self.decided();
            let known = decided.groups.get(group);
            if known
                .and_then(|record| record.op.as_ref())
                .map(|op| op.id())
                != Some(op.clone())
            {
                // Another op has its place, and its own stage.
                return Err(StoreError::Conflict {
                    key: stage_key(group),
                });
            }
            let now = known.and_then(|record| waits(record, &decided.stages));
            // Of the same look as `now`: a number from before would be of a table in which nobody
            // waits yet.
            let written = decided.written.get(group).copied();
            (written, now, decided.number())
        };
        if now == Some(closed) || now == Some(Closed::All) {
            return Ok(number);
        }
        let (key, stage) = (stage_key(group), Stage { op, closed });
        let record_key = crate::records::key(group);
        let txn = Txn::new()
            .expect(record_key, Expect::Revision(written.unwrap_or_default()))
            .put(&key, encode(&stage));
        let revision = match self.store.txn(txn).await {
            Ok(revision) => revision,
            Err(error @ StoreError::OutcomeUnknown { .. }) => {
                let found = self.store.get(&key).await?.ok_or(error.clone())?;
                if decode::<Stage>(&key, &found.value)? != stage {
                    return Err(error);
                }
                found.revision
            }
            Err(error) => return Err(error),
        };
        self.reaches(revision.0).await;
        Ok(revision.0)
    }

    /// Waits for a table that says what these records say; its number.
    pub(crate) async fn publish(&self, records: &Groups) -> Result<u64, StoreError> {
        let mut number = 0;
        for record in records.values() {
            number = self.covering(record).await.max(number);
        }
        Ok(number)
    }

    async fn covering(&self, record: &GroupRecord) -> u64 {
        let mut current = self.current.subscribe();
        loop {
            current.borrow_and_update();
            {
                let decided = self.decided();
                if decided.covers(record) {
                    return decided.number();
                }
            }
            // The sender lives as long as `self`.
            let _ended = current.changed().await;
        }
    }

    async fn reaches(&self, number: u64) {
        let mut current = self.current.subscribe();
        let there = |table: &Option<Arc<Table>>| {
            let table = table.as_ref();
            table.is_some_and(|table| table.version.number >= number)
        };
        // The sender lives as long as `self`.
        let _ended = current.wait_for(there).await;
    }

    /// Follows the store and publishes, until the runtime ends.
    pub(crate) async fn follow(&self, shutdown: Shutdown) {
        let work = async {
            loop {
                if let Err(error) = self.until_broken().await {
                    warn!(%error, "the store is not followed; tables stay as they are");
                }
                tokio::time::sleep(AGAIN).await;
            }
        };
        tokio::select! {
            () = work => {}
            () = shutdown.requested() => {}
        }
    }

    async fn until_broken(&self) -> Result<(), StoreError> {
        self.refresh().await?;
        let seen = self.decided().seen;
        let mut following = Following::begin(self.store.as_ref(), "/", seen).await?;
        loop {
            match following.next().await? {
                None => return Ok(()),
                Some(Next::ReadAgain) => self.refresh().await?,
                Some(Next::Take(changes)) => {
                    let mut decided = self.decided();
                    if decided.take(&changes)? {
                        self.make(&decided);
                    }
                }
            }
        }
    }

    async fn refresh(&self) -> Result<(), StoreError> {
        let read = Decided::read(self.store.as_ref()).await?;
        let mut decided = self.decided();
        if read.seen <= decided.seen {
            return Ok(());
        }
        let news = read.number() != decided.number();
        *decided = read;
        if news {
            self.make(&decided);
        }
        Ok(())
    }

    fn decided(&self) -> MutexGuard<'_, Decided> {
        self.decided.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn make(&self, decided: &Decided) {
        if decided.inputs != self.inputs {
            // Two replicas would give one number to two tables.
            let reason = "another replica has another address book or version, and publishes";
            warn!(reason, "this replica does not publish");
            return;
        }
        let version = TableVersion {
            world: self.world.clone(),
            number: decided.number(),
        };
        let number = version.number;
        let table = table::build(version, &self.topology, &self.places, decided);
        let encoded = Arc::new(atoll_streams::encode(&table));
        if let Err(error) = self.tables.publish(encoded) {
            // Numbers only grow here, so this is a defect; the data planes keep what they have.
            error!(%error, "the table was not taken");
        }
        info!(version = number, "table published");
        self.current.send_replace(Some(Arc::new(table)));
    }
}

/// What becomes of a value that is there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum KeepOld {
    Yes,
    No,
}

/// Makes a key hold a text; what it holds then.
async fn keep(
    store: &dyn Store,
    key: &str,
    text: &str,
    old: KeepOld,
) -> Result<String, StoreError> {
    loop {
        let found = store.get(key).await?;
        let expect = match &found {
            Some(found) if old == KeepOld::Yes || found.value == text.as_bytes() => {
                return Ok(String::from_utf8_lossy(&found.value).into_owned());
            }
            Some(found) => Expect::Revision(found.revision),
            None => Expect::Absent,
        };
        let txn = Txn::new().expect(key, expect);
        match store.txn(txn.put(key, text.to_owned())).await {
            // Read again, whoever was first.
            Ok(_) | Err(StoreError::Conflict { .. } | StoreError::OutcomeUnknown { .. }) => {}
            Err(error) => return Err(error),
        }
    }
}
