//! A small world for gateway tests: real gateways, real applications on real sockets, tables given
//! by hand.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use atoll_gateway::{Canary, Config, Gateway, Health, Hold, Limits, Running};
use atoll_routing::{CellRow, Closed, GroupRow, Instance, Phase, ShardRow, Table, TableVersion};
use atoll_runtime::{RealOptions, Runtime, Stream};
use atoll_telemetry::Metrics;
use atoll_topology::{
    CellId, CellKind, Epoch, Extractor, GroupId, ProcessId, RegionId, Route, RouteKind,
    ShardScheme, SlotName,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

/// No wait of a test is longer.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);

pub(crate) fn anywhere() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

pub(crate) fn cell(name: &str) -> CellId {
    CellId::parse(name).unwrap()
}

/// Waits for a fact.
pub(crate) async fn until(what: &str, mut fact: impl FnMut() -> bool) {
    let wait = async {
        while !fact() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(LIMIT, wait)
        .await
        .unwrap_or_else(|_| panic!("it never came to pass that {what}"));
}

/// One HTTP message, as far as tests care.
#[derive(Debug, Clone, Default)]
pub(crate) struct Message {
    pub(crate) first: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Message {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }

    pub(crate) fn status(&self) -> u16 {
        self.first.split(' ').nth(1).unwrap().parse().unwrap()
    }

    /// Status, code and outcome of an answer.
    pub(crate) fn gist(&self) -> (u16, &str, &str) {
        let text = |name| self.header(name).unwrap_or("");
        (self.status(), text("atoll-code"), text("atoll-outcome"))
    }
}

/// A connection that reads and writes whole messages.
pub(crate) struct Wire {
    stream: Stream,
    buffer: Vec<u8>,
}

impl Wire {
    pub(crate) async fn to(at: SocketAddr) -> Self {
        let runtime = Runtime::real(RealOptions::default());
        Self::of(runtime.connect(at).await.unwrap())
    }

    pub(crate) fn of(stream: Stream) -> Self {
        Self {
            stream,
            buffer: Vec::new(),
        }
    }

    pub(crate) async fn write(&mut self, bytes: impl AsRef<str>) {
        self.stream
            .write_all(bytes.as_ref().as_bytes())
            .await
            .unwrap();
    }

    /// The next message; none at the end of the connection.
    pub(crate) async fn read(&mut self) -> Option<Message> {
        loop {
            if let Some(end) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                let head = String::from_utf8(self.buffer[..end].to_vec()).unwrap();
                let mut lines = head.split("\r\n");
                let first = lines.next().unwrap().to_owned();
                let headers: Vec<(String, String)> = lines
                    .map(|line| line.split_once(':').unwrap())
                    .map(|(key, value)| (key.to_ascii_lowercase(), value.trim().to_owned()))
                    .collect();
                let mut message = Message {
                    first,
                    headers,
                    body: String::new(),
                };
                let length: usize = message
                    .header("content-length")
                    .map_or(0, |n| n.parse().unwrap());
                while self.buffer.len() < end + 4 + length {
                    if self.more().await == 0 {
                        return None;
                    }
                }
                let body = self.buffer[end + 4..end + 4 + length].to_vec();
                message.body = String::from_utf8(body).unwrap();
                self.buffer.drain(..end + 4 + length);
                return Some(message);
            }
            if self.more().await == 0 {
                return None;
            }
        }
    }

    async fn more(&mut self) -> usize {
        self.stream.read_buf(&mut self.buffer).await.unwrap_or(0)
    }

    pub(crate) async fn ask(&mut self, request: impl AsRef<str>) -> Message {
        self.write(request).await;
        timeout(LIMIT, self.read())
            .await
            .expect("an answer in time")
            .expect("an answer")
    }
}

/// `POST path` of a user, with a body.
pub(crate) fn post(path: &str, user: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nhost: bank\r\nx-user: {user}\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

pub(crate) fn get(path: &str, user: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: bank\r\nx-user: {user}\r\n\r\n")
}

/// Sends one request on a connection of its own.
pub(crate) async fn ask(at: SocketAddr, request: impl AsRef<str>) -> Message {
    Wire::to(at).await.ask(request).await
}

/// An application. It answers with its name; `/slow` waits for `go`, `/die` closes after reading,
/// `/leave` answers and closes.
pub(crate) struct App {
    pub(crate) name: String,
    pub(crate) at: SocketAddr,
    pub(crate) seen: Mutex<Vec<Message>>,
    pub(crate) go: Notify,
    pub(crate) closed: AtomicUsize,
    runtime: Runtime,
}

impl App {
    pub(crate) async fn start(name: &str) -> Arc<Self> {
        Self::start_at(name, anywhere()).await
    }

    pub(crate) async fn start_at(name: &str, at: SocketAddr) -> Arc<Self> {
        let runtime = Runtime::real(RealOptions::default());
        let listener = runtime.listen(at).await.unwrap();
        let app = Arc::new(Self {
            name: name.into(),
            at: listener.local_addr(),
            seen: Mutex::default(),
            go: Notify::new(),
            closed: AtomicUsize::new(0),
            runtime: runtime.clone(),
        });
        let serving = app.clone();
        runtime.tasks().spawn("app", async move {
            while let Ok((stream, _)) = listener.accept().await {
                let app = serving.clone();
                let serve = async move { app.connection(Wire::of(stream)).await };
                serving.runtime.tasks().spawn("app-connection", serve);
            }
        });
        app
    }

    /// Its process ends: the port closes and connections are reset.
    pub(crate) async fn stop(&self) {
        self.runtime.tasks().end(Duration::ZERO).await;
    }

    async fn connection(&self, mut wire: Wire) {
        while let Some(request) = wire.read().await {
            let path = request.first.split(' ').nth(1).unwrap().to_owned();
            if path.starts_with("/healthz") {
                wire.write("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                    .await;
                continue;
            }
            self.seen.lock().unwrap().push(request);
            match path.split('?').next().unwrap() {
                "/die" => break,
                "/slow" => self.go.notified().await,
                _ => {}
            }
            let (length, name) = (self.name.len(), &self.name);
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\natoll-outcome: lie\r\n\r\n{name}"
            );
            wire.write(&answer).await;
            if path == "/leave" {
                break;
            }
        }
        drop(wire);
        self.closed.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn count(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    pub(crate) fn bodies(&self) -> Vec<String> {
        self.seen
            .lock()
            .unwrap()
            .iter()
            .map(|request| request.body.clone())
            .collect()
    }
}

/// A gateway of one cell with its own table feed.
pub(crate) struct Door {
    pub(crate) edge: SocketAddr,
    pub(crate) peer: SocketAddr,
    pub(crate) runtime: Runtime,
    pub(crate) running: Running,
    pub(crate) metrics: Metrics,
    pub(crate) in_use: Arc<AtomicU64>,
    tables: watch::Sender<Option<Arc<Table>>>,
    _folder: tempfile::TempDir,
}

pub(crate) struct Options {
    pub(crate) hold: Hold,
    pub(crate) limits: Limits,
    pub(crate) health: Health,
    pub(crate) canary: Option<Canary>,
    pub(crate) workers: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            hold: Hold::default(),
            limits: Limits {
                drain_idle_ms: 20,
                ..Limits::default()
            },
            health: Health::default(),
            canary: None,
            workers: 1,
        }
    }
}

/// A gateway's configuration, its files in `folder`.
pub(crate) fn config(name: &str, options: Options, folder: &tempfile::TempDir) -> Config {
    let peer_key_file = folder.path().join("key");
    std::fs::write(&peer_key_file, "07".repeat(32)).unwrap();
    Config {
        process: ProcessId::parse(format!("{name}-gateway")).unwrap(),
        region: RegionId::parse("hz").unwrap(),
        cell: cell(name),
        edge: anywhere(),
        peer: anywhere(),
        admin: anywhere(),
        meshes: vec![],
        table_file: folder.path().join("table"),
        peer_key_file,
        workers: Some(options.workers),
        canary: options.canary,
        limits: options.limits,
        hold: options.hold,
        health: options.health,
    }
}

impl Door {
    pub(crate) async fn open(name: &str, table: &Table, options: Options) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = config(name, options, &folder);
        let runtime = Runtime::real(RealOptions::default());
        let metrics = Metrics::default();
        let gateway = Gateway::new(config, &runtime, &metrics).unwrap();
        let (tables, receiver) = watch::channel(Some(Arc::new(table.clone())));
        let in_use = Arc::new(AtomicU64::new(0));
        let used = in_use.clone();
        let running = gateway
            .start(receiver, move |version| {
                used.store(version.number, Ordering::SeqCst);
            })
            .await
            .unwrap();
        let (edge, peer) = (running.edge, running.peer);
        Self {
            edge,
            peer,
            runtime,
            running,
            metrics,
            in_use,
            tables,
            _folder: folder,
        }
    }

    /// Publishes a table and waits until it is in use.
    pub(crate) async fn publish(&self, table: &Table) {
        self.tables.send_replace(Some(Arc::new(table.clone())));
        let number = table.version.number;
        until("the table is in use", || {
            self.in_use.load(Ordering::SeqCst) == number
        })
        .await;
    }

    /// Requests that wait for switching shards.
    pub(crate) fn held(&self) -> u64 {
        self.running
            .observe()
            .loads
            .iter()
            .map(|load| load.held)
            .sum()
    }

    pub(crate) fn in_flight(&self) -> u64 {
        self.running
            .observe()
            .loads
            .iter()
            .map(|load| load.in_flight)
            .sum()
    }

    /// One line of the metrics, as a number.
    pub(crate) fn metric(&self, line: &str) -> u64 {
        let text = self.metrics.text().unwrap();
        let value = text
            .lines()
            .find_map(|found| found.strip_prefix(line)?.strip_prefix(' '));
        value.map_or(0, |value| value.parse().unwrap())
    }
}

/// 100 shards of which a owns 0–49 and b the rest; user `1231` is of shard 23, `1671` of shard 67.
pub(crate) fn table() -> Table {
    let row = |name: &str| ShardRow {
        cell: cell(name),
        epoch: Epoch::new(1),
        phase: Phase::Active,
        group: GroupId::parse("g").unwrap(),
    };
    let place = || CellRow {
        kind: CellKind::Sharded,
        region: RegionId::parse("hz").unwrap(),
        gateways: vec![],
        instances: vec![],
        weights: [(SlotName::Blue, 100)].into(),
    };
    Table {
        version: TableVersion {
            world: "w".into(),
            number: 1,
        },
        scheme: ShardScheme::Digits,
        shards: (0..100)
            .map(|n| row(if n < 50 { "a" } else { "b" }))
            .collect(),
        cells: [(cell("a"), place()), (cell("b"), place())].into(),
        groups: [(
            GroupId::parse("g").unwrap(),
            GroupRow {
                open: None,
                coming: None,
                members: Default::default(),
            },
        )]
        .into(),
        round_trip_ms: Default::default(),
        routes: vec![Route {
            name: "all".into(),
            path_prefix: "/".into(),
            kind: RouteKind::Sharded,
            user: vec![
                Extractor::Header("x-user".into()),
                Extractor::Cookie("uid".into()),
                Extractor::Query("user".into()),
            ],
        }],
    }
}

pub(crate) const OF_A: &str = "1231";
pub(crate) const OF_B: &str = "1671";

/// Changes to a table, each giving the next version.
pub(crate) trait Change {
    fn next(&self) -> Table;
    fn served(&self, name: &str, app: SocketAddr) -> Table;
    fn reached(&self, name: &str, gateway: SocketAddr) -> Table;
    fn switching(&self, shard: usize, to: &str) -> Table;
    fn active(&self, shard: usize) -> Table;
}

impl Change for Table {
    fn next(&self) -> Table {
        let mut table = self.clone();
        table.version.number += 1;
        table
    }

    fn served(&self, name: &str, app: SocketAddr) -> Table {
        let mut table = self.next();
        let instance = Instance {
            address: app,
            slot: SlotName::Blue,
        };
        table.cells.get_mut(&cell(name)).unwrap().instances = vec![instance];
        table
    }

    fn reached(&self, name: &str, gateway: SocketAddr) -> Table {
        let mut table = self.next();
        table.cells.get_mut(&cell(name)).unwrap().gateways = vec![gateway];
        table
    }

    fn switching(&self, shard: usize, to: &str) -> Table {
        let mut table = self.next();
        let row = &mut table.shards[shard];
        row.phase = Phase::Switching {
            leaving: row.cell.clone(),
            closed: Closed::Gateways,
        };
        row.cell = cell(to);
        row.epoch = row.epoch.next();
        table
    }

    fn active(&self, shard: usize) -> Table {
        let mut table = self.next();
        table.shards[shard].phase = Phase::Active;
        table
    }
}

/// Two cells, each with an application and a gateway.
pub(crate) struct Pair {
    pub(crate) a: Door,
    pub(crate) b: Door,
    pub(crate) app_a: Arc<App>,
    pub(crate) app_b: Arc<App>,
    pub(crate) table: Table,
}

impl Pair {
    pub(crate) async fn open() -> Self {
        Self::open_with(Options::default, 1).await
    }

    pub(crate) async fn open_with(options: impl Fn() -> Options, workers: usize) -> Self {
        let (app_a, app_b) = (App::start("a").await, App::start("b").await);
        let table = table().served("a", app_a.at).served("b", app_b.at);
        let a = Door::open(
            "a",
            &table,
            Options {
                workers,
                ..options()
            },
        )
        .await;
        let b = Door::open(
            "b",
            &table,
            Options {
                workers,
                ..options()
            },
        )
        .await;
        let table = table.reached("a", a.peer).reached("b", b.peer);
        a.publish(&table).await;
        b.publish(&table).await;
        Self {
            a,
            b,
            app_a,
            app_b,
            table,
        }
    }
}
