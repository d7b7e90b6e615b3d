//! Connections to primaries, shared by all clients between transactions. A pool belongs to one
//! primaryship: group, term and member. A pool for a term that an op in progress will open is
//! filled ahead; it is used when the table names that term, because only then is it asked for.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use atoll_routing::Table;
use atoll_runtime::{Runtime, ScopedTask};
use atoll_topology::{CellId, GroupId, MemberId, ShardId, Term};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::debug;

use crate::backend::{Backend, BackendError, Login};
use crate::config::Limits;

/// One primaryship of a group. The term is a plain number here because it is a key: which one is
/// newer is never asked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) group: GroupId,
    pub(crate) term: u64,
    pub(crate) member: MemberId,
}

impl Place {
    pub(crate) fn new(group: GroupId, term: Term, member: MemberId) -> Self {
        Self {
            group,
            term: term.get(),
            member,
        }
    }
}

/// All pools.
pub(crate) struct Pools {
    runtime: Runtime,
    login: Login,
    limits: Limits,
    pools: Mutex<BTreeMap<Place, Pool>>,
    /// What the last primary said about itself: clients are told so before they have one.
    parameters: Mutex<BTreeMap<String, String>>,
}

struct Pool {
    idle: Vec<Backend>,
    places: Arc<Semaphore>,
    which: Which,
    /// Opens connections ahead; ends with the pool.
    warming: Option<ScopedTask<()>>,
}

/// Why no connection was to be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoBackend {
    #[error("all connections to the primary are in use")]
    Busy,
    #[error("the primary could not be reached")]
    Unreachable(#[from] BackendError),
}

impl Pools {
    pub(crate) fn new(runtime: Runtime, login: Login, limits: Limits) -> Arc<Self> {
        let (pools, parameters) = (Mutex::default(), Mutex::default());
        Arc::new(Self {
            runtime,
            login,
            limits,
            pools,
            parameters,
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Place, Pool>> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the last primary said about itself.
    pub(crate) fn parameters(&self) -> BTreeMap<String, String> {
        self.parameters
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Closes the pools of primaryships that the table no longer names and opens connections for
    /// those that are coming, where our cell is to write there: a connection costs the new primary
    /// a process at the very moment at which users wait for it.
    pub(crate) fn follow(self: &Arc<Self>, cell: &CellId, table: &Table) {
        let ours = |group: &GroupId| {
            let mut shards = table.shards.iter();
            shards.any(|shard| shard.cell == *cell && shard.group == *group)
        };
        let mut named = BTreeMap::new();
        for (group, row) in &table.groups {
            for (which, place) in [(Which::Open, &row.open), (Which::Coming, &row.coming)] {
                if let Some((term, member)) = place
                    && let Some(address) = row.members.get(member)
                {
                    let place = Place::new(group.clone(), *term, member.clone());
                    named.entry(place).or_insert((which, *address));
                }
            }
        }
        let mut pools = self.lock();
        pools.retain(|place, _| named.contains_key(place));
        for (place, (which, address)) in named {
            let pool = pools
                .entry(place.clone())
                .or_insert_with(|| self.pool(which));
            pool.which = which;
            if which == Which::Coming && pool.warming.is_none() && ours(&place.group) {
                pool.warming = Some(self.warm(place, address));
            }
        }
    }

    fn pool(&self, which: Which) -> Pool {
        let places = Arc::new(Semaphore::new(self.limits.connections_per_group_max));
        Pool {
            idle: Vec::new(),
            places,
            which,
            warming: None,
        }
    }

    /// Keeps connections ready for a primary that is coming, until it has come: one that is lost
    /// meanwhile is replaced.
    fn warm(self: &Arc<Self>, place: Place, address: SocketAddr) -> ScopedTask<()> {
        let pools = Arc::clone(self);
        let name = format!("warm-{}", place.group);
        let warming = async move {
            while let Some(missing) = pools.missing(&place) {
                let connecting = (0..missing).map(|_| {
                    Backend::connect(&pools.runtime, &pools.login, place.clone(), address)
                });
                for connected in futures::future::join_all(connecting).await {
                    match connected {
                        Ok(backend) => {
                            pools.told(&backend);
                            pools.give_back(backend);
                        }
                        Err(error) => debug!(group = %place.group, %error, "warming failed"),
                    }
                }
                tokio::time::sleep(pools.limits.probe_interval()).await;
            }
        };
        self.runtime.tasks().spawn(name, warming).scoped()
    }

    /// How many connections of a coming primary are missing; `None` once it has come.
    fn missing(&self, place: &Place) -> Option<usize> {
        let mut pools = self.lock();
        let pool = pools.get_mut(place)?;
        if pool.which == Which::Open {
            return None;
        }
        pool.idle.retain_mut(|backend| backend.side.is_quiet());
        Some(self.limits.warm_connections.saturating_sub(pool.idle.len()))
    }

    fn told(&self, backend: &Backend) {
        let mut parameters = self
            .parameters
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        parameters.clone_from(&backend.parameters);
    }

    /// A connection for one transaction; preferably one whose `search_path` is `shard`'s.
    pub(crate) async fn take(
        &self,
        place: &Place,
        address: SocketAddr,
        shard: Option<ShardId>,
        deadline: Instant,
    ) -> Result<Backend, NoBackend> {
        let places = {
            let mut pools = self.lock();
            Arc::clone(
                &pools
                    .entry(place.clone())
                    .or_insert_with(|| self.pool(Which::Open))
                    .places,
            )
        };
        let permit = timeout_at(deadline, places.acquire_owned()).await;
        let Ok(Ok(permit)) = permit else {
            return Err(NoBackend::Busy);
        };
        while let Some(mut backend) = self.idle(place, shard) {
            if backend.side.is_quiet() {
                backend.permit = Some(permit);
                return Ok(backend);
            }
        }
        Ok(self.connect(place, address, Some(permit)).await?)
    }

    fn idle(&self, place: &Place, shard: Option<ShardId>) -> Option<Backend> {
        let mut pools = self.lock();
        let idle = &mut pools.get_mut(place)?.idle;
        let at = idle.iter().rposition(|backend| backend.shard == shard);
        match at {
            Some(at) => Some(idle.remove(at)),
            None => idle.pop(),
        }
    }

    /// A new connection, within the limit of time.
    pub(crate) async fn connect(
        &self,
        place: &Place,
        address: SocketAddr,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Result<Backend, BackendError> {
        let limit = self.limits.connect();
        let connect = Backend::connect(&self.runtime, &self.login, place.clone(), address);
        let connected = timeout(limit, connect).await;
        let mut backend = connected.unwrap_or(Err(BackendError::Silent(limit)))?;
        self.told(&backend);
        backend.permit = permit;
        Ok(backend)
    }

    /// A new connection that may take until its member opens.
    pub(crate) async fn connect_patiently(
        &self,
        place: &Place,
        address: SocketAddr,
    ) -> Result<Backend, BackendError> {
        let connect = Backend::connect(&self.runtime, &self.login, place.clone(), address);
        let backend = connect.await?;
        self.told(&backend);
        Ok(backend)
    }

    /// A connection after its transaction. It is kept if it can serve another one.
    pub(crate) fn give_back(&self, mut backend: Backend) {
        if backend.spoilt || !backend.side.is_quiet() {
            return;
        }
        backend.idle_since = Instant::now();
        let mut pools = self.lock();
        if let Some(pool) = pools.get_mut(&backend.place)
            && pool.idle.len() < self.limits.connections_per_group_max
        {
            pool.idle.push(backend);
            // The permit goes with the wait for use: an idle connection holds none.
            if let Some(backend) = pool.idle.last_mut() {
                backend.permit = None;
            }
        }
    }

    /// Closes connections that were not used for long.
    pub(crate) fn tidy(&self) {
        let limit = self.limits.idle_connection();
        for pool in self.lock().values_mut() {
            pool.idle
                .retain(|backend| backend.idle_since.elapsed() < limit);
        }
    }

    /// Idle connections, for metrics.
    pub(crate) fn idle_count(&self) -> usize {
        self.lock().values().map(|pool| pool.idle.len()).sum()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    Open,
    Coming,
}
