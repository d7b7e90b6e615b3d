//! The application: one process per cell. Of Atoll it knows three things: the header that names the
//! user, the address of its database, and the comment that tells the database whose data is meant.

mod accounts;
mod http;
mod outcome;
mod sql;

pub(crate) use accounts::LEDGER;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use hyper_util::rt::TokioIo;
use tokio::net::TcpSocket;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::talk;

/// How long requests in flight may take to end after SIGTERM.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);
/// Client connections waiting to be accepted.
const BACKLOG: u32 = 1024;

/// `bank serve`
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Where to serve HTTP
    #[arg(long, value_name = "IP:PORT")]
    pub listen: SocketAddr,
    /// The cell's database
    #[arg(long, value_name = "IP:PORT")]
    pub sql: SocketAddr,
    /// The cell that this instance belongs to, told in its answers
    #[arg(long, value_name = "NAME")]
    pub cell: Option<String>,
    /// Source address of its database connections [default: the address that it serves on]
    #[arg(long, value_name = "IP")]
    pub source: Option<IpAddr>,
    /// Database user
    #[arg(long, default_value = "bank")]
    pub sql_user: String,
    /// Database name
    #[arg(long, default_value = "bank")]
    pub sql_database: String,
    /// Startup options for the database, as in `-c search_path=s00017`; Atoll needs none
    #[arg(long)]
    pub sql_options: Option<String>,
    /// Database connections at most
    #[arg(long, default_value_t = 32)]
    pub sql_connections_max: usize,
}

/// Serves until SIGTERM or SIGINT, then finishes what it began.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    serve(options, stop, |address| {
        talk::data(&format!("ready bank http={address}"));
    })
    .await
}

/// Serves until `stop`; calls `ready` with the address once it does.
pub async fn serve(
    options: Options,
    stop: impl Future<Output = ()>,
    ready: impl FnOnce(SocketAddr),
) -> anyhow::Result<()> {
    let socket = match options.listen {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket
        .bind(options.listen)
        .with_context(|| format!("listening on {}", options.listen))?;
    let listener = socket.listen(BACKLOG)?;
    let address = listener.local_addr()?;
    let bank = Arc::new(http::Bank::new(&options));
    ready(address);

    let (draining, drain) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    stream.set_nodelay(true).ok();
                    connections.spawn(connection(Arc::clone(&bank), TokioIo::new(stream), drain.clone()));
                }
                Err(error) => {
                    talk::say(&format!("bank: accepting: {error}"));
                    // Out of file descriptors: let some end before the next try.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }
    drop(listener);
    draining.send_replace(true);
    let all = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN_LIMIT, all).await.is_err() {
        talk::say(&format!(
            "bank: {} connections cut after {DRAIN_LIMIT:?}",
            connections.len()
        ));
    }
    Ok(())
}

async fn connection<I>(bank: Arc<http::Bank>, io: I, mut drain: watch::Receiver<bool>)
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let service = hyper::service::service_fn(move |request| {
        let bank = Arc::clone(&bank);
        async move { Ok::<_, std::convert::Infallible>(bank.answer(request).await) }
    });
    let mut serving =
        std::pin::pin!(hyper::server::conn::http1::Builder::new().serve_connection(io, service));
    // A client that goes away in the middle is its own affair: the request's outcome is in the
    // database either way.
    tokio::select! {
        _ = serving.as_mut() => return,
        _ = drain.wait_for(|draining| *draining) => {}
    }
    serving.as_mut().graceful_shutdown();
    serving.await.ok();
}
