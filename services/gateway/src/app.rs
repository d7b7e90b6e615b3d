//! Wiring: tables in, reports out, workers with their listeners, and the order of the end.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use atoll_proxy::table::{FollowerConfig, Observed, TableFollower};
use atoll_proxy::{Hold, Pool, Served, Worker};
use atoll_routing::{Phase, Table, TableVersion};
use atoll_runtime::{Runtime, ScopedTask};
use atoll_streams::{Role, ShardLoad};
use atoll_telemetry::{Admin, Metrics, admin};
use atoll_topology::ShardId;
use http::HeaderValue;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::accept::{Edge, Flow, PeerPort, Shared};
use crate::canary;
use crate::config::Config;
use crate::error::Error;
use crate::gate::Gates;
use crate::health::Health;
use crate::metrics::{Cells, GatewayMetrics};
use crate::peer::PeerKey;
use crate::record::{self, Recorder};

/// Unused upstream connections are looked through so often.
const SWEEP_EVERY: Duration = Duration::from_secs(5);
/// Latencies are reported over so long.
const LATENCY_WINDOW: Duration = Duration::from_secs(1);
/// Held requests are refused so long before the drain's limit, so that they still get an answer.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// Runs a gateway until shutdown; `ready` is told the addresses once it serves.
pub async fn serve(
    config: Config,
    runtime: Runtime,
    ready: impl FnOnce(&str),
) -> Result<(), Error> {
    config.check()?;
    let labels = [
        ("process", config.process.as_str()),
        ("region", config.region.as_str()),
        ("cell", config.cell.as_str()),
    ];
    let metrics = Metrics::new(&labels);
    let follower = TableFollower::start(
        &runtime,
        FollowerConfig {
            process: config.process.clone(),
            role: Role::Gateway,
            region: config.region.clone(),
            cell: Some(config.cell.clone()),
            sources: config.meshes.clone(),
            file: config.table_file.clone(),
        },
    );
    follower.measure(&metrics)?;
    let gateway = Gateway::new(config.clone(), &runtime, &metrics)?;

    let shared = Arc::clone(&gateway.shared);
    follower.observe(move || shared.observe());
    let (shared, reports) = (Arc::clone(&gateway.shared), follower.clone());
    let _drained = runtime
        .tasks()
        .spawn("report-drained", async move {
            loop {
                shared.gates.drained.notified().await;
                reports.report_now();
            }
        })
        .scoped();

    let (asked, shown, age) = (
        Arc::clone(&gateway.shared),
        Arc::clone(&gateway.shared),
        follower.clone(),
    );
    let endpoint = Admin::new(metrics)
        .ready(
            move || match (asked.gates.table(), asked.runtime.shutdown().is_requested()) {
                (_, true) => Err("draining".to_owned()),
                (None, _) => Err("no table yet".to_owned()),
                (Some(_), false) => Ok(()),
            },
        )
        .debug("table", move || shown.show(age.age()));
    let admin = admin::serve(&runtime, config.admin, endpoint)
        .await
        .map_err(|error| Error::Listen(config.admin, error))?;

    let worker = follower.worker();
    let tables = follower.tables();
    let running = gateway.start(tables, move |version| worker.in_use(version));
    let running = tokio::select! {
        running = running => running?,
        // No table came, so nobody was served.
        () = runtime.shutdown().requested_owned() => return Ok(()),
    };
    ready(&format!(
        "edge={} peer={} admin={admin}",
        running.edge, running.peer
    ));
    running.ended().await
}

/// A gateway before it listens.
pub struct Gateway {
    config: Config,
    runtime: Runtime,
    shared: Arc<Shared>,
}

/// A gateway at work.
pub struct Running {
    /// Where clients come in.
    pub edge: SocketAddr,
    /// Where other gateways come in.
    pub peer: SocketAddr,
    shared: Arc<Shared>,
    workers: Vec<Worker<Served>>,
    log: ScopedTask<()>,
    _tasks: Vec<ScopedTask<()>>,
}

impl Gateway {
    /// Checks the configuration and reads the key.
    pub fn new(config: Config, runtime: &Runtime, metrics: &Metrics) -> Result<Self, Error> {
        config.check()?;
        let key = PeerKey::read(&config.peer_key_file)?;
        let from = HeaderValue::try_from(config.process.as_str())
            .map_err(|error| Error::Config(error.to_string()))?;
        let metrics = Arc::new(GatewayMetrics::register(metrics)?);
        let gates = Arc::new(Gates::new());
        let hold = Arc::new(Hold::new(config.hold_limits()));
        let health = Health::new(
            runtime.clone(),
            config.cell.clone(),
            config.health.clone(),
            Arc::clone(&gates),
            Arc::clone(&hold),
            Arc::clone(&metrics),
        );
        let shared = Arc::new(Shared {
            runtime: runtime.clone(),
            cell: config.cell.clone(),
            from,
            key,
            limits: config.limits,
            gates,
            hold,
            hold_time: config.hold_limits().time,
            catching_up: Semaphore::new(config.hold.requests),
            health,
            cells: Cells::default(),
            metrics,
        });
        Ok(Self {
            config,
            runtime: runtime.clone(),
            shared,
        })
    }

    /// What this gateway has to report.
    pub fn observe(&self) -> Observed {
        self.shared.observe()
    }

    /// Waits for the first table, then listens. `in_use` is told each table after it is in use by
    /// every worker.
    pub async fn start(
        self,
        mut tables: watch::Receiver<Option<Arc<Table>>>,
        in_use: impl Fn(&TableVersion) + Send + 'static,
    ) -> Result<Running, Error> {
        let gone = |_| Error::Tables("the follower has ended".to_owned());
        tables.wait_for(Option::is_some).await.map_err(gone)?;
        tables.mark_changed();
        let tasks = self.runtime.tasks();
        let mut owned = Vec::new();
        let (shared, used) = (Arc::clone(&self.shared), oneshot::channel());
        let follow = follow(shared, tables, in_use, used.0);
        owned.push(tasks.spawn("gateway-table", follow).scoped());
        used.1
            .await
            .map_err(|_| Error::Tables("the table was not taken into use".to_owned()))?;

        let (hold, gates) = (
            Arc::clone(&self.shared.hold),
            Arc::clone(&self.shared.gates),
        );
        let release = async move { hold.run(|key| gates.is_open(key)).await };
        owned.push(tasks.spawn("gateway-gate", release).scoped());
        let (hold, shutdown) = (Arc::clone(&self.shared.hold), self.runtime.shutdown());
        let patience = Duration::from_secs(self.config.limits.drain_seconds);
        let end = async move {
            shutdown.requested().await;
            tokio::time::sleep(patience.saturating_sub(LAST_ANSWERS)).await;
            hold.end();
        };
        owned.push(tasks.spawn("gateway-hold-end", end).scoped());

        let shared = Arc::clone(&self.shared);
        let windows = async move {
            loop {
                tokio::time::sleep(LATENCY_WINDOW).await;
                shared.cells.next_window();
            }
        };
        owned.push(tasks.spawn("gateway-latency-window", windows).scoped());

        let count = self.config.workers.unwrap_or_else(atoll_proxy::cores);
        let (mut edge, mut peer) = (self.config.edge, self.config.peer);
        let (mut workers, mut rings) = (Vec::new(), Vec::new());
        for index in 0..count {
            let (ring, lines) = mpsc::channel(self.config.limits.access_log_lines);
            let (bound, addresses) = oneshot::channel();
            let (shared, config) = (Arc::clone(&self.shared), self.config.clone());
            let body = move || work(shared, config, index, [edge, peer], ring, bound);
            let worker = atoll_proxy::start(&self.runtime, "gateway", index, body)?;
            let died = |_| Error::Worker(atoll_proxy::WorkerError::Died(index));
            // The first one's port is everybody's, also where the system chose it.
            [edge, peer] = addresses.await.map_err(died)??;
            workers.push(worker);
            rings.push(lines);
        }
        let log = tasks
            .spawn("gateway-access-log", record::write(rings))
            .scoped();
        Ok(Running {
            edge,
            peer,
            shared: self.shared,
            workers,
            log,
            _tasks: owned,
        })
    }
}

impl Running {
    /// What this gateway has to report.
    pub fn observe(&self) -> Observed {
        self.shared.observe()
    }

    /// Waits for the end: shutdown, then the drain.
    pub async fn ended(mut self) -> Result<(), Error> {
        let mut cut = 0;
        for worker in self.workers {
            cut += worker.join().await?.cut;
        }
        // The workers' ends of the rings are gone, so this ends with the last line.
        if self.log.join().await.is_err() {
            tracing::error!("the access log ended early");
        }
        match cut {
            0 => tracing::info!("gateway drained"),
            cut => tracing::warn!(
                cut,
                "gateway ended; connections were cut by the drain's limit"
            ),
        }
        Ok(())
    }
}

async fn follow(
    shared: Arc<Shared>,
    mut tables: watch::Receiver<Option<Arc<Table>>>,
    in_use: impl Fn(&TableVersion),
    first: oneshot::Sender<()>,
) {
    let mut first = Some(first);
    while tables.changed().await.is_ok() {
        let Some(table) = tables.borrow_and_update().clone() else {
            continue;
        };
        shared.gates.use_table(&table);
        in_use(&table.version);
        shared.hold.poke();
        let number = i64::try_from(table.version.number).unwrap_or(i64::MAX);
        shared.metrics.table_number.set(number);
        if let Some(first) = first.take() {
            // Nobody waits any more when the gateway is being dropped.
            let _gone = first.send(());
        }
    }
    // The source has ended; the last table serves on.
    std::future::pending::<()>().await;
}

type Bound = Result<[SocketAddr; 2], Error>;

/// One worker, from its listeners to its drain.
async fn work(
    shared: Arc<Shared>,
    config: Config,
    index: usize,
    [edge, peer]: [SocketAddr; 2],
    ring: mpsc::Sender<record::Line>,
    bound: oneshot::Sender<Bound>,
) -> Served {
    let runtime = shared.runtime.clone();
    let listen = async |at| {
        runtime
            .listen_shared(at)
            .await
            .map_err(|error| Error::Listen(at, error))
    };
    let listeners = async { Ok((listen(edge).await?, listen(peer).await?)) }.await;
    let (edge, peer) = match listeners {
        Ok(listeners) => listeners,
        Err(error) => {
            let _gone = bound.send(Err(error));
            return Served::default();
        }
    };
    let _gone = bound.send(Ok([edge.local_addr(), peer.local_addr()]));

    let recorder = Recorder::new(ring, Arc::clone(&shared.metrics));
    let pool = Pool::new(runtime.clone(), config.pool_limits());
    let flow = Rc::new(Flow::new(shared, pool, recorder, index));
    if let (0, Some(canary)) = (index, config.canary.clone()) {
        tokio::task::spawn_local(canary::run(Rc::clone(&flow), canary));
    }
    let swept = Rc::clone(&flow);
    let sweep = tokio::task::spawn_local(async move {
        loop {
            tokio::time::sleep(SWEEP_EVERY).await;
            swept.pool.sweep();
        }
    });
    let (limits, shutdown) = (config.server_limits(), runtime.shutdown());
    let edge = atoll_proxy::serve(
        edge,
        Rc::new(Edge(Rc::clone(&flow))),
        limits,
        shutdown.clone(),
    );
    let peer = atoll_proxy::serve(peer, Rc::new(PeerPort(flow)), limits, shutdown);
    let (edge, peer) = futures::join!(edge, peer);
    sweep.abort();
    Served {
        cut: edge.cut + peer.cut,
    }
}

impl Shared {
    fn observe(&self) -> Observed {
        self.metrics
            .held
            .set(i64::try_from(self.hold.waiting()).unwrap_or(i64::MAX));
        Observed {
            loads: self.loads(),
            openings: Vec::new(),
            cells: self.cells.report(),
            draining: self.runtime.shutdown().is_requested(),
            requests: Some(self.metrics.totals.report()),
        }
    }

    /// One load for each run of switching shards with the same coming owner.
    fn loads(&self) -> Vec<ShardLoad> {
        let Some(table) = self.gates.table() else {
            return Vec::new();
        };
        let queues = self.hold.queues();
        let held = |shard: ShardId| {
            let queue = queues.iter().find(|(key, _)| *key == u64::from(shard.0));
            queue.map_or(0, |(_, count)| *count as u64)
        };
        let mut loads: Vec<ShardLoad> = Vec::new();
        let mut before = None;
        for (shard, row) in (0..).map(ShardId).zip(&table.shards) {
            if let Phase::Switching { .. } = row.phase {
                let in_flight = u64::from(self.gates.in_flight(shard));
                match loads.last_mut() {
                    Some(load) if before == Some(row) => {
                        load.last = shard;
                        load.in_flight += in_flight;
                        load.held += held(shard);
                    }
                    _ => loads.push(ShardLoad {
                        first: shard,
                        last: shard,
                        epoch: row.epoch,
                        in_flight,
                        held: held(shard),
                    }),
                }
            }
            before = Some(row);
        }
        loads
    }

    /// The table in use, for people.
    fn show(&self, age: Option<Duration>) -> String {
        let Some(table) = self.gates.table() else {
            return "{}".to_owned();
        };
        let shards: Vec<_> = (0..)
            .zip(&table.shards)
            .map(|(shard, row)| {
                serde_json::json!({
                    "shard": shard, "cell": row.cell, "epoch": row.epoch, "group": row.group,
                    "phase": row.phase, "closed": self.gates.closed(ShardId(shard)),
                    "in_flight": self.gates.in_flight(ShardId(shard)),
                })
            })
            .collect();
        serde_json::json!({
            "version": table.version.to_string(),
            "age_ms": age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
            "held": self.hold.waiting(),
            "cells": table.cells,
            "shards": shards,
        })
        .to_string()
    }
}
