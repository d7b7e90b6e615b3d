//! The nodes: which one is asked, for how long, and which one next.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use atoll_runtime::Runtime;
use tokio::time::{Instant, sleep, timeout};
use tonic::metadata::MetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, ConnectError, Request, Response, Status};
use tracing::{debug, info};

use super::proto::RangeRequest;
use super::proto::kv_client::KvClient;
use super::proto::watch_client::WatchClient;

/// One node's time to answer; then the next one is asked at once.
pub(super) const ATTEMPT_LIMIT: Duration = Duration::from_millis(700);
/// All nodes' time, again and again: an election among them takes about a second.
const ANSWER_LIMIT: Duration = Duration::from_millis(2_100);
/// Pause after no node was of use.
pub(super) const AGAIN: Duration = Duration::from_millis(50);
/// How often the nearest node is tried again after it was left.
const HOME_AGAIN: Duration = Duration::from_secs(2);
/// Largest answer: a list of everything.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Asks the node to refuse at once where it knows no leader, instead of waiting for one.
#[derive(Debug, Clone, Copy)]
pub(super) struct WithLeader;

impl Interceptor for WithLeader {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let yes = MetadataValue::from_static("true");
        request.metadata_mut().insert("hasleader", yes);
        Ok(request)
    }
}

/// A client of one node's keys.
pub(super) type Kv = KvClient<InterceptedService<Channel, WithLeader>>;
/// A client of one node's watches.
pub(super) type Watches = WatchClient<InterceptedService<Channel, WithLeader>>;

/// Why a call has no answer.
#[derive(Debug)]
pub(super) enum Failed {
    /// Surely nothing was done.
    NotDone(String),
    /// It may have been done, or may yet be.
    Unknown(String),
    /// The cluster says that the call itself is wrong.
    Refused(Status),
}

/// Whether a call may be made again where its outcome is not known.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Repeat {
    Harmless,
    Never,
}

struct Endpoint {
    at: SocketAddr,
    channel: Mutex<Channel>,
}

/// All nodes, the nearest first.
pub(super) struct Endpoints {
    runtime: Runtime,
    all: Vec<Endpoint>,
    current: AtomicUsize,
    /// When the nearest one was tried last.
    home_tried: Mutex<Instant>,
    trying_home: AtomicBool,
}

impl Endpoints {
    pub(super) fn new(runtime: &Runtime, all: &[SocketAddr]) -> Self {
        let endpoint = |at: &SocketAddr| Endpoint {
            at: *at,
            channel: Mutex::new(runtime.grpc_channel_without_pings(*at)),
        };
        Self {
            all: all.iter().map(endpoint).collect(),
            runtime: runtime.clone(),
            current: AtomicUsize::new(0),
            home_tried: Mutex::new(Instant::now()),
            trying_home: AtomicBool::new(false),
        }
    }

    pub(super) fn count(&self) -> usize {
        self.all.len()
    }

    /// The node that answered last.
    pub(super) fn current(&self) -> usize {
        self.current.load(Ordering::Relaxed)
    }

    /// Leaves a node for the next one.
    pub(super) fn leave(&self, at: usize, why: &str) {
        let Some(endpoint) = self.all.get(at) else {
            return;
        };
        // What is sent on the old connection may be silently lost for as long as TCP hopes.
        let fresh = self.runtime.grpc_channel_without_pings(endpoint.at);
        *endpoint
            .channel
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = fresh;
        let next = (at + 1) % self.all.len();
        let left = self
            .current
            .compare_exchange(at, next, Ordering::Relaxed, Ordering::Relaxed);
        if left.is_ok() {
            debug!(endpoint = %endpoint.at, why, "node of the store left");
        }
    }

    fn channel(&self, at: usize) -> Option<InterceptedService<Channel, WithLeader>> {
        let channel = self.all.get(at)?.channel.lock();
        let channel = channel.unwrap_or_else(PoisonError::into_inner).clone();
        Some(InterceptedService::new(channel, WithLeader))
    }

    fn kv(&self, at: usize) -> Option<Kv> {
        let client = KvClient::new(self.channel(at)?);
        Some(client.max_decoding_message_size(ANSWER_BYTES_MAX))
    }

    pub(super) fn watches(&self, at: usize) -> Option<Watches> {
        let client = WatchClient::new(self.channel(at)?);
        Some(client.max_decoding_message_size(ANSWER_BYTES_MAX))
    }

    /// A call that may be made several times.
    pub(super) async fn read<T, F>(self: &Arc<Self>, call: impl Fn(Kv) -> F) -> Result<T, Failed>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        self.call(Repeat::Harmless, call).await
    }

    /// A call that is made again only where it was surely not taken.
    pub(super) async fn write<T, F>(self: &Arc<Self>, call: impl Fn(Kv) -> F) -> Result<T, Failed>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        self.call(Repeat::Never, call).await
    }

    async fn call<T, F>(
        self: &Arc<Self>,
        repeat: Repeat,
        call: impl Fn(Kv) -> F,
    ) -> Result<T, Failed>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let until = Instant::now() + ANSWER_LIMIT;
        let mut last = "no node is configured".to_owned();
        loop {
            for _ in 0..self.all.len() {
                let at = self.current();
                let Some(client) = self.kv(at) else { continue };
                let failed = match timeout(ATTEMPT_LIMIT, call(client)).await {
                    Ok(Ok(answer)) => {
                        self.try_home(at);
                        return Ok(answer.into_inner());
                    }
                    Ok(Err(status)) => judged(status),
                    Err(_) => {
                        let limit = ATTEMPT_LIMIT.as_millis();
                        Failed::Unknown(format!("no answer within {limit} ms"))
                    }
                };
                let why = match failed {
                    Failed::Refused(status) => return Err(Failed::Refused(status)),
                    Failed::Unknown(why) if repeat == Repeat::Never => {
                        self.leave(at, &why);
                        return Err(Failed::Unknown(self.named(at, &why)));
                    }
                    Failed::Unknown(why) | Failed::NotDone(why) => why,
                };
                self.leave(at, &why);
                last = self.named(at, &why);
                if Instant::now() >= until {
                    return Err(Failed::NotDone(last));
                }
            }
            if Instant::now() + AGAIN >= until {
                return Err(Failed::NotDone(last));
            }
            sleep(AGAIN).await;
        }
    }

    fn named(&self, at: usize, why: &str) -> String {
        match self.all.get(at) {
            Some(endpoint) => format!("{}: {why}", endpoint.at),
            None => why.to_owned(),
        }
    }

    /// Goes back to the nearest node once it answers again; asked beside, so that nobody waits for
    /// one that does not.
    fn try_home(self: &Arc<Self>, at: usize) {
        if at == 0 {
            return;
        }
        let mut tried = self
            .home_tried
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if tried.elapsed() < HOME_AGAIN || self.trying_home.swap(true, Ordering::Relaxed) {
            return;
        }
        *tried = Instant::now();
        drop(tried);
        let endpoints = self.clone();
        self.runtime
            .tasks()
            .spawn("store: nearest node", async move {
                if let Some(mut client) = endpoints.kv(0) {
                    // Linearizable, so it answers only with the others behind it.
                    let look = client.range(RangeRequest {
                        key: bytes::Bytes::from_static(super::FIRST_KEY),
                        count_only: true,
                        ..RangeRequest::default()
                    });
                    if matches!(timeout(ATTEMPT_LIMIT, look).await, Ok(Ok(_))) {
                        endpoints.current.store(0, Ordering::Relaxed);
                        info!("the nearest node of the store is used again");
                    } else {
                        endpoints.leave(0, "no answer");
                    }
                }
                endpoints.trying_home.store(false, Ordering::Relaxed);
            });
    }
}

/// What a status means for what was asked.
fn judged(status: Status) -> Failed {
    match status.code() {
        Code::InvalidArgument | Code::OutOfRange => return Failed::Refused(status),
        // The node says so before it takes anything.
        Code::Unavailable if status.message() == "etcdserver: no leader" => {
            return Failed::NotDone(status.message().to_owned());
        }
        Code::ResourceExhausted => return Failed::NotDone(status.message().to_owned()),
        _ => {}
    }
    let why = format!("{}: {}", status.code(), status.message());
    let mut source = std::error::Error::source(&status);
    while let Some(cause) = source {
        if cause.is::<ConnectError>() {
            return Failed::NotDone(why);
        }
        source = cause.source();
    }
    Failed::Unknown(why)
}
