//! Wiring: what all sessions of a process share, and the tasks beside them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use atoll_proxy::table::{FollowerConfig, Observed, TableFollower};
use atoll_routing::{Table, TableVersion, home};
use atoll_runtime::Runtime;
use atoll_streams::{Opening, Role, ShardLoad};
use atoll_telemetry::{Admin, Metrics as Registry, admin};
use atoll_topology::{CellId, Epoch, GroupId, ShardId, ShardScheme};
use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{debug, info};

use crate::accept::{Cancels, accept};
use crate::backend::{Login, Statement};
use crate::config::{Config, Limits};
use crate::error::Error;
use crate::gate::Gates;
use crate::metrics::Metrics;
use crate::openings::Openings;
use crate::pool::{Place, Pools};

/// How often unused connections are looked through.
const TIDY_EVERY: Duration = Duration::from_secs(10);

/// What a router tells control, through its mesh.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    /// The table in use: every gate has seen it.
    pub in_use: TableVersion,
    /// Transactions in progress and waiting, for each run of switching shards under that table.
    pub loads: Vec<ShardLoad>,
    /// What was read on primaries that open or have opened for shards that come to this cell.
    pub openings: Vec<Opening>,
}

/// What all sessions of a process share.
pub(crate) struct Shared {
    pub(crate) runtime: Runtime,
    pub(crate) cell: CellId,
    pub(crate) limits: Limits,
    pub(crate) gates: Arc<Gates>,
    pub(crate) pools: Arc<Pools>,
    pub(crate) statements: Statements,
    pub(crate) cancels: Cancels,
    pub(crate) metrics: Metrics,
    /// Groups whose primary is being tried again.
    probed: Mutex<BTreeSet<GroupId>>,
}

/// The role with which a cell's router connects.
fn role_of(cell: &CellId) -> String {
    atoll_postgres::cell_role(cell)
}

/// Serves until shutdown: tables come from the meshes, facts go there.
pub async fn serve(
    config: Config,
    runtime: Runtime,
    ready: impl FnOnce(&str),
) -> Result<(), Error> {
    let Some(file) = config.table_file.clone() else {
        return Err(Error::Config("table_file is missing".to_owned()));
    };
    let follower = TableFollower::start(
        &runtime,
        FollowerConfig {
            process: config.process.clone(),
            role: Role::SqlRouter,
            region: config.region.clone(),
            cell: Some(config.cell.clone()),
            sources: config.meshes.clone(),
            file,
        },
    );
    let (sender, mut facts) = watch::channel(Facts::default());
    let latest = facts.clone();
    let shutdown = runtime.shutdown();
    follower.observe(move || {
        let facts = latest.borrow();
        Observed {
            loads: facts.loads.clone(),
            openings: facts.openings.clone(),
            cells: Vec::new(),
            draining: shutdown.is_requested(),
            requests: None,
        }
    });
    let tables = follower.tables();
    let worker = follower.worker();
    let carry = async move {
        while facts.changed().await.is_ok() {
            let in_use = facts.borrow_and_update().in_use.clone();
            if in_use.number > 0 {
                worker.in_use(&in_use);
            }
            follower.report_now();
        }
    };
    let _carry = runtime.tasks().spawn("report", carry).scoped();
    serve_with(config, runtime, tables, sender, ready).await
}

/// What is known before the first table.
fn nothing() -> Arc<Table> {
    Arc::new(Table {
        version: TableVersion::default(),
        scheme: ShardScheme::Hash,
        shards: Vec::new(),
        cells: BTreeMap::new(),
        groups: BTreeMap::new(),
        round_trip_ms: BTreeMap::new(),
        routes: Vec::new(),
    })
}

/// Serves with tables and for reports that somebody else carries. Returns after shutdown and
/// drain.
pub async fn serve_with(
    config: Config,
    runtime: Runtime,
    mut tables: watch::Receiver<Option<Arc<Table>>>,
    facts: watch::Sender<Facts>,
    ready: impl FnOnce(&str),
) -> Result<(), Error> {
    config.check()?;
    let labels = [
        ("region", config.region.as_str()),
        ("cell", config.cell.as_str()),
        ("process", config.process.as_str()),
    ];
    let registry = Registry::new(&labels);
    let metrics = Metrics::new(&registry)?;
    let listener = runtime.listen(config.listen).await;
    let (at, port) = (config.listen, "clients");
    let listener = listener.map_err(|source| Error::Listen { at, port, source })?;
    let limits = config.limits.clone();
    let login = Login {
        role: role_of(&config.cell),
        database: atoll_postgres::DATABASE.to_owned(),
        frames: limits.frames(),
    };
    let first = tables.borrow_and_update().clone().unwrap_or_else(nothing);
    let shared = Arc::new(Shared {
        runtime: runtime.clone(),
        cell: config.cell.clone(),
        gates: Gates::new(config.cell.clone(), Arc::clone(&first)),
        pools: Pools::new(runtime.clone(), login, limits.clone()),
        limits,
        statements: Statements::default(),
        cancels: Cancels::default(),
        metrics,
        probed: Mutex::default(),
    });
    shared.pools.follow(&shared.cell, &first);
    let admin = serve_admin(&shared, &config, registry).await?;

    let openings = Openings::new(Arc::clone(&shared));
    let _follow = {
        let (shared, openings) = (Arc::clone(&shared), Arc::clone(&openings));
        let follow = async move {
            openings.follow(&first);
            while tables.changed().await.is_ok() {
                let Some(table) = tables.borrow_and_update().clone() else {
                    continue;
                };
                // Before the gates: who is released finds the connections that were warmed.
                shared.pools.follow(&shared.cell, &table);
                shared.gates.take(Arc::clone(&table));
                openings.follow(&table);
            }
        };
        runtime.tasks().spawn("tables", follow).scoped()
    };
    let _facts = runtime
        .tasks()
        .spawn("facts", tell(Arc::clone(&shared), openings, facts))
        .scoped();
    let _tidy = {
        let shared = Arc::clone(&shared);
        let tidy = async move {
            loop {
                tokio::time::sleep(TIDY_EVERY).await;
                shared.pools.tidy();
                let idle = i64::try_from(shared.pools.idle_count()).unwrap_or(i64::MAX);
                shared.metrics.idle_connections.set(idle);
            }
        };
        runtime.tasks().spawn("tidy", tidy).scoped()
    };
    ready(&format!(
        "sql={} admin=http://{admin}",
        listener.local_addr()
    ));
    accept(Arc::clone(&shared), listener).await;
    info!(in_flight = shared.gates.in_flight(), "drained");
    Ok(())
}

async fn serve_admin(
    shared: &Arc<Shared>,
    config: &Config,
    registry: Registry,
) -> Result<SocketAddr, Error> {
    let (table, known) = (Arc::clone(shared), Arc::clone(shared));
    let admin = Admin::new(registry)
        .ready(move || {
            if known.gates.table().version.number == 0 {
                return Err("no table yet".to_owned());
            }
            Ok(())
        })
        .debug("table", move || {
            format!("{:#?}\n{:#?}", table.gates.table(), table.gates.loads())
        });
    let served = admin::serve(&shared.runtime, config.admin, admin).await;
    let (at, port) = (config.admin, "admin");
    served.map_err(|source| Error::Listen { at, port, source })
}

/// Tells what has changed, whenever something has.
async fn tell(shared: Arc<Shared>, openings: Arc<Openings>, facts: watch::Sender<Facts>) {
    let mut changes = shared.gates.counts();
    let mut read = openings.changes();
    loop {
        changes.mark_unchanged();
        let openings = read.borrow_and_update().values().cloned().collect();
        let (in_use, loads) = shared.gates.loads();
        let now = Facts {
            in_use,
            loads,
            openings,
        };
        facts.send_if_modified(|facts| {
            let changed = *facts != now;
            *facts = now;
            changed
        });
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            changed = read.changed() => if changed.is_err() { return },
        }
    }
}

impl Shared {
    /// The open primary of `shard`'s group gives no connection: its gate closes until one does,
    /// or until the table says otherwise.
    pub(crate) fn suspect(self: &Arc<Self>, shard: ShardId, group: &GroupId) {
        self.gates.suspect(shard);
        let mut probed = self.probed.lock().unwrap_or_else(PoisonError::into_inner);
        if !probed.insert(group.clone()) {
            return;
        }
        let (shared, group) = (Arc::clone(self), group.clone());
        let name = format!("probe-{group}");
        // It ends when no shard of the group waits for it any more.
        self.runtime
            .tasks()
            .spawn(name, async move { shared.probe(group).await });
    }

    async fn probe(&self, group: GroupId) {
        let shutdown = self.runtime.shutdown();
        loop {
            {
                let mut probed = self.probed.lock().unwrap_or_else(PoisonError::into_inner);
                if !self.gates.has_suspects(&group) || shutdown.is_requested() {
                    probed.remove(&group);
                    return;
                }
            }
            let table = self.gates.table();
            let of_group = (0..).zip(&table.shards).find(|(_, row)| row.group == group);
            if let Some((number, _)) = of_group
                && let Ok(home) = home(&table, ShardId(number))
            {
                let place = Place::new(home.group.clone(), home.term, home.primary.clone());
                match self.pools.connect(&place, home.address, None).await {
                    Ok(mut backend) => {
                        // A member answers a start-up before it is open, and statements after.
                        let statement = ["SELECT 1".to_owned()];
                        match backend.run(&statement, self.limits.own_statement()).await {
                            Ok(_) => {
                                self.pools.give_back(backend);
                                self.gates.probe_passed(&group);
                            }
                            Err(error) => debug!(%group, %error, "the primary is not open"),
                        }
                    }
                    Err(error) => debug!(%group, %error, "the primary does not answer yet"),
                }
            }
            tokio::time::sleep(self.limits.probe_interval()).await;
        }
    }

    /// Whether the table sends a shard's transactions elsewhere than to `place`.
    pub(crate) fn is_outdated(&self, place: &Place, shard: ShardId) -> bool {
        let table = self.gates.table();
        home(&table, shard).is_ok_and(|home| {
            *place != Place::new(home.group.clone(), home.term, home.primary.clone())
        })
    }

    /// Waits until the table sends a shard's transactions elsewhere than to `place`.
    pub(crate) async fn outdated(&self, place: Place, shard: ShardId) {
        let mut changes = self.gates.changes();
        while !self.is_outdated(&place, shard) {
            if changes.changed().await.is_err() {
                // The gates live as long as we do.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Connects to some primary of this cell, to learn what primaries say about themselves.
    pub(crate) async fn introduce(&self) {
        let table = self.gates.table();
        let mine = (0..)
            .zip(&table.shards)
            .find(|(_, row)| row.cell == self.cell);
        let Some((number, _)) = mine else { return };
        let Ok(home) = home(&table, ShardId(number)) else {
            return;
        };
        let place = Place::new(home.group.clone(), home.term, home.primary.clone());
        match self.pools.connect(&place, home.address, None).await {
            Ok(backend) => self.pools.give_back(backend),
            Err(error) => debug!(group = %place.group, %error, "no primary to learn from yet"),
        }
    }

    /// Who owns a shard, by its database.
    pub(crate) async fn owner(
        &self,
        place: &Place,
        address: SocketAddr,
        shard: ShardId,
    ) -> Option<(CellId, Epoch)> {
        let limit = self.limits.own_statement();
        let mut backend = timeout(limit, self.pools.connect(place, address, None))
            .await
            .ok()?
            .ok()?;
        let sql = format!("SELECT cell, epoch FROM atoll.shard_owner WHERE shard = {shard}");
        let own = backend.run(&[sql], limit).await.ok()?;
        self.pools.give_back(backend);
        let [Some(cell), Some(epoch)] = own.rows.first()?.as_slice() else {
            return None;
        };
        let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).ok();
        let epoch = text(epoch)?.parse().ok()?;
        Some((CellId::parse(text(cell)?).ok()?, Epoch::new(epoch)))
    }
}

type Texts = BTreeMap<(Bytes, Vec<u32>), Weak<Statement>>;

/// Prepared statements by their text, so that clients share what connections have prepared.
#[derive(Default)]
pub(crate) struct Statements {
    next: AtomicU64,
    known: Mutex<(Texts, usize)>,
}

impl Statements {
    /// The statement of this text, the same for everybody.
    pub(crate) fn shared(&self, query: Bytes, types: Vec<u32>) -> Arc<Statement> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (texts, after) = &mut *known;
        let key = (query, types);
        if let Some(found) = texts.get(&key).and_then(Weak::upgrade) {
            return found;
        }
        // Those that nobody uses any more go when there are twice as many as were in use.
        if texts.len() >= *after {
            texts.retain(|_, statement| statement.strong_count() > 0);
            *after = (2 * texts.len()).max(1024);
        }
        // A copy: the message that it came in may be much larger.
        let (query, types) = (Bytes::copy_from_slice(&key.0), key.1);
        let statement = self.single(query.clone(), types.clone());
        texts.insert((query, types), Arc::downgrade(&statement));
        statement
    }

    /// A statement of this text, for one client.
    pub(crate) fn single(&self, query: Bytes, types: Vec<u32>) -> Arc<Statement> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let name = Bytes::from(format!("atoll_{number}"));
        Arc::new(Statement {
            number,
            name,
            query,
            types,
            described: OnceLock::new(),
        })
    }
}
