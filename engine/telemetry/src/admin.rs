//! The admin endpoint of every process: health, readiness, metrics, and texts for debugging.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use atoll_runtime::{Listener, Runtime, Stream};
use axum::Router;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tracing::warn;

use crate::Metrics;

/// Gives a text when asked.
pub type Text = Arc<dyn Fn() -> String + Send + Sync>;

/// What a process shows.
#[derive(Clone)]
pub struct Admin {
    metrics: Metrics,
    ready: Arc<dyn Fn() -> Result<(), String> + Send + Sync>,
    debug: BTreeMap<&'static str, Text>,
}

impl Admin {
    /// Shows these metrics; ready from the start.
    pub fn new(metrics: Metrics) -> Self {
        Self {
            metrics,
            ready: Arc::new(|| Ok(())),
            debug: BTreeMap::new(),
        }
    }

    /// Answers `/readyz`: `Err` with the reason why not.
    #[must_use]
    pub fn ready(mut self, ready: impl Fn() -> Result<(), String> + Send + Sync + 'static) -> Self {
        self.ready = Arc::new(ready);
        self
    }

    /// Answers `/debug/<name>`, for instance `table`; JSON where the text begins like it.
    #[must_use]
    pub fn debug(
        mut self,
        name: &'static str,
        text: impl Fn() -> String + Send + Sync + 'static,
    ) -> Self {
        self.debug.insert(name, Arc::new(text));
        self
    }
}

/// Serves until shutdown, in a task of the runtime. Gives the address, with the real port.
pub async fn serve(runtime: &Runtime, at: SocketAddr, admin: Admin) -> io::Result<SocketAddr> {
    // Without links: the operator's eyes must not go blind with the network under test.
    let listener = runtime.listen_plain(at).await?;
    let at = listener.local_addr();
    let routes = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/debug/{name}", get(debug))
        .with_state(Arc::new(admin));
    let shutdown = runtime.shutdown();
    runtime.tasks().spawn("admin", async move {
        // A plain stop, not a graceful one: a scraper's idle connection must not delay the end.
        tokio::select! {
            served = axum::serve(Incoming(listener), routes).into_future() => {
                if let Err(error) = served {
                    warn!(%error, "admin endpoint ended");
                }
            }
            () = shutdown.requested() => {}
        }
    });
    Ok(at)
}

async fn ready(State(admin): State<Arc<Admin>>) -> Response {
    match (admin.ready)() {
        Ok(()) => "ready\n".into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

async fn metrics(State(admin): State<Arc<Admin>>) -> Response {
    match admin.metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn debug(State(admin): State<Arc<Admin>>, Path(name): Path<String>) -> Response {
    let Some(text) = admin.debug.get(name.as_str()) else {
        let names: Vec<_> = admin.debug.keys().copied().collect();
        let text = format!(
            "there is no /debug/{name}; there is: {}\n",
            names.join(", ")
        );
        return (StatusCode::NOT_FOUND, text).into_response();
    };
    let text = text();
    let kind = if text.starts_with(['{', '[']) {
        "application/json"
    } else {
        "text/plain"
    };
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

/// Runtime's listener, for `axum::serve`.
pub struct Incoming(pub Listener);

impl axum::serve::Listener for Incoming {
    type Io = Stream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Stream, SocketAddr) {
        loop {
            match self.0.accept().await {
                Ok(accepted) => return accepted,
                // The listener has paused already.
                Err(error) => warn!(%error, "connection not accepted"),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.0.local_addr())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use atoll_runtime::RealOptions;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn ask(runtime: &Runtime, at: SocketAddr, path: &str) -> String {
        let mut stream = runtime.connect(at).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn a_process_says_how_it_is_until_it_ends() {
        let runtime = Runtime::real(RealOptions::default());
        let metrics = Metrics::default();
        metrics
            .counter("switches_total", "Switches.")
            .unwrap()
            .inc_by(3);
        let is_ready = Arc::new(AtomicBool::new(false));
        let asked = is_ready.clone();
        let admin = Admin::new(metrics)
            .ready(move || {
                asked
                    .load(Ordering::SeqCst)
                    .then_some(())
                    .ok_or("no table yet".to_owned())
            })
            .debug("table", || r#"{"version":4}"#.to_owned());
        let at = serve(&runtime, "127.0.0.1:0".parse().unwrap(), admin)
            .await
            .unwrap();

        assert!(
            ask(&runtime, at, "/healthz")
                .await
                .starts_with("HTTP/1.1 200")
        );
        let not_ready = ask(&runtime, at, "/readyz").await;
        assert!(not_ready.starts_with("HTTP/1.1 503") && not_ready.contains("no table yet"));
        is_ready.store(true, Ordering::SeqCst);
        assert!(
            ask(&runtime, at, "/readyz")
                .await
                .starts_with("HTTP/1.1 200")
        );
        assert!(
            ask(&runtime, at, "/metrics")
                .await
                .contains("atoll_switches_total 3")
        );
        let table = ask(&runtime, at, "/debug/table").await;
        assert!(table.contains("application/json") && table.ends_with(r#"{"version":4}"#));
        let unknown = ask(&runtime, at, "/debug/tabel").await;
        assert!(unknown.starts_with("HTTP/1.1 404") && unknown.contains("there is: table"));

        runtime.shutdown().request();
        runtime.tasks().end(Duration::from_secs(10)).await;
        assert!(runtime.connect(at).await.is_err(), "the port is closed");
    }
}
