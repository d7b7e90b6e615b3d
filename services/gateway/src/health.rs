//! Which cells do not answer. A cell that refuses connections is suspected at once; one that is
//! silent is probed first. A suspected cell's shards wait until a probe passes or the table names
//! another owner.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use atoll_proxy::Hold;
use atoll_routing::Table;
use atoll_runtime::Runtime;
use atoll_topology::CellId;
use http::{Request, header};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

use crate::gate::Gates;
use crate::metrics::GatewayMetrics;
use crate::peer;

/// Health of cells, seen by one gateway.
pub(crate) struct Health {
    runtime: Runtime,
    local: CellId,
    config: crate::config::Health,
    gates: Arc<Gates>,
    hold: Arc<Hold>,
    metrics: Arc<GatewayMetrics>,
    cells: Mutex<Cells>,
}

#[derive(Default)]
struct Cells {
    /// Being probed for the first time, because of a silence.
    doubted: BTreeSet<CellId>,
    /// Known not to answer, and probed again and again.
    suspected: BTreeSet<CellId>,
}

impl Health {
    pub(crate) fn new(
        runtime: Runtime,
        local: CellId,
        config: crate::config::Health,
        gates: Arc<Gates>,
        hold: Arc<Hold>,
        metrics: Arc<GatewayMetrics>,
    ) -> Arc<Self> {
        let cells = Mutex::default();
        Arc::new(Self {
            runtime,
            local,
            config,
            gates,
            hold,
            metrics,
            cells,
        })
    }

    /// After how much silence a cell should be doubted.
    pub(crate) fn silence(&self) -> Duration {
        Duration::from_millis(self.config.silence_ms)
    }

    /// Whether a cell is known not to answer.
    pub(crate) fn is_suspected(&self, cell: &CellId) -> bool {
        self.lock().suspected.contains(cell)
    }

    /// The cell has been silent: probe it, and suspect it if that fails.
    pub(crate) fn doubt(self: &Arc<Self>, cell: &CellId) {
        {
            let mut cells = self.lock();
            if cells.suspected.contains(cell) || !cells.doubted.insert(cell.clone()) {
                return;
            }
        }
        let (health, cell) = (Arc::clone(self), cell.clone());
        self.runtime.tasks().spawn("probe", async move {
            let answers = health.probe(&cell).await;
            health.lock().doubted.remove(&cell);
            if !answers {
                health.suspect(&cell);
            }
        });
    }

    /// The cell does not answer: its shards wait from now on.
    pub(crate) fn suspect(self: &Arc<Self>, cell: &CellId) {
        let first = self.lock().suspected.insert(cell.clone());
        // Also when it is known: the table may have given it further shards since.
        self.gates.suspect(cell);
        if !first {
            return;
        }
        self.metrics.suspicions.inc();
        tracing::warn!(%cell, "cell does not answer; its requests wait");
        let (health, cell) = (Arc::clone(self), cell.clone());
        self.runtime.tasks().spawn("probe", async move {
            let shutdown = health.runtime.shutdown();
            let pause = Duration::from_millis(health.config.probe_every_ms);
            while !health.probe(&cell).await {
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = shutdown.requested() => return,
                }
            }
            health.lock().suspected.remove(&cell);
            health.gates.probe_passed(&cell);
            health.hold.poke();
            tracing::info!(%cell, "cell answers again");
        });
    }

    /// Whether anything of the cell answers within the limit.
    async fn probe(&self, cell: &CellId) -> bool {
        let Some(table) = self.gates.table() else {
            return false;
        };
        let (addresses, path) = self.whom(&table, cell);
        let limit = Duration::from_millis(self.config.probe_limit_ms);
        let one = |to| async move {
            match tokio::time::timeout(limit, self.ask(to, path)).await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(_)) | Err(_) => Err(()),
            }
        };
        let mut asked: Vec<_> = addresses.into_iter().map(|to| Box::pin(one(to))).collect();
        while !asked.is_empty() {
            let (answer, _, rest) = futures::future::select_all(asked).await;
            if answer.is_ok() {
                return true;
            }
            asked = rest;
        }
        false
    }

    fn whom(&self, table: &Table, cell: &CellId) -> (Vec<SocketAddr>, &str) {
        let Some(row) = table.cells.get(cell) else {
            return (vec![], peer::ALIVE_PATH);
        };
        if *cell == self.local {
            let instances = row
                .instances
                .iter()
                .map(|instance| instance.address)
                .collect();
            (instances, &self.config.probe_path)
        } else {
            (row.gateways.clone(), peer::ALIVE_PATH)
        }
    }

    /// Any answer is a sign of life; a connection alone is not: the kernel accepts for a frozen
    /// process.
    async fn ask(&self, to: SocketAddr, path: &str) -> io::Result<()> {
        let stream = self.runtime.connect(to).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        let request = Request::get(path)
            .header(header::HOST, to.to_string())
            .header(header::CONNECTION, "close")
            .body(Empty::<bytes::Bytes>::new())
            .map_err(io::Error::other)?;
        let answer = async { sender.send_request(request).await.map_err(io::Error::other) };
        tokio::pin!(answer);
        tokio::select! {
            answered = &mut answer => answered.map(drop),
            _ = connection => answer.await.map(drop),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Cells> {
        self.cells.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
