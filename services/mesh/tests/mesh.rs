//! A mesh between a test-side control and data planes, all on real sockets.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use atoll_mesh::Config;
use atoll_proxy::table::{
    Collect, FollowerConfig, Publisher, StreamId, TableFollower, TableHandle, Worker, file,
    serve_tables,
};
use atoll_routing::{CellRow, GroupRow, Phase, ShardRow, Table, TableVersion};
use atoll_runtime::{RealOptions, Runtime};
use atoll_streams::{EncodedTable, MeshReport, Report, Role, encode};
use atoll_topology::{CellId, CellKind, Epoch, GroupId, ProcessId, RegionId, ShardScheme};
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

/// Longer than anything here takes, but for a hang.
const PATIENCE: Duration = Duration::from_secs(20);

fn local() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

fn version(world: &str, number: u64) -> TableVersion {
    TableVersion {
        world: world.into(),
        number,
    }
}

fn encoded(world: &str, number: u64) -> Arc<EncodedTable> {
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
    let groups = GroupRow {
        open: None,
        coming: None,
        members: BTreeMap::new(),
    };
    Arc::new(encode(&Table {
        version: version(world, number),
        scheme: ShardScheme::Hash,
        shards: vec![row; 4],
        cells: BTreeMap::from([(cell, cells)]),
        groups: BTreeMap::from([(group, groups)]),
        round_trip_ms: BTreeMap::new(),
        routes: vec![],
    }))
}

/// What control was told.
#[derive(Default)]
struct Told {
    meshes: Mutex<Vec<MeshReport>>,
    changed: watch::Sender<usize>,
}

impl Collect for Told {
    fn data_plane(&self, _: StreamId, _: Report) {}
    fn mesh(&self, _: StreamId, report: MeshReport) {
        self.meshes.lock().unwrap().push(report);
        self.changed.send_modify(|n| *n += 1);
    }
    fn ended(&self, _: StreamId) {}
}

impl Told {
    async fn until(&self, holds: impl Fn(&MeshReport) -> bool) -> MeshReport {
        let mut changed = self.changed.subscribe();
        let wait = async {
            loop {
                if let Some(report) = self.meshes.lock().unwrap().iter().find(|r| holds(r)) {
                    return report.clone();
                }
                changed.changed().await.unwrap();
            }
        };
        timeout(PATIENCE, wait)
            .await
            .expect("control was never told")
    }

    /// Waits until a data plane's report says that it uses this number.
    async fn until_in_use(&self, process: &str, number: u64) {
        self.until(|mesh| {
            mesh.reports.iter().any(|report| {
                report.process.as_str() == process
                    && report.in_use.as_ref().is_some_and(|v| v.number == number)
            })
        })
        .await;
    }
}

/// Control's part: publishes, and is told.
struct Control {
    runtime: Runtime,
    publisher: Publisher,
    told: Arc<Told>,
    at: SocketAddr,
}

impl Control {
    async fn start(at: SocketAddr) -> Self {
        let runtime = Runtime::real(RealOptions::default());
        let listener = runtime.listen(at).await.unwrap();
        let at = listener.local_addr();
        let (publisher, told) = (Publisher::default(), Arc::new(Told::default()));
        let (serving, served, collect) = (runtime.clone(), publisher.clone(), told.clone());
        runtime.tasks().spawn("control", async move {
            serve_tables(&serving, listener, served, collect, Arc::new(|| 0))
                .await
                .unwrap();
        });
        Self {
            runtime,
            publisher,
            told,
            at,
        }
    }

    fn publish(&self, number: u64) {
        self.publisher.publish(encoded("w", number)).unwrap();
    }

    async fn die(self) -> SocketAddr {
        end(&self.runtime).await;
        self.at
    }
}

async fn end(runtime: &Runtime) {
    runtime.shutdown().request();
    runtime.tasks().end(PATIENCE).await;
    assert_eq!(
        runtime.tasks().names(),
        Vec::<String>::new(),
        "every task has an end"
    );
}

struct Mesh {
    runtime: Runtime,
    at: SocketAddr,
}

impl Mesh {
    async fn start(control: Vec<SocketAddr>, table_file: &Path) -> Self {
        let runtime = Runtime::real(RealOptions::default());
        let config = Config {
            process: ProcessId::parse("hz-1-mesh").unwrap(),
            region: RegionId::parse("hz").unwrap(),
            cell: None,
            listen: local(),
            admin: local(),
            control,
            table_file: table_file.to_owned(),
        };
        let (ready, at) = oneshot::channel();
        let serving = runtime.clone();
        runtime.tasks().spawn("mesh", async move {
            let ready = |text: &str| ready.send(text.to_owned()).unwrap();
            atoll_mesh::serve(config, serving, ready).await.unwrap();
        });
        let text = timeout(PATIENCE, at).await.unwrap().unwrap();
        let at = text
            .split_whitespace()
            .find_map(|part| part.strip_prefix("tables="))
            .unwrap();
        Self {
            runtime,
            at: at.parse().unwrap(),
        }
    }
}

/// A data plane with one worker thread, which uses each table at once.
struct DataPlane {
    handle: TableHandle,
    _runtime: Runtime,
}

impl DataPlane {
    fn start(process: &str, sources: Vec<SocketAddr>, table_file: PathBuf) -> Self {
        let runtime = Runtime::real(RealOptions::default());
        let config = FollowerConfig {
            process: ProcessId::parse(process).unwrap(),
            role: Role::Gateway,
            region: RegionId::parse("hz").unwrap(),
            cell: None,
            sources,
            file: table_file,
        };
        let handle = TableFollower::start(&runtime, config);
        runtime
            .tasks()
            .spawn("worker", swap(handle.worker(), handle.tables()));
        Self {
            handle,
            _runtime: runtime,
        }
    }

    async fn until_holds(&self, expected: TableVersion) {
        let mut tables = self.handle.tables();
        let held =
            |table: &Option<Arc<Table>>| table.as_ref().is_some_and(|t| t.version == expected);
        timeout(PATIENCE, tables.wait_for(held))
            .await
            .expect("the table never came")
            .unwrap();
    }
}

async fn swap(worker: Worker, mut tables: watch::Receiver<Option<Arc<Table>>>) {
    loop {
        let now = tables.borrow_and_update().clone();
        if let Some(table) = now {
            worker.in_use(&table.version);
        }
        if tables.changed().await.is_err() {
            return;
        }
    }
}

async fn until_on_disk(path: &Path, number: u64) {
    let wait = async {
        // Written off the path, so there is nothing to await.
        while file::read(path)
            .unwrap()
            .is_none_or(|s| s.table.version().number != number)
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, wait)
        .await
        .expect("the file was never written");
}

#[tokio::test]
async fn tables_go_down_through_a_mesh_and_what_is_in_use_comes_up() {
    let folder = tempfile::tempdir().unwrap();
    let control = Control::start(local()).await;
    let mesh = Mesh::start(vec![control.at], &folder.path().join("mesh")).await;
    let one = DataPlane::start("hz-1-gateway", vec![mesh.at], folder.path().join("one"));
    let two = DataPlane::start("hz-1-sql-router", vec![mesh.at], folder.path().join("two"));
    for number in 1..=20 {
        control.publish(number);
        one.until_holds(version("w", number)).await;
        two.until_holds(version("w", number)).await;
        control.told.until_in_use("hz-1-gateway", number).await;
        control.told.until_in_use("hz-1-sql-router", number).await;
    }
    drop((one, two));
    end(&mesh.runtime).await;
}

#[tokio::test]
async fn the_death_of_control_stops_nothing_and_its_return_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let mesh_file = folder.path().join("mesh");
    let control = Control::start(local()).await;
    control.publish(5);
    let mesh = Mesh::start(vec![control.at], &mesh_file).await;
    until_on_disk(&mesh_file, 5).await;
    let at = control.die().await;

    // Served from memory, then, by another process of the mesh, from disk.
    let late = DataPlane::start("late", vec![mesh.at], folder.path().join("late"));
    late.until_holds(version("w", 5)).await;
    end(&mesh.runtime).await;
    let mesh = Mesh::start(vec![at], &mesh_file).await;
    let later = DataPlane::start("later", vec![mesh.at], folder.path().join("later"));
    later.until_holds(version("w", 5)).await;

    // A control that comes back with an older table is refused, and told what is in use.
    let control = Control::start(at).await;
    control.publish(3);
    let told = control.told.until(|mesh| mesh.held.is_some()).await;
    assert_eq!(told.held, Some(version("w", 5)));
    control.told.until_in_use("later", 5).await;
    assert_eq!(later.handle.first().await.version, version("w", 5));
    control.publish(6);
    later.until_holds(version("w", 6)).await;
    control.told.until_in_use("later", 6).await;
}

#[tokio::test]
async fn a_new_world_is_taken_whatever_its_number() {
    let folder = tempfile::tempdir().unwrap();
    let mesh_file = folder.path().join("mesh");
    let control = Control::start(local()).await;
    control.publish(50);
    let mesh = Mesh::start(vec![control.at], &mesh_file).await;
    let plane = DataPlane::start("plane", vec![mesh.at], folder.path().join("plane"));
    plane.until_holds(version("w", 50)).await;
    let control = Control::start(control.die().await).await;
    control.publisher.publish(encoded("rebuilt", 1)).unwrap();
    plane.until_holds(version("rebuilt", 1)).await;
    until_on_disk(&mesh_file, 1).await;
}

#[tokio::test]
async fn a_data_plane_turns_to_the_other_mesh_and_control_hears_it_through_that_one() {
    let folder = tempfile::tempdir().unwrap();
    let control = Control::start(local()).await;
    control.publish(1);
    let first = Mesh::start(vec![control.at], &folder.path().join("first")).await;
    let second = Mesh::start(vec![control.at], &folder.path().join("second")).await;
    let sources = vec![first.at, second.at];
    let plane = DataPlane::start("plane", sources, folder.path().join("plane"));
    plane.until_holds(version("w", 1)).await;
    end(&first.runtime).await;
    control.publish(2);
    plane.until_holds(version("w", 2)).await;
    control.told.until_in_use("plane", 2).await;
}

#[tokio::test]
async fn every_replica_of_control_is_told_and_the_highest_table_of_any_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let mesh_file = folder.path().join("mesh");
    let (one, two) = (Control::start(local()).await, Control::start(local()).await);
    let mesh = Mesh::start(vec![one.at, two.at], &mesh_file).await;
    let plane = DataPlane::start("plane", vec![mesh.at], folder.path().join("plane"));
    // One is ahead, then the other; each hears what is in use, whoever published it.
    for (ahead, behind, number) in [(&one, &two, 1), (&two, &one, 2), (&one, &two, 3)] {
        ahead.publish(number);
        plane.until_holds(version("w", number)).await;
        one.told.until_in_use("plane", number).await;
        two.told.until_in_use("plane", number).await;
        behind.publish(number);
    }
    // One that stays behind takes nothing back, and one that dies is not missed.
    one.publish(4);
    plane.until_holds(version("w", 4)).await;
    one.die().await;
    two.told.until_in_use("plane", 4).await;
    assert_eq!(plane.handle.first().await.version, version("w", 4));
    two.publish(5);
    plane.until_holds(version("w", 5)).await;
    until_on_disk(&mesh_file, 5).await;
}

#[test]
fn a_configuration_with_an_unknown_key_is_refused() {
    let good = "process: hz-1-mesh\nregion: hz\nlisten: 127.1.16.9:7800\nadmin: 127.1.16.9:9900\n\
                control: [127.1.0.1:7601]\ntable_file: /var/tmp/table\n";
    assert!(serde_saphyr::from_str::<Config>(good).is_ok());
    assert!(serde_saphyr::from_str::<Config>(&format!("{good}colour: red\n")).is_err());
}
