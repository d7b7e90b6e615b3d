//! One worker's connections to upstreams, kept for each address.
//!
//! A request is handed to a connection once. What surely never left (refused, timed out while
//! connecting, the connection closed before the request was written) comes back whole, so that it
//! may go elsewhere; what may have left comes back as `Unknown`, and only the caller can say
//! whether a repeat is harmless.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use atoll_runtime::Runtime;
use http::{Request, Response};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::body::{Answer, Outgoing};

/// Limits of one worker's pool.
#[derive(Debug, Clone, Copy)]
pub struct PoolLimits {
    /// How long a connection may take to be made.
    pub connect: Duration,
    /// How long a connection is kept unused; shorter than the upstream keeps it.
    pub idle: Duration,
    /// How long an answer's body may stand still.
    pub body: Duration,
    /// Connections to one address.
    pub connections_max: usize,
    /// Header fields of an answer.
    pub headers_max: usize,
    /// Bytes of an answer's head.
    pub head_bytes_max: usize,
}

/// Why a request has no answer.
#[derive(Debug)]
pub enum Failure {
    /// Nothing of it was written: it was surely not executed.
    Unsent {
        /// Why.
        reason: Unsent,
        /// The request, whole.
        request: Box<Request<Outgoing>>,
    },
    /// It was written, at least in part: it may have been executed.
    Unknown {
        /// What the connection said.
        error: hyper::Error,
        /// Whether the connection had answered requests before: it may have been closing just then.
        reused: bool,
    },
}

/// Why a request surely never left.
#[derive(Debug, thiserror::Error)]
pub enum Unsent {
    /// No connection: refused, unreachable.
    #[error("no connection to {0}")]
    Refused(SocketAddr, #[source] io::Error),
    /// No connection in time.
    #[error("no connection to {0} within {1:?}")]
    ConnectTimeout(SocketAddr, Duration),
    /// Too many connections to this address.
    #[error("all {1} connections to {0} are busy")]
    Busy(SocketAddr, usize),
    /// A fresh connection closed before the request was written.
    #[error("{0} closed the connection before the request was written")]
    Closed(SocketAddr),
}

#[derive(Debug)]
struct Target {
    address: SocketAddr,
    idle: RefCell<VecDeque<Idle>>,
    connections: Cell<usize>,
    outstanding: Cell<usize>,
    heard: Cell<Option<Instant>>,
}

#[derive(Debug)]
struct Idle {
    connection: Connection,
    since: Instant,
}

#[derive(Debug)]
struct Connection {
    sender: http1::SendRequest<Outgoing>,
    /// Ends the connection's task with the connection.
    _task: Owned,
    _counted: Counted,
}

#[derive(Debug)]
struct Owned(AbortHandle);

impl Drop for Owned {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[derive(Debug)]
struct Counted(Rc<Target>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.set(self.0.connections.get() - 1);
    }
}

/// A connection while it carries a request; goes back to the pool only after a whole answer.
#[derive(Debug)]
pub struct Lease {
    connection: Option<Connection>,
    target: Rc<Target>,
}

impl Lease {
    pub(crate) fn give_back(mut self) {
        if let Some(connection) = self.connection.take()
            && !connection.sender.is_closed()
        {
            self.target.idle.borrow_mut().push_back(Idle {
                connection,
                since: Instant::now(),
            });
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.target
            .outstanding
            .set(self.target.outstanding.get() - 1);
    }
}

/// One worker's connections.
pub struct Pool {
    runtime: Runtime,
    limits: PoolLimits,
    targets: RefCell<BTreeMap<SocketAddr, Rc<Target>>>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool")
            .field("targets", &self.targets)
            .finish_non_exhaustive()
    }
}

impl Pool {
    /// An empty pool; lives and dies with its worker.
    pub fn new(runtime: Runtime, limits: PoolLimits) -> Self {
        Self {
            runtime,
            limits,
            targets: RefCell::default(),
        }
    }

    /// Requests to this address without a whole answer: what least-request balancing compares.
    pub fn outstanding(&self, to: SocketAddr) -> usize {
        self.targets
            .borrow()
            .get(&to)
            .map_or(0, |target| target.outstanding.get())
    }

    /// When this address last began an answer.
    pub fn heard(&self, from: SocketAddr) -> Option<Instant> {
        self.targets
            .borrow()
            .get(&from)
            .and_then(|target| target.heard.get())
    }

    /// Forgets the unused connections to an address that has been found dead: whoever answers there
    /// next is another process.
    pub fn forget(&self, to: SocketAddr) {
        if let Some(target) = self.targets.borrow().get(&to) {
            target.idle.borrow_mut().clear();
        }
    }

    /// Closes what has been unused for too long. Called every few seconds.
    pub fn sweep(&self) {
        let now = Instant::now();
        let mut targets = self.targets.borrow_mut();
        for target in targets.values() {
            let fresh = |idle: &Idle| {
                now.duration_since(idle.since) < self.limits.idle
                    && !idle.connection.sender.is_closed()
            };
            target.idle.borrow_mut().retain(fresh);
        }
        // A busy target is also held by its leases.
        targets.retain(|_, target| Rc::strong_count(target) > 1 || target.connections.get() > 0);
    }

    /// Sends one request and waits for the head of its answer. Dropping the future closes the
    /// connection; how long to wait is the caller's decision.
    pub async fn send(
        &self,
        to: SocketAddr,
        request: Request<Outgoing>,
    ) -> Result<Response<Answer>, Failure> {
        let target = self.target(to);
        target.outstanding.set(target.outstanding.get() + 1);
        let mut lease = Lease {
            connection: None,
            target,
        };
        let mut request = request;
        loop {
            let reused = self.take_idle(&lease.target);
            let was_reused = reused.is_some();
            let mut connection = match reused {
                Some(connection) => connection,
                None => match self.connect(&lease.target).await {
                    Ok(connection) => connection,
                    Err(reason) => {
                        return Err(Failure::Unsent {
                            reason,
                            request: Box::new(request),
                        });
                    }
                },
            };
            match connection.sender.try_send_request(request).await {
                Ok(response) => {
                    lease.target.heard.set(Some(Instant::now()));
                    lease.connection = Some(connection);
                    return Ok(response.map(|body| Answer::upstream(body, lease, self.limits.body)));
                }
                Err(mut error) => match error.take_message() {
                    // An unused connection had been closed: the next one.
                    Some(unsent) if was_reused => request = unsent,
                    Some(unsent) => {
                        return Err(Failure::Unsent {
                            reason: Unsent::Closed(to),
                            request: Box::new(unsent),
                        });
                    }
                    None => {
                        return Err(Failure::Unknown {
                            error: error.into_error(),
                            reused: was_reused,
                        });
                    }
                },
            }
        }
    }

    fn target(&self, to: SocketAddr) -> Rc<Target> {
        let mut targets = self.targets.borrow_mut();
        let fresh = || {
            Rc::new(Target {
                address: to,
                idle: RefCell::default(),
                connections: Cell::new(0),
                outstanding: Cell::new(0),
                heard: Cell::new(None),
            })
        };
        Rc::clone(targets.entry(to).or_insert_with(fresh))
    }

    /// The connection used last, so that surplus ones grow old.
    fn take_idle(&self, target: &Target) -> Option<Connection> {
        let now = Instant::now();
        let mut idle = target.idle.borrow_mut();
        let mut at = idle.len();
        while at > 0 {
            at -= 1;
            let sender = &idle[at].connection.sender;
            let stale = now.duration_since(idle[at].since) >= self.limits.idle;
            if sender.is_closed() || stale {
                drop(idle.remove(at));
            } else if sender.is_ready() {
                return idle.remove(at).map(|idle| idle.connection);
            }
        }
        None
    }

    async fn connect(&self, target: &Rc<Target>) -> Result<Connection, Unsent> {
        let to = target.address;
        if target.connections.get() >= self.limits.connections_max {
            return Err(Unsent::Busy(to, self.limits.connections_max));
        }
        target.connections.set(target.connections.get() + 1);
        let counted = Counted(Rc::clone(target));
        let stream = tokio::time::timeout(self.limits.connect, self.runtime.connect(to))
            .await
            .map_err(|_| Unsent::ConnectTimeout(to, self.limits.connect))?
            .map_err(|error| Unsent::Refused(to, error))?;
        let (sender, connection) = http1::Builder::new()
            .max_headers(self.limits.headers_max)
            .max_header_size(self.limits.head_bytes_max)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| Unsent::Refused(to, io::Error::other(error)))?;
        let task = tokio::task::spawn_local(async move {
            // Whatever ends it is told to the request on it, or concerns nobody.
            drop(connection.await);
        });
        Ok(Connection {
            sender,
            _task: Owned(task.abort_handle()),
            _counted: counted,
        })
    }
}
