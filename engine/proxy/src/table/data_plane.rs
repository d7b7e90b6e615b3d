//! A data plane's end: the decoded table for its worker threads, and its reports.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use atoll_routing::{Table, TableVersion};
use atoll_runtime::Runtime;
use atoll_streams::proto::table::table_source_client::TableSourceClient;
use atoll_streams::proto::table::{DataPlaneReport, TableUpdate};
use atoll_streams::{
    CellHealth, DecodeError, EncodedTable, MESSAGE_BYTES_MAX, Opening, Report, RequestCounts, Role,
    ShardLoad, decode,
};
use atoll_telemetry::{Metrics, MetricsError};
use atoll_topology::{CellId, ProcessId, RegionId};
use futures::stream;
use tokio::sync::watch;
use tonic::transport::Channel;
use tonic::{Status, Streaming};
use tracing::info;

use super::follow::{FollowConfig, Followed, Held, Uplink, follow};
use super::reports::Pace;

/// How often the gauges are set: a lost source must show as a growing age.
const MEASURE_INTERVAL: Duration = Duration::from_secs(1);

/// Who follows what.
#[derive(Debug, Clone)]
pub struct FollowerConfig {
    /// This process.
    pub process: ProcessId,
    /// What it is.
    pub role: Role,
    /// Where it is.
    pub region: RegionId,
    /// The cell that it serves.
    pub cell: Option<CellId>,
    /// Meshes, tried in turn.
    pub sources: Vec<SocketAddr>,
    /// The last good table.
    pub file: PathBuf,
}

/// What a data plane says beside what it holds and uses; asked for at each report.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    /// One for each run of shards that is switching.
    pub loads: Vec<ShardLoad>,
    /// What a router has read on open primaries.
    pub openings: Vec<Opening>,
    /// How cells look from here.
    pub cells: Vec<CellHealth>,
    /// Whether the process is about to end.
    pub draining: bool,
    /// Of a gateway: how its clients' requests went.
    pub requests: Option<RequestCounts>,
}

type Observe = dyn Fn() -> Observed + Send + Sync;

/// Follows meshes for a data plane.
#[derive(Debug)]
pub struct TableFollower;

impl TableFollower {
    /// Reads the last good table, then follows the sources for as long as the handle lives, also
    /// through a drain: a draining process is still one that others wait for.
    pub fn start(runtime: &Runtime, config: FollowerConfig) -> TableHandle {
        let from = FollowConfig {
            sources: config.sources.clone(),
            file: config.file.clone(),
        };
        let shared = Arc::new(Shared {
            runtime: runtime.clone(),
            config,
            tables: watch::Sender::new(None),
            news: watch::Sender::new(0),
            workers: Mutex::default(),
            next_worker: AtomicU64::new(0),
            observe: ArcSwapOption::empty(),
        });
        let (uplink, publish) = (DataPlane(shared.clone()), shared.clone());
        let accept = move |encoded: &Arc<EncodedTable>| -> Result<(), DecodeError> {
            let table = decode(encoded)?;
            info!(version = %table.version, "table received");
            publish.tables.send_replace(Some(Arc::new(table)));
            Ok(())
        };
        let followed = follow(runtime, from, uplink, accept);
        TableHandle(Arc::new(Inner { shared, followed }))
    }
}

/// What a data plane holds of its follower; cheap to clone. The follower ends with the last one.
#[derive(Clone)]
pub struct TableHandle(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    followed: Followed,
}

struct Shared {
    runtime: Runtime,
    config: FollowerConfig,
    tables: watch::Sender<Option<Arc<Table>>>,
    /// Bumped when a report should go at once.
    news: watch::Sender<u64>,
    /// What each worker thread uses.
    workers: Mutex<BTreeMap<u64, Option<TableVersion>>>,
    next_worker: AtomicU64,
    observe: ArcSwapOption<Box<Observe>>,
}

impl TableHandle {
    /// The newest table, and each newer one; none until there is one.
    pub fn tables(&self) -> watch::Receiver<Option<Arc<Table>>> {
        self.0.shared.tables.subscribe()
    }

    /// The newest table.
    pub fn table(&self) -> Option<Arc<Table>> {
        self.0.shared.tables.borrow().clone()
    }

    /// Waits for the first table.
    pub async fn first(&self) -> Arc<Table> {
        let mut tables = self.tables();
        loop {
            if let Some(table) = tables.borrow_and_update().clone() {
                return table;
            }
            if tables.changed().await.is_err() {
                // The sender lives in `self`.
                std::future::pending::<()>().await;
            }
        }
    }

    /// One more worker thread, which must say what it uses before anything counts as in use.
    pub fn worker(&self) -> Worker {
        let id = self.0.shared.next_worker.fetch_add(1, Ordering::Relaxed);
        self.0.shared.change_workers(|workers| {
            workers.insert(id, None);
        });
        Worker {
            id,
            shared: self.0.shared.clone(),
        }
    }

    /// What every worker thread uses.
    pub fn in_use(&self) -> Option<TableVersion> {
        self.0.shared.in_use()
    }

    /// Asked at each report for what else there is to say. Must be quick.
    pub fn observe(&self, observe: impl Fn() -> Observed + Send + Sync + 'static) {
        self.0
            .shared
            .observe
            .store(Some(Arc::new(Box::new(observe))));
        self.report_now();
    }

    /// Reports at once: call it when something that a switch waits for has changed.
    pub fn report_now(&self) {
        self.0.shared.report_now();
    }

    /// Since when control itself has not confirmed that the table is its newest; none before any
    /// table.
    pub fn age(&self) -> Option<Duration> {
        self.0.followed.age.now()
    }

    /// Shows the table's age and number as gauges, until shutdown is requested.
    pub fn measure(&self, metrics: &Metrics) -> Result<(), MetricsError> {
        let age = metrics.gauge(
            "table_age_ms",
            "Time since control confirmed that the table in hand is its newest, in milliseconds.",
        )?;
        let version = metrics.gauge("table_version", "Number of the newest table received.")?;
        let (inner, shutdown) = (Arc::downgrade(&self.0), self.0.shared.runtime.shutdown());
        let measure = async move {
            while let Some(inner) = inner.upgrade() {
                age.set(i64::try_from(inner.followed.age.now_ms()).unwrap_or(i64::MAX));
                let number = inner
                    .shared
                    .tables
                    .borrow()
                    .as_ref()
                    .map_or(0, |t| t.version.number);
                version.set(i64::try_from(number).unwrap_or(i64::MAX));
                drop(inner);
                tokio::select! {
                    () = tokio::time::sleep(MEASURE_INTERVAL) => {}
                    () = shutdown.requested() => return,
                }
            }
        };
        self.0
            .shared
            .runtime
            .tasks()
            .spawn("table-measure", measure);
        Ok(())
    }
}

/// One worker thread's word on what it uses; dropped when the thread ends.
pub struct Worker {
    id: u64,
    shared: Arc<Shared>,
}

impl Worker {
    /// Call it after the swap: from now on this thread uses `version` for each new request.
    pub fn in_use(&self, version: &TableVersion) {
        let id = self.id;
        self.shared.change_workers(|workers| {
            workers.insert(id, Some(version.clone()));
        });
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let id = self.id;
        self.shared.change_workers(|workers| {
            workers.remove(&id);
        });
    }
}

impl Shared {
    fn workers(&self) -> MutexGuard<'_, BTreeMap<u64, Option<TableVersion>>> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn in_use(&self) -> Option<TableVersion> {
        slowest(&self.workers())
    }

    /// Reports at once if the change made a difference to what every worker uses.
    fn change_workers(&self, change: impl FnOnce(&mut BTreeMap<u64, Option<TableVersion>>)) {
        let changed = {
            let mut workers = self.workers();
            let before = slowest(&workers);
            change(&mut workers);
            before != slowest(&workers)
        };
        if changed {
            self.report_now();
        }
    }

    fn report_now(&self) {
        self.news
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    fn report(&self, held: Option<TableVersion>) -> DataPlaneReport {
        // Before the counts: they must belong to this version or a newer one, else "none in
        // flight" could be said of a table under which requests are still counted.
        let in_use = self.in_use();
        let observed = self
            .observe
            .load_full()
            .map(|observe| observe())
            .unwrap_or_default();
        let report = Report {
            process: self.config.process.clone(),
            role: self.config.role,
            region: self.config.region.clone(),
            cell: self.config.cell.clone(),
            held,
            in_use,
            loads: observed.loads,
            openings: observed.openings,
            cells: observed.cells,
            requests: observed.requests,
            unix_ms: self.runtime.wall_clock().0,
            draining: observed.draining,
        };
        DataPlaneReport::from(&report)
    }
}

/// The oldest version that a worker uses; none while one uses none or another world's.
fn slowest(workers: &BTreeMap<u64, Option<TableVersion>>) -> Option<TableVersion> {
    let mut slowest: Option<&TableVersion> = None;
    for version in workers.values() {
        let version = version.as_ref()?;
        slowest = match slowest {
            None => Some(version),
            Some(other) if other.world != version.world => return None,
            Some(other) if version.supersedes(other) => Some(other),
            Some(_) => Some(version),
        };
    }
    slowest.cloned()
}

struct DataPlane(Arc<Shared>);

impl Uplink for DataPlane {
    async fn open(
        &mut self,
        channel: Channel,
        held: Held,
    ) -> Result<Streaming<TableUpdate>, Status> {
        let pace = Pace::new(self.0.news.subscribe());
        let start = (self.0.clone(), pace, held);
        let reports = stream::unfold(start, |(shared, mut pace, mut held)| async move {
            if !pace.due().await {
                return None;
            }
            let report = shared.report(held.named());
            Some((report, (shared, pace, held)))
        });
        let mut client =
            TableSourceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        client
            .follow(reports)
            .await
            .map(tonic::Response::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(world: &str, number: u64) -> Option<TableVersion> {
        Some(TableVersion {
            world: world.into(),
            number,
        })
    }

    #[test]
    fn a_version_is_in_use_only_when_every_worker_uses_it() {
        let of = |versions: &[Option<TableVersion>]| {
            slowest(&(0..).zip(versions.iter().cloned()).collect())
        };
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[version("w", 2), None]), None);
        assert_eq!(
            of(&[version("w", 2), version("w", 1), version("w", 3)]),
            version("w", 1)
        );
        assert_eq!(of(&[version("w", 2), version("x", 2)]), None);
    }
}
