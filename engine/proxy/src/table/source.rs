//! The serving end, shared by mesh and control: one publisher, many receivers. Each gets a delta
//! when its base is remembered, else a snapshot; its reports go to a [`Collect`].

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use atoll_routing::TableVersion;
use atoll_runtime::{Listener, Runtime};
use atoll_streams::proto::table::table_source_server::{TableSource, TableSourceServer};
use atoll_streams::proto::table::{
    Beat, DataPlaneReport, MeshReport as WireMeshReport, TableUpdate,
};
use atoll_streams::{EncodedTable, MESSAGE_BYTES_MAX, MeshReport, Report, ReportError};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tonic::{Request, Response, Status, Streaming};
use tracing::{info, warn};

use super::BEAT_INTERVAL;

/// Tables that are remembered as bases of deltas.
const BASES_MAX: usize = 32;
/// HTTP/2 pings to receivers: a receiver behind a silent cut must not hold a stream for ever.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(1);
/// See [`KEEP_ALIVE_INTERVAL`].
const KEEP_ALIVE_LIMIT: Duration = Duration::from_secs(2);

/// Names one receiver's stream; a receiver that comes again has another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u64);

/// Where reports go. Called on the streams' tasks: must be quick.
pub trait Collect: Send + Sync + 'static {
    /// A data plane that follows here says this.
    fn data_plane(&self, stream: StreamId, report: Report);
    /// A mesh that follows here says this, of itself and of its receivers.
    fn mesh(&self, stream: StreamId, report: MeshReport);
    /// No more will come on this stream.
    fn ended(&self, stream: StreamId);
}

/// A table that does not supersede the published one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("table {offered} does not supersede {published}, which is published")]
pub struct Stale {
    /// What was to be published.
    pub offered: TableVersion,
    /// What is.
    pub published: TableVersion,
}

#[derive(Debug)]
struct Published {
    table: Arc<EncodedTable>,
    /// Oldest first.
    bases: VecDeque<Arc<EncodedTable>>,
}

/// One publisher, many readers, whole tables, never backwards. A cheap handle.
#[derive(Debug, Clone)]
pub struct Publisher(watch::Sender<Option<Arc<Published>>>);

impl Default for Publisher {
    fn default() -> Self {
        Self(watch::Sender::new(None))
    }
}

impl Publisher {
    /// Gives the table to all receivers at once. The same table again changes nothing.
    pub fn publish(&self, table: Arc<EncodedTable>) -> Result<(), Stale> {
        let mut result = Ok(());
        self.0.send_if_modified(|published| {
            let mut bases = VecDeque::new();
            if let Some(now) = published {
                if now.table == table {
                    return false;
                }
                if !table.version().supersedes(now.table.version()) {
                    let published = now.table.version().clone();
                    result = Err(Stale {
                        offered: table.version().clone(),
                        published,
                    });
                    return false;
                }
                bases.clone_from(&now.bases);
                bases.push_back(now.table.clone());
                let beyond = bases.len().saturating_sub(BASES_MAX);
                bases.drain(..beyond);
            }
            *published = Some(Arc::new(Published {
                table: table.clone(),
                bases,
            }));
            true
        });
        result
    }

    /// What is published.
    pub fn current(&self) -> Option<Arc<EncodedTable>> {
        self.0
            .borrow()
            .as_ref()
            .map(|published| published.table.clone())
    }
}

/// Tells how long ago control confirmed what is published, in milliseconds; control itself: 0.
pub type AgeMs = Arc<dyn Fn() -> u64 + Send + Sync>;

/// The service `TableSource`; to be added to a tonic server, or served by [`serve_tables`].
pub fn table_service(
    runtime: &Runtime,
    publisher: Publisher,
    collect: Arc<dyn Collect>,
    age_ms: AgeMs,
) -> TableSourceServer<impl TableSource> {
    let source = Source {
        runtime: runtime.clone(),
        publisher,
        collect,
        age_ms,
        next: AtomicU64::new(0),
    };
    TableSourceServer::new(source).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

/// Why serving ended.
pub type ServeError = tonic::transport::Error;

/// Serves `TableSource` alone on a listener until shutdown is requested.
pub async fn serve_tables(
    runtime: &Runtime,
    listener: Listener,
    publisher: Publisher,
    collect: Arc<dyn Collect>,
    age_ms: AgeMs,
) -> Result<(), ServeError> {
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_LIMIT))
        .add_service(table_service(runtime, publisher, collect, age_ms))
        .serve_with_incoming_shutdown(listener.incoming(), runtime.shutdown().requested_owned())
        .await
}

struct Source {
    runtime: Runtime,
    publisher: Publisher,
    collect: Arc<dyn Collect>,
    age_ms: AgeMs,
    next: AtomicU64,
}

/// A report as it comes from a stream.
trait Incoming: Sized + Send + 'static {
    const FROM: &'static str;
    type Parsed: TryFrom<Self, Error = ReportError> + Send;
    fn give(parsed: Self::Parsed, stream: StreamId, to: &dyn Collect);
    fn held(parsed: &Self::Parsed) -> Option<TableVersion>;
    fn name(parsed: &Self::Parsed) -> String;
}

impl Incoming for DataPlaneReport {
    const FROM: &'static str = "data plane";
    type Parsed = Report;
    fn give(parsed: Report, stream: StreamId, to: &dyn Collect) {
        to.data_plane(stream, parsed);
    }
    fn held(parsed: &Report) -> Option<TableVersion> {
        parsed.held.clone()
    }
    fn name(parsed: &Report) -> String {
        parsed.process.to_string()
    }
}

impl Incoming for WireMeshReport {
    const FROM: &'static str = "mesh";
    type Parsed = MeshReport;
    fn give(parsed: MeshReport, stream: StreamId, to: &dyn Collect) {
        to.mesh(stream, parsed);
    }
    fn held(parsed: &MeshReport) -> Option<TableVersion> {
        parsed.held.clone()
    }
    fn name(parsed: &MeshReport) -> String {
        parsed.process.to_string()
    }
}

type Updates = BoxStream<'static, Result<TableUpdate, Status>>;

impl Source {
    fn open<I: Incoming>(&self, request: Request<Streaming<I>>) -> Updates {
        let stream = StreamId(self.next.fetch_add(1, Ordering::Relaxed));
        let peer = request.remote_addr();
        let (first, held) = oneshot::channel();
        let (collect, shutdown) = (self.collect.clone(), self.runtime.shutdown());
        let reports = async move {
            tokio::select! {
                () = listen(request.into_inner(), stream, peer, first, &*collect) => {}
                () = shutdown.requested() => {}
            }
            collect.ended(stream);
        };
        self.runtime.tasks().spawn("table-reports", reports);
        let outbound = Outbound {
            runtime: self.runtime.clone(),
            tables: self.publisher.0.subscribe(),
            age_ms: self.age_ms.clone(),
            sent: None,
            beat_at: Instant::now(),
        };
        let start = (outbound, Some(held));
        let updates = stream::unfold(start, |(mut outbound, held)| async move {
            if let Some(held) = held {
                outbound.sent = outbound.unless_shutdown(held).await?.ok()?;
                outbound.beat_at = Instant::now();
            }
            let update = outbound.next().await?;
            Some((Ok(update), (outbound, None)))
        });
        updates.boxed()
    }
}

/// Takes reports until the stream ends; the first one says what the receiver holds.
async fn listen<I: Incoming>(
    mut reports: Streaming<I>,
    stream: StreamId,
    peer: Option<SocketAddr>,
    first: oneshot::Sender<Option<TableVersion>>,
    collect: &dyn Collect,
) {
    let mut first = Some(first);
    let mut who = String::new();
    let reason = loop {
        let report = match reports.message().await {
            Ok(Some(report)) => report,
            Ok(None) => break "it ended its reports".to_owned(),
            Err(status) => break status.message().to_owned(),
        };
        match I::Parsed::try_from(report) {
            Ok(report) => {
                if let Some(first) = first.take() {
                    who = I::name(&report);
                    let held = I::held(&report);
                    let version = held.as_ref().map(ToString::to_string).unwrap_or_default();
                    info!(receiver = %who, kind = I::FROM, held = %version, "receiver came");
                    // Its stream of updates may be gone already.
                    first.send(held).unwrap_or_default();
                }
                I::give(report, stream, collect);
            }
            Err(error) => {
                let error = super::follow::chain(&error);
                warn!(kind = I::FROM, peer = ?peer, %error, "report refused");
            }
        }
    };
    info!(receiver = %who, kind = I::FROM, %reason, "receiver left");
}

struct Outbound {
    runtime: Runtime,
    tables: watch::Receiver<Option<Arc<Published>>>,
    age_ms: AgeMs,
    /// What the receiver has after all that was sent.
    sent: Option<TableVersion>,
    beat_at: Instant,
}

impl Outbound {
    async fn unless_shutdown<T>(&self, wait: impl Future<Output = T>) -> Option<T> {
        let shutdown = self.runtime.shutdown();
        tokio::select! {
            biased;
            () = shutdown.requested() => None,
            done = wait => Some(done),
        }
    }

    async fn next(&mut self) -> Option<TableUpdate> {
        loop {
            let published = self.tables.borrow_and_update().clone();
            if let Some(published) = &published
                && let Some(update) = self.newer(published)
            {
                return Some(update);
            }
            let (shutdown, beat_at) = (self.runtime.shutdown(), self.beat_at);
            tokio::select! {
                () = shutdown.requested() => return None,
                changed = self.tables.changed() => changed.ok()?,
                () = sleep_until(beat_at) => {
                    self.beat_at = Instant::now() + BEAT_INTERVAL;
                    let table = published.as_ref().map(|published| &*published.table);
                    let now = self.runtime.wall_clock().0;
                    return Some(Beat::of(table, now, (self.age_ms)()).into());
                }
            }
        }
    }

    fn newer(&mut self, published: &Published) -> Option<TableUpdate> {
        let version = published.table.version();
        let base = match &self.sent {
            None => None,
            Some(sent) if !version.supersedes(sent) => return None,
            Some(sent) => published
                .bases
                .iter()
                .rev()
                .find(|base| base.version() == sent),
        };
        self.sent = Some(version.clone());
        Some(match base {
            Some(base) => published.table.diff(base).into(),
            None => published.table.to_snapshot().into(),
        })
    }
}

#[tonic::async_trait]
impl TableSource for Source {
    type FollowStream = Updates;
    type FollowAsMeshStream = Updates;

    async fn follow(
        &self,
        request: Request<Streaming<DataPlaneReport>>,
    ) -> Result<Response<Updates>, Status> {
        Ok(Response::new(self.open(request)))
    }

    async fn follow_as_mesh(
        &self,
        request: Request<Streaming<WireMeshReport>>,
    ) -> Result<Response<Updates>, Status> {
        Ok(Response::new(self.open(request)))
    }
}
