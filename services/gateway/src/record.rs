//! What is written down of each request: one line in the access log, and the counters. The path
//! only puts a record into its worker's ring; one task writes.

use std::borrow::Cow;
use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use atoll_proxy::{End, Witness};
use atoll_telemetry::{Histogram, IntCounter};
use atoll_topology::{Epoch, ShardId};
use http::{HeaderValue, Method, StatusCode};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::admit::{EDGE, Origin};
use crate::gate::InFlight;
use crate::metrics::{CellStats, GatewayMetrics, Waited};

/// Characters of a path that are logged.
const PATH_CHARS: usize = 200;

/// One line of the access log.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) origin: &'static str,
    pub(crate) from: SocketAddr,
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) status: u16,
    pub(crate) outcome: &'static str,
    pub(crate) code: Cow<'static, str>,
    pub(crate) reason: String,
    pub(crate) shard: Option<ShardId>,
    pub(crate) epoch: Option<Epoch>,
    pub(crate) upstream: Option<SocketAddr>,
    pub(crate) held: Duration,
    pub(crate) took: Duration,
    pub(crate) body_bytes: u64,
    pub(crate) trace: HeaderValue,
}

/// A worker's end of the log, and its counters, looked up once.
#[derive(Debug)]
pub(crate) struct Recorder {
    ring: mpsc::Sender<Line>,
    metrics: Arc<GatewayMetrics>,
    counters: RefCell<Vec<((&'static str, &'static str), IntCounter)>>,
    edge: Histogram,
    peer: Histogram,
}

/// One request's record while it is under way. Dropped before its end, it says that the client went
/// away.
#[derive(Debug)]
pub(crate) struct Record {
    recorder: Rc<Recorder>,
    begun: Instant,
    line: Option<Box<Line>>,
    /// The cell that was asked, to know how it answers.
    pub(crate) cell: Option<Arc<CellStats>>,
    /// Counts the request at this cell's gate until the answer has ended.
    pub(crate) in_flight: Option<InFlight>,
    waited: Waited,
    unix_ms: u64,
}

impl Recorder {
    pub(crate) fn new(ring: mpsc::Sender<Line>, metrics: Arc<GatewayMetrics>) -> Self {
        Self {
            ring,
            counters: RefCell::default(),
            edge: metrics.seconds.with_label_values(&["edge"]),
            peer: metrics.seconds.with_label_values(&["peer"]),
            metrics,
        }
    }

    fn count(&self, origin: &'static str, outcome: &'static str) {
        let mut counters = self.counters.borrow_mut();
        if let Some((_, counter)) = counters.iter().find(|(key, _)| *key == (origin, outcome)) {
            counter.inc();
            return;
        }
        let counter = self.metrics.requests.with_label_values(&[origin, outcome]);
        counter.inc();
        counters.push(((origin, outcome), counter));
    }
}

impl Record {
    pub(crate) fn begin(
        recorder: Rc<Recorder>,
        from: SocketAddr,
        request: &http::request::Parts,
        trace: HeaderValue,
        unix_ms: u64,
    ) -> Self {
        let line = Line {
            origin: EDGE,
            from,
            method: request.method.clone(),
            path: request.uri.path().chars().take(PATH_CHARS).collect(),
            status: 0,
            outcome: "client-gone",
            code: Cow::Borrowed(""),
            reason: String::new(),
            shard: None,
            epoch: None,
            upstream: None,
            held: Duration::ZERO,
            took: Duration::ZERO,
            body_bytes: 0,
            trace,
        };
        let line = Some(Box::new(line));
        Self {
            recorder,
            begun: Instant::now(),
            line,
            cell: None,
            in_flight: None,
            waited: Waited::No,
            unix_ms,
        }
    }

    /// It found the gate closed; counted once, however often, and where its client asked.
    pub(crate) fn waits(&mut self) {
        let edge = self.line.as_ref().is_some_and(|line| line.origin == EDGE);
        if edge && self.waited == Waited::No {
            self.waited = Waited::Yes;
            self.recorder.metrics.totals.held();
        }
    }

    /// What is filled in on the way.
    pub(crate) fn line(&mut self) -> Option<&mut Line> {
        self.line.as_deref_mut()
    }

    pub(crate) fn trace(&self) -> HeaderValue {
        self.line
            .as_ref()
            .map_or(HeaderValue::from_static(""), |line| line.trace.clone())
    }

    pub(crate) fn origin(&mut self, origin: &Origin, trace: Option<&HeaderValue>) {
        if let Some(line) = self.line() {
            line.origin = origin.name();
            if let Some(trace) = trace {
                line.trace = trace.clone();
            }
        }
    }

    /// The status is known: `code` and `outcome` where the answer is ours or a gateway's.
    pub(crate) fn answered(
        &mut self,
        status: StatusCode,
        code: Cow<'static, str>,
        outcome: Option<&str>,
    ) {
        let outcome = match outcome {
            Some("unknown") => "unknown",
            Some("not-sent") if status.is_server_error() => "not-sent",
            _ if status.is_server_error() => "server-error",
            _ if status.is_client_error() => "client-error",
            _ => "ok",
        };
        if let Some(line) = self.line() {
            line.status = status.as_u16();
            line.code = code;
            line.outcome = outcome;
        }
        if let Some(cell) = self.cell.take() {
            // What was refused to a client that asked wrongly, the cell has answered well.
            let well = if status.is_server_error() {
                Err(())
            } else {
                Ok(self.unix_ms)
            };
            let held = self.line.as_ref().map_or(Duration::ZERO, |line| line.held);
            cell.answered(self.begun.elapsed().saturating_sub(held), well);
        }
    }

    fn finish(&mut self, end: Option<(End, u64)>) {
        self.in_flight = None;
        let Some(mut line) = self.line.take() else {
            return;
        };
        line.took = self.begun.elapsed();
        match end {
            Some((End::Whole, bytes)) => line.body_bytes = bytes,
            Some((End::UpstreamFailed, bytes)) => {
                line.body_bytes = bytes;
                line.outcome = "answer-cut";
            }
            Some((End::ClientGone, bytes)) => {
                line.body_bytes = bytes;
                line.outcome = "client-gone";
            }
            None => line.outcome = "client-gone",
        }
        let recorder = &self.recorder;
        recorder.count(line.origin, line.outcome);
        match line.origin {
            EDGE => {
                recorder.edge.observe(line.took.as_secs_f64());
                recorder.metrics.totals.ended(line.outcome, self.waited);
            }
            "peer" => recorder.peer.observe(line.took.as_secs_f64()),
            _ => return,
        }
        if recorder.ring.try_send(*line).is_err() {
            recorder.metrics.access_dropped.inc();
        }
    }
}

impl Witness for Record {
    fn ended(mut self: Box<Self>, end: End, body_bytes: u64) {
        self.finish(Some((end, body_bytes)));
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.finish(None);
    }
}

/// Writes the lines of all workers, until they are gone.
pub(crate) async fn write(mut rings: Vec<mpsc::Receiver<Line>>) {
    const BATCH: usize = 256;
    const PAUSE: Duration = Duration::from_millis(20);
    let mut lines = Vec::with_capacity(BATCH);
    while !rings.is_empty() {
        let mut idle = true;
        rings.retain_mut(|ring| {
            loop {
                match ring.try_recv() {
                    Ok(line) => lines.push(line),
                    Err(mpsc::error::TryRecvError::Empty) => return true,
                    Err(mpsc::error::TryRecvError::Disconnected) => return false,
                }
                if lines.len() >= BATCH {
                    return true;
                }
            }
        });
        for line in lines.drain(..) {
            idle = false;
            line.write();
        }
        if idle && !rings.is_empty() {
            // The log may lag; the path must not be woken for it.
            tokio::time::sleep(PAUSE).await;
        }
    }
}

impl Line {
    fn write(&self) {
        tracing::info!(
            target: "access",
            origin = self.origin,
            from = %self.from,
            method = %self.method,
            path = %self.path,
            status = self.status,
            outcome = self.outcome,
            code = %self.code,
            reason = %self.reason,
            shard = self.shard.map(|shard| shard.0),
            epoch = self.epoch.map(|epoch| epoch.get()),
            upstream = self.upstream.map(tracing::field::display),
            held_ms = u64::try_from(self.held.as_millis()).unwrap_or(u64::MAX),
            took_us = u64::try_from(self.took.as_micros()).unwrap_or(u64::MAX),
            body_bytes = self.body_bytes,
            request = self.trace.to_str().unwrap_or_default(),
        );
    }
}
