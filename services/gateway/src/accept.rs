//! Where requests come in: the edge for clients, the peer port for other gateways. One `Flow` a
//! worker takes a request through the stages.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use atoll_proxy::{Answer, Hold, Kept, Pool, Service, Ticket};
use atoll_routing::TableVersion;
use atoll_runtime::Runtime;
use atoll_topology::{CellId, ShardId};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response};
use hyper::body::Incoming;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::admit::{self, Origin};
use crate::config::Limits;
use crate::error::Problem;
use crate::gate::{Gates, reaches};
use crate::health::Health;
use crate::metrics::{CellStats, Cells, GatewayMetrics};
use crate::peer::{self, PeerKey};
use crate::record::{Record, Recorder};

/// What all workers share; nothing in it is locked on the path of a request that does not wait.
pub(crate) struct Shared {
    pub(crate) runtime: Runtime,
    pub(crate) cell: CellId,
    pub(crate) from: HeaderValue,
    pub(crate) key: PeerKey,
    pub(crate) limits: Limits,
    pub(crate) gates: Arc<Gates>,
    pub(crate) hold: Arc<Hold>,
    pub(crate) hold_time: std::time::Duration,
    /// Requests that wait for a table, as many as may wait at the gate.
    pub(crate) catching_up: Semaphore,
    pub(crate) health: Arc<Health>,
    pub(crate) cells: Cells,
    pub(crate) metrics: Arc<GatewayMetrics>,
}

/// One worker's stages.
pub(crate) struct Flow {
    pub(crate) shared: Arc<Shared>,
    pub(crate) pool: Pool,
    recorder: Rc<Recorder>,
    stats: RefCell<BTreeMap<CellId, Arc<CellStats>>>,
    random: Cell<u64>,
    trace_prefix: u64,
    traces: Cell<u64>,
    /// Tenths of a repeat that may still be made.
    repeats: Cell<u32>,
}

/// A repeat for every fifth request, and ten in advance.
const REPEAT_TENTHS_PER_REQUEST: u32 = 2;
const REPEAT_TENTHS_MAX: u32 = 100;

impl Flow {
    pub(crate) fn new(shared: Arc<Shared>, pool: Pool, recorder: Recorder, worker: usize) -> Self {
        let start = shared.runtime.wall_clock().0;
        let seed = start.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (worker as u64 + 1);
        Self {
            shared,
            pool,
            recorder: Rc::new(recorder),
            stats: RefCell::default(),
            random: Cell::new(seed | 1),
            trace_prefix: seed,
            traces: Cell::new(0),
            repeats: Cell::new(REPEAT_TENTHS_MAX),
        }
    }

    /// xorshift64*: which of equals, nothing that must not be guessed.
    pub(crate) fn random(&self) -> u64 {
        let mut x = self.random.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.random.set(x);
        x.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11
    }

    /// Whether the budget allows one more repeat of a request that was sent.
    pub(crate) fn may_repeat(&self) -> bool {
        match self.repeats.get().checked_sub(10) {
            Some(left) => {
                self.repeats.set(left);
                true
            }
            None => false,
        }
    }

    pub(crate) fn stats(&self, cell: &CellId) -> Arc<CellStats> {
        if let Some(stats) = self.stats.borrow().get(cell) {
            return Arc::clone(stats);
        }
        let stats = self.shared.cells.of(cell);
        self.stats
            .borrow_mut()
            .insert(cell.clone(), Arc::clone(&stats));
        stats
    }

    pub(crate) fn begin(&self, request: &Parts, from: SocketAddr) -> Record {
        let repeats = self.repeats.get() + REPEAT_TENTHS_PER_REQUEST;
        self.repeats.set(repeats.min(REPEAT_TENTHS_MAX));
        let trace = self.traces.replace(self.traces.get() + 1);
        let trace = format!("{:016x}{trace:08x}", self.trace_prefix);
        let trace = HeaderValue::try_from(trace).unwrap_or(HeaderValue::from_static("0"));
        let now = self.shared.runtime.wall_clock().0;
        Record::begin(Rc::clone(&self.recorder), from, request, trace, now)
    }

    /// Waits at the gate; the ticket keeps the place when the wait has to be repeated.
    pub(crate) async fn wait(
        &self,
        shard: ShardId,
        ticket: &mut Option<Ticket>,
        body: &Kept,
        record: &mut Record,
    ) -> Result<(), Problem> {
        let shared = &self.shared;
        let ticket = *ticket.get_or_insert_with(|| shared.hold.ticket());
        let begun = Instant::now();
        record.waits();
        let waited = shared.hold.wait(shard.0.into(), ticket, body.bytes()).await;
        if let Some(line) = record.line() {
            line.held += begun.elapsed();
        }
        let end = match waited {
            Ok(()) => "released",
            Err(atoll_proxy::HoldRefused::TooLong) => "too-long",
            Err(_) => "refused",
        };
        shared.metrics.holds.with_label_values(&[end]).inc();
        shared
            .metrics
            .hold_seconds
            .observe(ticket.since().elapsed().as_secs_f64());
        waited.map_err(Problem::Hold)
    }

    /// Waits until our table is at least `theirs`.
    pub(crate) async fn catch_up(&self, theirs: &TableVersion) -> Result<(), Problem> {
        let shared = &self.shared;
        let behind = || Problem::TableBehind(theirs.to_string());
        let mut changes = shared.gates.changes();
        let reached = || {
            let ours = shared.gates.table();
            ours.is_some_and(|ours| reaches(&ours.version, theirs) != Some(false))
        };
        if reached() {
            return Ok(());
        }
        let _room = shared.catching_up.try_acquire().map_err(|_| behind())?;
        let wait = async {
            while !reached() {
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::time::timeout(shared.hold_time, wait)
            .await
            .map_err(|_| behind())
    }

    /// An admitted request, until its answer.
    async fn admitted(
        &self,
        request: &Parts,
        body: Incoming,
        origin: &Origin,
        record: &mut Record,
    ) -> Result<Response<Answer>, Problem> {
        if let Origin::Peer(_, stamp) = origin {
            self.catch_up(&stamp.table).await?;
        }
        let body = Kept::read(body, self.shared.limits.replay_bytes)
            .await
            .map_err(|error| Problem::Body(innermost(&error)))?;
        let routed = self.route(request, &body, origin, record).await;
        if routed.is_err() {
            body.drain().await;
        }
        routed
    }

    /// Whatever happened is an answer, and is recorded when its last byte has gone.
    pub(crate) fn finish(
        &self,
        result: Result<Response<Answer>, Problem>,
        mut record: Record,
    ) -> Response<Answer> {
        let response = match result {
            Ok(mut response) => {
                let text = |name| {
                    let value: Option<&HeaderValue> = response.headers().get(name);
                    value
                        .and_then(|value| value.to_str().ok())
                        .map(str::to_owned)
                };
                let (code, outcome) = (text(peer::CODE), text(peer::OUTCOME));
                let code = code.map_or(Cow::Borrowed(""), Cow::Owned);
                record.answered(response.status(), code, outcome.as_deref());
                response.headers_mut().insert(peer::TRACE, record.trace());
                response
            }
            Err(problem) => {
                let mut response = problem.response(&record.trace());
                if let Problem::NotOwner { table, .. } = &problem
                    && let Ok(table) = HeaderValue::try_from(table)
                {
                    response.headers_mut().insert(peer::TABLE, table);
                }
                let outcome = Some(problem.outcome().name());
                record.in_flight = None;
                record.answered(problem.status(), Cow::Borrowed(problem.code()), outcome);
                response
            }
        };
        response.map(|body| body.witnessed(Box::new(record)))
    }
}

/// What the strict reader said, out of hyper's wrapping.
fn innermost(error: &hyper::Error) -> String {
    let mut source: &dyn std::error::Error = error;
    while let Some(cause) = source.source() {
        source = cause;
    }
    source.to_string()
}

/// Clients' port.
pub(crate) struct Edge(pub(crate) Rc<Flow>);

impl Service for Edge {
    async fn call(&self, request: Request<Incoming>, from: SocketAddr) -> Response<Answer> {
        let (mut parts, body) = request.into_parts();
        let mut record = self.0.begin(&parts, from);
        let result = match admit::edge(&mut parts) {
            Ok(origin) => self.0.admitted(&parts, body, &origin, &mut record).await,
            Err(problem) => Err(problem),
        };
        self.0.finish(result, record)
    }
}

/// Other gateways' port.
pub(crate) struct PeerPort(pub(crate) Rc<Flow>);

impl Service for PeerPort {
    async fn call(&self, request: Request<Incoming>, from: SocketAddr) -> Response<Answer> {
        let (mut parts, body) = request.into_parts();
        if parts.method == Method::GET && parts.uri.path() == peer::ALIVE_PATH {
            return Response::new(Answer::ours("alive\n"));
        }
        let mut record = self.0.begin(&parts, from);
        let result = match admit::peer(&mut parts, &self.0.shared.key) {
            Ok(origin) => {
                if let Origin::Peer(_, stamp) = &origin {
                    record.origin(&origin, Some(&stamp.trace));
                }
                self.0.admitted(&parts, body, &origin, &mut record).await
            }
            Err(problem) => Err(problem),
        };
        self.0.finish(result, record)
    }
}
