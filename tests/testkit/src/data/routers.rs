//! The SQL router of a cell, in the test's own process, on tables that the test writes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use atoll_routing::{GroupRow, Phase, ShardRow, Table, TableVersion};
use atoll_runtime::{RealOptions, Runtime};
use atoll_sql_router::{Config, Facts, Limits, serve_with};
use atoll_topology::{ProcessId, RegionId, ShardScheme};
use tokio::sync::{oneshot, watch};
use tokio_postgres::{Client, NoTls};

use super::group::Group;

/// The router is ready within this.
const READY_LIMIT: Duration = Duration::from_secs(20);

/// A router of one cell before a group's agents; shard n is the users' whose number ends in n.
pub struct RouterOfCell {
    runtime: Runtime,
    tables: watch::Sender<Option<Arc<Table>>>,
    /// Where clients connect.
    pub at: SocketAddr,
}

impl RouterOfCell {
    /// Starts it with the record as it is.
    pub async fn start(group: &Group, name: &str) -> Result<Self> {
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let config = Config {
            process: ProcessId::parse(format!("{name}-router"))?,
            region: RegionId::parse("r1")?,
            cell: group.record.runs[0].cell.clone(),
            listen: address,
            admin: address,
            meshes: Vec::new(),
            table_file: None,
            limits: Limits::default(),
        };
        let (tables, told) = watch::channel(Some(Arc::new(table(group, 1))));
        let (facts, _) = watch::channel(Facts::default());
        let (ready, listening) = oneshot::channel();
        let runtime = Runtime::real(RealOptions::default());
        let serving = {
            let runtime = runtime.clone();
            async move {
                let ready = |text: &str| {
                    // A test that gave up no longer waits.
                    ready.send(text.to_owned()).ok();
                };
                serve_with(config, runtime, told, facts, ready).await.ok();
            }
        };
        runtime.tasks().spawn("router", serving);
        let text = tokio::time::timeout(READY_LIMIT, listening).await??;
        let sql = text.split(' ').find_map(|part| part.strip_prefix("sql="));
        let at = sql.context("no address")?.parse()?;
        Ok(Self {
            runtime,
            tables,
            at,
        })
    }

    /// Publishes the record as it is now.
    pub fn publish(&self, group: &Group) {
        self.tables.send_modify(|old| {
            let number = old.as_ref().map_or(0, |old| old.version.number);
            *old = Some(Arc::new(table(group, number + 1)));
        });
    }

    /// A client of one user.
    pub async fn client(&self, user: u64) -> Result<Client> {
        let mut config = tokio_postgres::Config::new();
        config
            .host(self.at.ip().to_string())
            .port(self.at.port())
            .user("app")
            .dbname("atoll")
            .options(format!("-c atoll.key={user}"));
        let (client, connection) = config.connect(NoTls).await?;
        self.runtime.tasks().spawn("client", async move {
            connection.await.ok();
        });
        Ok(client)
    }
}

impl Drop for RouterOfCell {
    fn drop(&mut self) {
        self.runtime.shutdown().request();
    }
}

fn table(group: &Group, number: u64) -> Table {
    let record = &group.record;
    let rows = record.runs.iter().flat_map(|run| {
        let row = ShardRow {
            cell: run.cell.clone(),
            epoch: run.epoch,
            phase: Phase::Active,
            group: record.group.clone(),
        };
        (run.first.0..=run.last.0).map(move |_| row.clone())
    });
    let members = group
        .agents
        .iter()
        .map(|agent| (agent.member.clone(), agent.sql));
    let open = record.open.as_ref();
    Table {
        version: TableVersion {
            world: "w".into(),
            number,
        },
        scheme: ShardScheme::Digits,
        shards: rows.collect(),
        cells: BTreeMap::new(),
        groups: BTreeMap::from([(
            record.group.clone(),
            GroupRow {
                open: open.map(|open| (open.term, open.primary.clone())),
                coming: None,
                members: members.collect(),
            },
        )]),
        round_trip_ms: BTreeMap::new(),
        routes: Vec::new(),
    }
}
