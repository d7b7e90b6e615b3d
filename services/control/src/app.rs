//! How the parts of control are put together.

use std::sync::Arc;
use std::time::Duration;

use atoll_detection::guard::Guard;
use atoll_runtime::Runtime;
use atoll_store::{Backend, Store, StoreError};
use atoll_topology::{MemberId, RegionId, Topology};
use tracing::{info, warn};

use crate::config::Config;
use crate::error::Error;
use crate::follow::Followed;
use crate::observe::agents::Agents;
use crate::observe::planes::Planes;
use crate::observe::view;
use crate::places::Places;
use crate::publish::Publisher;
use crate::reconcile::{birth, execution, op};
use crate::records::Records;
use crate::seat::{self, Seat};
use crate::timeline::Timeline;
use crate::{api, automatic, streams};

/// Pause before a store that could not be read at the start is read again.
const STORE_AGAIN: Duration = Duration::from_millis(100);

/// What every part of control can see.
pub(crate) struct Control {
    /// Sockets, clock, tasks.
    pub(crate) runtime: Runtime,
    /// Where intent is kept.
    pub(crate) store: Arc<dyn Store>,
    /// What the world is made of.
    pub(crate) topology: Arc<Topology>,
    /// Which process stands where.
    pub(crate) places: Arc<Places>,
    /// The group records.
    pub(crate) records: Records,
    /// Where tables are made.
    pub(crate) publisher: Publisher,
    /// Whether this replica acts, or another one.
    pub(crate) seat: Seat,
    /// What data planes say.
    pub(crate) planes: Planes,
    /// What agents say.
    pub(crate) agents: Agents,
    /// What proofs are signed with.
    pub(crate) key: atoll_proof::Key,
    /// What automation did, and may do.
    pub(crate) guard: Arc<Followed<Guard>>,
    /// What was ordered, and how far it is.
    pub(crate) executions: Arc<Followed<execution::Stored>>,
    /// When each step of each op was reached.
    pub(crate) timeline: Arc<Timeline>,
    /// Where this replica stands.
    pub(crate) region: RegionId,
    /// Whether verdicts begin executions by themselves.
    pub(crate) automatic: bool,
}

impl Control {
    /// Everything that control is but its servers: also what a test drives data groups with.
    pub(crate) async fn new(
        runtime: Runtime,
        store: Arc<dyn Store>,
        topology: Topology,
        places: Vec<crate::places::Place>,
    ) -> Result<Self, Error> {
        let (topology, places) = (Arc::new(topology), Arc::new(Places::new(places)));
        let fresh_world = format!("w{:x}", runtime.wall_clock().0);
        let publisher = Publisher::open(
            store.clone(),
            topology.clone(),
            places.clone(),
            &fresh_world,
        )
        .await?;
        let records = Records::load(store.clone()).await?;
        let key = crate::signing::key(store.as_ref(), &runtime).await?;
        let guard = Arc::new(Followed::load(store.clone()).await?);
        let executions = Arc::new(Followed::load(store.clone()).await?);
        let timeline = Arc::new(Timeline::load(runtime.clone(), store.clone()).await?);
        Ok(Self {
            runtime,
            store,
            topology,
            places,
            records,
            publisher,
            seat: Seat::alone(),
            planes: Planes::default(),
            agents: Agents::default(),
            key,
            guard,
            executions,
            timeline,
            region: view::outside(),
            automatic: false,
        })
    }

    /// The region that a member stands in.
    pub(crate) fn region_of(&self, member: &MemberId) -> Option<RegionId> {
        let zone = self.topology.groups.values().find_map(|group| {
            group
                .members
                .iter()
                .find(|m| m.id == *member)
                .map(|member| &member.zone)
        })?;
        self.topology
            .zones
            .get(zone)
            .map(|zone| zone.region.clone())
    }

    /// When an op that begins now is past its time.
    pub(crate) fn deadline(&self) -> u64 {
        let limit = u64::try_from(op::OP_DEADLINE.as_millis()).unwrap_or(u64::MAX);
        self.runtime.wall_clock().0.saturating_add(limit)
    }

    /// Starts what carries ops out and keeps the tables what the records say.
    pub(crate) fn start(self: &Arc<Self>) {
        self.records.start(&self.runtime);
        self.timeline.start();
        let guard = self.guard.clone().follow(self.runtime.clone());
        self.runtime.tasks().spawn("following the guard", guard);
        let executions = self.executions.clone().follow(self.runtime.clone());
        self.runtime
            .tasks()
            .spawn("following executions", executions);
        self.runtime
            .tasks()
            .spawn("executions", execution::run_all(self.clone()));
        for group in self.topology.groups.keys() {
            let (control, id) = (self.clone(), group.clone());
            self.runtime
                .tasks()
                .spawn(format!("birth of {group}"), birth::run(control, id));
            let (control, id) = (self.clone(), group.clone());
            self.runtime
                .tasks()
                .spawn(format!("ops of {group}"), op::run(control, id));
        }
        let (control, shutdown) = (self.clone(), self.runtime.shutdown());
        self.runtime.tasks().spawn("publication", async move {
            control.publisher.follow(shutdown).await;
        });
    }
}

/// Runs a replica of control until the runtime is told to end; `ready` is called with its
/// addresses once it serves.
pub async fn serve(
    config: Config,
    runtime: Runtime,
    ready: impl FnOnce(&str),
) -> Result<(), Error> {
    tokio::fs::create_dir_all(&config.data)
        .await
        .map_err(|source| Error::File {
            path: config.data.clone(),
            source,
        })?;
    let backend = config.backend();
    let store = atoll_store::open(&backend, &runtime).await?;
    let seat = match backend {
        Backend::Redb { .. } => Seat::alone(),
        Backend::Etcd { .. } => Seat::shared(config.process.clone()),
    };
    run(config, store, seat, runtime, ready).await
}

/// The same on a store that somebody else has opened, and that other replicas use too.
pub async fn serve_on(
    config: Config,
    store: Arc<dyn Store>,
    runtime: Runtime,
    ready: impl FnOnce(&str),
) -> Result<(), Error> {
    let seat = Seat::shared(config.process.clone());
    run(config, store, seat, runtime, ready).await
}

async fn run(
    config: Config,
    store: Arc<dyn Store>,
    seat: Seat,
    runtime: Runtime,
    ready: impl FnOnce(&str),
) -> Result<(), Error> {
    let path = config.topology.clone();
    let read = runtime
        .tasks()
        .spawn_blocking("topology", move || std::fs::read_to_string(path));
    let text = read
        .await
        .unwrap_or_else(|end| Err(std::io::Error::other(end)))
        .map_err(|source| Error::File {
            path: config.topology.clone(),
            source,
        })?;
    let Some(control) = begin(&config, &text, &store, &runtime).await? else {
        return Ok(());
    };
    let here = control
        .places
        .get(&config.process)
        .and_then(|place| place.region.clone());
    let control = Arc::new(Control {
        automatic: config.automatic_failover,
        region: here.unwrap_or_else(view::outside),
        seat,
        ..control
    });
    control.start();
    automatic::start(&control, &config);
    let streams = streams::listen(control.clone(), config.streams).await?;
    let api = api::listen(control.clone(), config.api).await?;
    let admin = crate::admin::listen(control.clone(), config.admin).await?;
    ready(&format!(
        "api=http://{api} streams={streams} admin=http://{admin}"
    ));
    info!(process = %config.process, %api, %streams, "control serves");
    if !control.seat.acts() {
        seat::run(control, config.process).await;
    }
    runtime.shutdown().requested().await;
    Ok(())
}

/// Reads what the store has, as soon as it can be read; `None` where the end came before.
async fn begin(
    config: &Config,
    text: &str,
    store: &Arc<dyn Store>,
    runtime: &Runtime,
) -> Result<Option<Control>, Error> {
    let topology = Topology::parse(text).map_err(|violations| Error::Topology {
        path: config.topology.clone(),
        violations: violations.to_string(),
    })?;
    let mut said = false;
    let shutdown = runtime.shutdown();
    loop {
        let begun = async {
            api::remember(store.as_ref(), text, &config.topology).await?;
            let (topology, places) = (topology.clone(), config.places.clone());
            Control::new(runtime.clone(), store.clone(), topology, places).await
        };
        let error = match begun.await {
            Ok(control) => return Ok(Some(control)),
            Err(Error::Store(error)) if passes(&error) => error,
            Err(error) => return Err(error),
        };
        if !std::mem::replace(&mut said, true) {
            warn!(%error, "the store cannot be read yet; waiting for it");
        }
        tokio::select! {
            () = tokio::time::sleep(STORE_AGAIN) => {}
            () = shutdown.requested() => return Ok(None),
        }
    }
}

/// Whether the store may do later what it does not do now.
fn passes(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::Unavailable { .. } | StoreError::OutcomeUnknown { .. }
    )
}
