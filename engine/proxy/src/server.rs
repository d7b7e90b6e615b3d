//! Accepts connections on one worker and serves strict HTTP/1 on them until told to end.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use atoll_runtime::{Listener, Shutdown, Stream};
use http::{HeaderValue, Request, Response, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use crate::body::Answer;
use crate::guarded::{Busy, Guarded, ReadTimes};
use crate::strict::StrictLimits;

/// Limits of one listener on one worker.
#[derive(Debug, Clone, Copy)]
pub struct ServerLimits {
    /// What a request may look like.
    pub strict: StrictLimits,
    /// How long a client may keep us waiting.
    pub times: ReadTimes,
    /// Connections at a time; more wait in the kernel's queue.
    pub connections_max: usize,
    /// How long an unused connection lives on when the process is ending: a request that is
    /// already under way on it still finds somebody.
    pub drain_idle: Duration,
    /// How long requests may take to end when the process is ending.
    pub drain: Duration,
}

/// Answers requests; never fails, an error is an answer.
pub trait Service: 'static {
    /// One request, from `from`.
    fn call(
        &self,
        request: Request<Incoming>,
        from: SocketAddr,
    ) -> impl Future<Output = Response<Answer>>;
}

/// What was left at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Served {
    /// Connections that were cut because their time was up.
    pub cut: usize,
}

/// Serves until shutdown, then drains.
pub async fn serve<S: Service>(
    listener: Listener,
    service: Rc<S>,
    limits: ServerLimits,
    shutdown: Shutdown,
) -> Served {
    let connections = TaskTracker::new();
    let room = Rc::new(Semaphore::new(limits.connections_max));
    loop {
        let Ok(permit) = Rc::clone(&room).acquire_permit().await else {
            break;
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.requested() => break,
        };
        match accepted {
            Ok((stream, from)) => {
                let connection =
                    connection(stream, from, Rc::clone(&service), limits, shutdown.clone());
                connections.spawn_local(async move {
                    connection.await;
                    drop(permit);
                });
            }
            // The listener has paused already: nothing is lost, the client is still queued.
            Err(error) => tracing::warn!(listener = %listener.local_addr(), %error, "accept"),
        }
    }
    // Closes the port: the next connection finds another process.
    drop(listener);
    connections.close();
    match tokio::time::timeout(limits.drain, connections.wait()).await {
        Ok(()) => Served::default(),
        Err(_) => Served {
            cut: connections.len(),
        },
    }
}

/// One place among `connections_max`.
struct Permit(Rc<Semaphore>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.add_permits(1);
    }
}

trait AcquirePermit {
    async fn acquire_permit(self) -> Result<Permit, tokio::sync::AcquireError>;
}

impl AcquirePermit for Rc<Semaphore> {
    async fn acquire_permit(self) -> Result<Permit, tokio::sync::AcquireError> {
        self.acquire().await?.forget();
        Ok(Permit(self))
    }
}

async fn connection<S: Service>(
    stream: Stream,
    from: SocketAddr,
    service: Rc<S>,
    limits: ServerLimits,
    shutdown: Shutdown,
) {
    let busy = Busy::default();
    let guarded = Guarded::new(stream, limits.strict, limits.times, busy.clone());
    let ending = shutdown.clone();
    let answer = service_fn(move |request| {
        let (service, busy, ending) = (Rc::clone(&service), busy.enter(), ending.clone());
        async move {
            let mut response = service.call(request, from).await;
            if ending.is_requested() {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(header::CONNECTION, close);
            }
            Ok::<_, Infallible>(response.map(|body| body.busy(busy)))
        }
    });
    let served = http1::Builder::new()
        .half_close(false)
        .header_read_timeout(None)
        .max_headers(limits.strict.headers_max + 1)
        .serve_connection(TokioIo::new(guarded), answer);
    let mut served = std::pin::pin!(served);
    let ended = tokio::select! {
        ended = served.as_mut() => Some(ended),
        () = shutdown.requested() => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => match tokio::time::timeout(limits.drain_idle, served.as_mut()).await {
            Ok(ended) => ended,
            Err(_) => {
                served.as_mut().graceful_shutdown();
                served.await
            }
        },
    };
    if let Err(error) = ended {
        // A client that goes away is an everyday event; its requests have been recorded.
        tracing::debug!(%from, %error, "connection ended");
    }
}
