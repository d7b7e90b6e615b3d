//! A router of one cell, and the tables that it is told.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use atoll_routing::{Closed, GroupRow, Phase, ShardRow, Table, TableVersion};
use atoll_runtime::{RealOptions, Runtime};
use atoll_sql_router::{Config, Facts, Limits, serve_with};
use atoll_topology::{CellId, Epoch, GroupId, MemberId, ProcessId, RegionId, ShardScheme, Term};
use tokio::sync::{oneshot, watch};
use tokio_postgres::{Client, Error, NoTls, SimpleQueryMessage};

use crate::server::{Server, drive};

/// Shards of the tests' tables.
const SHARDS: usize = 100;

pub(crate) fn cell(name: &str) -> CellId {
    CellId::parse(name).expect("cell")
}

pub(crate) fn group() -> GroupId {
    GroupId::parse("g").expect("group")
}

pub(crate) fn member(number: u8) -> MemberId {
    MemberId::parse(format!("g-{number}")).expect("member")
}

/// A router and what it is told.
pub(crate) struct Rig {
    pub(crate) name: String,
    pub(crate) at: SocketAddr,
    pub(crate) facts: watch::Receiver<Facts>,
    pub(crate) runtime: Runtime,
    tables: watch::Sender<Option<Arc<Table>>>,
    table: Table,
}

impl Rig {
    /// A router of a cell of this name that owns these shards, on `plain`; member 2 is `other`.
    pub(crate) async fn new(name: &str, shards: &[u16]) -> Self {
        Self::with(name, shards, Server::plain(), Limits::default()).await
    }

    pub(crate) async fn with(
        name: &str,
        shards: &[u16],
        primary: &'static Server,
        limits: Limits,
    ) -> Self {
        primary.grant(name, shards, 1).await;
        let address = |server: &Server| SocketAddr::from(([127, 0, 0, 1], server.port));
        let members = BTreeMap::from([
            (member(1), address(primary)),
            (member(2), address(Server::other())),
        ]);
        let open = Some((Term::new(1), member(1)));
        let row = |shard: usize| ShardRow {
            cell: if shards.iter().any(|s| usize::from(*s) == shard) {
                cell(name)
            } else {
                cell("elsewhere")
            },
            epoch: Epoch::new(1),
            phase: Phase::Active,
            group: group(),
        };
        let table = Table {
            version: TableVersion {
                world: "w".into(),
                number: 1,
            },
            scheme: ShardScheme::Digits,
            shards: (0..SHARDS).map(row).collect(),
            cells: BTreeMap::new(),
            groups: BTreeMap::from([(
                group(),
                GroupRow {
                    open,
                    coming: None,
                    members,
                },
            )]),
            round_trip_ms: BTreeMap::new(),
            routes: Vec::new(),
        };
        let config = Config {
            process: ProcessId::parse(format!("{name}-router")).expect("process"),
            region: RegionId::parse("r").expect("region"),
            cell: cell(name),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            admin: SocketAddr::from(([127, 0, 0, 1], 0)),
            meshes: Vec::new(),
            table_file: None,
            limits,
        };
        let (tables, receiver) = watch::channel(Some(Arc::new(table.clone())));
        let (sender, facts) = watch::channel(Facts::default());
        let (ready, at) = oneshot::channel();
        let runtime = Runtime::real(RealOptions::default());
        let serving = {
            let runtime = runtime.clone();
            async move {
                let ready = |text: &str| {
                    let sql = text.split(' ').find_map(|part| part.strip_prefix("sql="));
                    let at: SocketAddr = sql.expect("sql").parse().expect("address");
                    ready.send(at).expect("somebody waits");
                };
                serve_with(config, runtime, receiver, sender, ready)
                    .await
                    .expect("serve");
            }
        };
        runtime.tasks().spawn("router", serving);
        let at = at.await.expect("ready");
        Self {
            name: name.to_owned(),
            at,
            facts,
            runtime,
            tables,
            table,
        }
    }

    /// Publishes a change.
    pub(crate) fn publish(&mut self, change: impl FnOnce(&mut Table)) {
        change(&mut self.table);
        self.table.version.number += 1;
        self.tables.send_replace(Some(Arc::new(self.table.clone())));
    }

    /// Closes a shard's gate, from this cell to `to`.
    pub(crate) fn switch(&mut self, shard: u16, to: &str, closed: Closed) {
        let leaving = cell(&self.name);
        self.publish(|table| {
            let row = &mut table.shards[usize::from(shard)];
            if row.phase == Phase::Active {
                row.epoch = row.epoch.next();
            }
            row.cell = cell(to);
            row.phase = Phase::Switching { leaving, closed };
        });
    }

    /// Opens a shard's gate.
    pub(crate) fn activate(&mut self, shard: u16) {
        self.publish(|table| table.shards[usize::from(shard)].phase = Phase::Active);
    }

    /// Waits until the router's facts are so.
    pub(crate) async fn until(&self, so: impl FnMut(&Facts) -> bool) {
        let mut facts = self.facts.clone();
        let waited = tokio::time::timeout(Duration::from_secs(10), facts.wait_for(so)).await;
        assert!(
            waited.is_ok(),
            "the facts are still {:?}",
            self.facts.borrow()
        );
    }

    /// Waits until the table published last is in use.
    pub(crate) async fn in_use(&self) {
        let number = self.table.version.number;
        self.until(|facts| facts.in_use.number == number).await;
    }

    /// Transactions in progress on switching shards, once the last table is in use.
    pub(crate) async fn in_flight(&self, expected: u64) {
        self.in_use().await;
        self.until(|facts| facts.loads.iter().map(|l| l.in_flight).sum::<u64>() == expected)
            .await;
    }

    /// Transactions that wait.
    pub(crate) async fn held(&self, expected: u64) {
        self.in_use().await;
        self.until(|facts| facts.loads.iter().map(|l| l.held).sum::<u64>() == expected)
            .await;
    }

    /// A client without a key.
    pub(crate) async fn client(&self) -> Client {
        self.connect("").await.expect("client")
    }

    /// A client of one user.
    pub(crate) async fn client_of(&self, user: &str) -> Client {
        self.connect(&format!("-c atoll.key={user}"))
            .await
            .expect("client")
    }

    pub(crate) async fn connect(&self, options: &str) -> Result<Client, Error> {
        let mut config = tokio_postgres::Config::new();
        config
            .host("127.0.0.1")
            .port(self.at.port())
            .user("app")
            .dbname("bank")
            .options(options);
        let (client, connection) = config.connect(NoTls).await?;
        drive(connection);
        Ok(client)
    }

    /// For programs that take a connection string.
    pub(crate) fn dsn(&self) -> String {
        format!(
            "host=127.0.0.1 port={} user=app dbname=bank",
            self.at.port()
        )
    }
}

/// A user of a shard.
pub(crate) fn user(shard: u16) -> String {
    format!("u{shard}7")
}

/// The first value of a simple query.
pub(crate) async fn value(client: &Client, sql: &str) -> String {
    let messages = client.simple_query(sql).await.expect("query");
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or("NULL").to_owned()),
        _ => None,
    });
    row.expect("a row")
}

/// The SQLSTATE of an outcome; `ok` if there is none.
pub(crate) fn code<T>(outcome: &Result<T, Error>) -> String {
    match outcome {
        Ok(_) => "ok".to_owned(),
        Err(error) => match error.code() {
            Some(code) => code.code().to_owned(),
            None => error.to_string(),
        },
    }
}

/// The SQLSTATE of a simple query's outcome.
pub(crate) async fn outcome(client: &Client, sql: &str) -> String {
    code(&client.simple_query(sql).await)
}
