//! A data plane's follower against sources on real sockets: one that serves as it should, and one
//! that says whatever the test wants.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use atoll_proxy::table::{
    Collect, FollowerConfig, Observed, Publisher, StreamId, TableFollower, TableHandle, file,
    serve_tables,
};
use atoll_routing::{CellRow, GroupRow, Phase, ShardRow, Table, TableVersion};
use atoll_runtime::{RealOptions, Runtime};
use atoll_streams::proto::table::table_source_server::{TableSource, TableSourceServer};
use atoll_streams::proto::table::{
    Beat, DataPlaneReport, MeshReport as WireMeshReport, TableUpdate,
};
use atoll_streams::{EncodedTable, MeshReport, Report, Role, ShardLoad, encode};
use atoll_topology::{CellId, CellKind, Epoch, GroupId, ProcessId, RegionId, ShardId, ShardScheme};
use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tonic::{Request, Response, Status, Streaming};

/// Longer than anything here takes, but for a hang.
const PATIENCE: Duration = Duration::from_secs(20);

fn table(world: &str, number: u64) -> Table {
    let cell = CellId::parse("hz-1").unwrap();
    let group = GroupId::parse("g1").unwrap();
    let row = ShardRow {
        cell: cell.clone(),
        epoch: Epoch::new(number),
        phase: Phase::Active,
        group: group.clone(),
    };
    let cells = CellRow {
        kind: CellKind::Sharded,
        region: RegionId::parse("hz").unwrap(),
        gateways: vec![],
        instances: vec![],
        weights: BTreeMap::new(),
    };
    Table {
        version: TableVersion {
            world: world.into(),
            number,
        },
        scheme: ShardScheme::Hash,
        shards: vec![row; 4],
        cells: BTreeMap::from([(cell, cells)]),
        groups: BTreeMap::from([(
            group,
            GroupRow {
                open: None,
                coming: None,
                members: BTreeMap::new(),
            },
        )]),
        round_trip_ms: BTreeMap::new(),
        routes: vec![],
    }
}

fn encoded(number: u64) -> Arc<EncodedTable> {
    Arc::new(encode(&table("w", number)))
}

fn follower(runtime: &Runtime, sources: Vec<SocketAddr>, file: PathBuf) -> TableHandle {
    let config = FollowerConfig {
        process: ProcessId::parse("hz-1-gateway").unwrap(),
        role: Role::Gateway,
        region: RegionId::parse("hz").unwrap(),
        cell: None,
        sources,
        file,
    };
    TableFollower::start(runtime, config)
}

async fn until_holds(handle: &TableHandle, number: u64) {
    let mut tables = handle.tables();
    let held =
        |table: &Option<Arc<Table>>| table.as_ref().is_some_and(|t| t.version.number == number);
    timeout(PATIENCE, tables.wait_for(held))
        .await
        .expect("the table never came")
        .unwrap();
}

/// All reports that came, the newest last.
#[derive(Default)]
struct Collected {
    reports: Mutex<Vec<Report>>,
    changed: watch::Sender<usize>,
}

impl Collect for Collected {
    fn data_plane(&self, _: StreamId, report: Report) {
        self.reports.lock().unwrap().push(report);
        self.changed.send_modify(|n| *n += 1);
    }
    fn mesh(&self, _: StreamId, _: MeshReport) {}
    fn ended(&self, _: StreamId) {}
}

impl Collected {
    async fn until(&self, holds: impl Fn(&Report) -> bool) -> Report {
        let mut changed = self.changed.subscribe();
        let wait = async {
            loop {
                if let Some(report) = self.reports.lock().unwrap().iter().find(|r| holds(r)) {
                    return report.clone();
                }
                changed.changed().await.unwrap();
            }
        };
        timeout(PATIENCE, wait)
            .await
            .expect("the report never came")
    }
}

/// A source as mesh and control are one.
struct Good {
    runtime: Runtime,
    publisher: Publisher,
    collected: Arc<Collected>,
    at: SocketAddr,
}

impl Good {
    async fn start() -> Self {
        let runtime = Runtime::real(RealOptions::default());
        let listener = runtime.listen(([127, 0, 0, 1], 0).into()).await.unwrap();
        let at = listener.local_addr();
        let (publisher, collected) = (Publisher::default(), Arc::new(Collected::default()));
        let (serving, served, collect) = (runtime.clone(), publisher.clone(), collected.clone());
        runtime.tasks().spawn("source", async move {
            serve_tables(&serving, listener, served, collect, Arc::new(|| 0))
                .await
                .unwrap();
        });
        Self {
            runtime,
            publisher,
            collected,
            at,
        }
    }
}

/// A source that says what the test sends, and shows what each stream's first report held.
struct Scripted {
    opened: mpsc::Sender<(Option<u64>, mpsc::Sender<TableUpdate>)>,
}

#[tonic::async_trait]
impl TableSource for Scripted {
    type FollowStream = BoxStream<'static, Result<TableUpdate, Status>>;
    type FollowAsMeshStream = BoxStream<'static, Result<TableUpdate, Status>>;

    async fn follow(
        &self,
        request: Request<Streaming<DataPlaneReport>>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let mut reports = request.into_inner();
        let (send, receive) = mpsc::channel(16);
        let first = reports.message().await?.unwrap();
        let held = first.held.map(|version| version.number);
        self.opened.send((held, send)).await.unwrap();
        let updates = stream::unfold((receive, reports), |(mut receive, reports)| async move {
            Some((Ok(receive.recv().await?), (receive, reports)))
        });
        Ok(Response::new(updates.boxed()))
    }

    async fn follow_as_mesh(
        &self,
        _: Request<Streaming<WireMeshReport>>,
    ) -> Result<Response<Self::FollowAsMeshStream>, Status> {
        Err(Status::unimplemented("no mesh here"))
    }
}

type Opened = mpsc::Receiver<(Option<u64>, mpsc::Sender<TableUpdate>)>;

async fn scripted(runtime: &Runtime) -> (SocketAddr, Opened) {
    let listener = runtime.listen(([127, 0, 0, 1], 0).into()).await.unwrap();
    let at = listener.local_addr();
    let (opened, streams) = mpsc::channel(16);
    runtime.tasks().spawn("scripted source", async move {
        tonic::transport::Server::builder()
            .add_service(TableSourceServer::new(Scripted { opened }))
            .serve_with_incoming(listener.incoming())
            .await
            .unwrap();
    });
    (at, streams)
}

async fn next(opened: &mut Opened) -> (Option<u64>, mpsc::Sender<TableUpdate>) {
    timeout(PATIENCE, opened.recv())
        .await
        .expect("no stream was opened")
        .unwrap()
}

fn path(folder: &tempfile::TempDir) -> PathBuf {
    folder.path().join("table")
}

/// Waits until the file holds that table; it is written off the path, so there is nothing to await.
async fn until_on_disk(path: &Path, number: u64) {
    let wait = async {
        loop {
            let stored = file::read(path).unwrap();
            if stored.is_some_and(|stored| stored.table.version().number == number) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, wait)
        .await
        .expect("the file was never written");
}

#[tokio::test]
async fn what_is_published_arrives_and_what_every_worker_uses_is_reported() {
    let source = Good::start().await;
    source.publisher.publish(encoded(1)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let runtime = Runtime::real(RealOptions::default());
    let handle = follower(&runtime, vec![source.at], path(&folder));
    let workers = [handle.worker(), handle.worker()];
    until_holds(&handle, 1).await;
    assert_eq!(*handle.first().await, table("w", 1));

    for number in 2..40 {
        source.publisher.publish(encoded(number)).unwrap();
    }
    until_holds(&handle, 39).await;
    assert_eq!(*handle.first().await, table("w", 39));

    let version = table("w", 39).version;
    workers[0].in_use(&version);
    assert_eq!(handle.in_use(), None, "one worker is not all of them");
    workers[1].in_use(&version);
    let report = source
        .collected
        .until(|report| report.in_use.is_some())
        .await;
    assert_eq!(
        (report.in_use, report.held),
        (Some(version.clone()), Some(version))
    );
    until_on_disk(&path(&folder), 39).await;
    assert!(handle.age().unwrap() < Duration::from_secs(5));
}

#[tokio::test]
async fn what_a_switch_waits_for_is_reported_at_once() {
    let source = Good::start().await;
    let folder = tempfile::tempdir().unwrap();
    let runtime = Runtime::real(RealOptions::default());
    let handle = follower(&runtime, vec![source.at], path(&folder));
    let in_flight = Arc::new(Mutex::new(3));
    let asked = in_flight.clone();
    handle.observe(move || Observed {
        loads: vec![ShardLoad {
            first: ShardId(0),
            last: ShardId(3),
            epoch: Epoch::new(2),
            in_flight: *asked.lock().unwrap(),
            held: 0,
        }],
        ..Observed::default()
    });
    let loaded = |n| move |report: &Report| report.loads.first().is_some_and(|l| l.in_flight == n);
    source.collected.until(loaded(3)).await;
    *in_flight.lock().unwrap() = 0;
    handle.report_now();
    source.collected.until(loaded(0)).await;
}

#[tokio::test]
async fn duplicates_and_older_tables_change_nothing_and_a_gap_asks_for_a_snapshot() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = Runtime::real(RealOptions::default());
    let (at, mut opened) = scripted(&runtime).await;
    let handle = follower(&runtime, vec![at], path(&folder));
    let tables: Vec<_> = (0..=6).map(encoded).collect();

    let (held, say) = next(&mut opened).await;
    assert_eq!(held, None);
    say.send(tables[2].to_snapshot().into()).await.unwrap();
    say.send(tables[2].to_snapshot().into()).await.unwrap();
    say.send(tables[1].to_snapshot().into()).await.unwrap();
    say.send(tables[2].diff(&tables[1]).into()).await.unwrap();
    say.send(tables[3].diff(&tables[2]).into()).await.unwrap();
    say.send(tables[3].diff(&tables[2]).into()).await.unwrap();
    until_holds(&handle, 3).await;
    // A delta was lost on the way: 5 → 6 does not apply to 3.
    say.send(tables[6].diff(&tables[5]).into()).await.unwrap();

    let (held, say) = next(&mut opened).await;
    assert_eq!(held, None, "what is held is hidden, to get a snapshot");
    assert_eq!(
        handle.first().await.version.number,
        3,
        "the old table serves on"
    );
    say.send(tables[6].to_snapshot().into()).await.unwrap();
    until_holds(&handle, 6).await;

    drop(say);
    let (held, say) = next(&mut opened).await;
    assert_eq!(held, Some(6), "after a plain loss a delta will do");
    // A source whose table cannot be read, though its hash is right.
    let broken = EncodedTable::new(table("w", 7).version, BTreeMap::new());
    say.send(broken.to_snapshot().into()).await.unwrap();
    let (held, say) = next(&mut opened).await;
    assert_eq!(held, Some(6));
    assert_eq!(*handle.first().await, table("w", 6));
    // A beat that names a table which never came is a gap, too.
    say.send(Beat::of(Some(&*encoded(9)), 0, 0).into())
        .await
        .unwrap();
    let (held, _say) = next(&mut opened).await;
    assert_eq!(held, None);
}

#[tokio::test]
async fn a_silent_source_is_left_for_another_and_a_dead_one_is_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = Runtime::real(RealOptions::default());
    let (silent, mut opened) = scripted(&runtime).await;
    let good = Good::start().await;
    good.publisher.publish(encoded(5)).unwrap();
    let dead = {
        let listener = runtime.listen(([127, 0, 0, 1], 0).into()).await.unwrap();
        listener.local_addr()
    };
    let handle = follower(&runtime, vec![dead, silent, good.at], path(&folder));
    // The silent one gives a table and then no beat.
    let (_, say) = next(&mut opened).await;
    say.send(encoded(4).to_snapshot().into()).await.unwrap();
    until_holds(&handle, 4).await;
    until_holds(&handle, 5).await;
    good.collected
        .until(|report| report.held.as_ref().is_some_and(|v| v.number == 5))
        .await;
}

#[tokio::test]
async fn a_restarted_data_plane_serves_from_disk_while_no_source_answers() {
    let folder = tempfile::tempdir().unwrap();
    let source = Good::start().await;
    source.publisher.publish(encoded(8)).unwrap();
    let runtime = Runtime::real(RealOptions::default());
    let handle = follower(&runtime, vec![source.at], path(&folder));
    until_on_disk(&path(&folder), 8).await;
    drop(handle);
    source.runtime.shutdown().request();
    source.runtime.tasks().end(PATIENCE).await;

    let handle = follower(&runtime, vec![source.at], path(&folder));
    assert_eq!(
        *handle.table().unwrap(),
        table("w", 8),
        "at once, without any source"
    );
    assert!(handle.age().is_some());
    // An older source of the same world changes nothing; its beats are no confirmation.
    let older = Good::start().await;
    older.publisher.publish(encoded(7)).unwrap();
    drop(handle);
    let handle = follower(&runtime, vec![older.at], path(&folder));
    older
        .collected
        .until(|report| report.held.as_ref().is_some_and(|v| v.number == 8))
        .await;
    older.publisher.publish(encoded(9)).unwrap();
    until_holds(&handle, 9).await;
}

#[tokio::test]
async fn a_damaged_file_is_ignored_and_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let mut bytes = file::encode(&encoded(3), 0);
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(path(&folder), bytes).unwrap();
    let source = Good::start().await;
    let runtime = Runtime::real(RealOptions::default());
    let handle = follower(&runtime, vec![source.at], path(&folder));
    assert_eq!(handle.table(), None);
    source.publisher.publish(encoded(2)).unwrap();
    until_holds(&handle, 2).await;
    let wait = async {
        while file::read(&path(&folder)).is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, wait)
        .await
        .expect("the file was never replaced");
    until_on_disk(&path(&folder), 2).await;
}

#[test]
fn a_publisher_never_goes_back_but_for_another_world() {
    let publisher = Publisher::default();
    publisher.publish(encoded(2)).unwrap();
    publisher.publish(encoded(2)).unwrap();
    assert!(publisher.publish(encoded(1)).is_err());
    let other = Arc::new(encode(&Table {
        routes: vec![],
        scheme: ShardScheme::Digits,
        ..table("w", 2)
    }));
    assert!(publisher.publish(other).is_err());
    publisher.publish(Arc::new(encode(&table("x", 1)))).unwrap();
    assert_eq!(
        publisher.current().unwrap().version(),
        &table("x", 1).version
    );
}
