//! The ways in and out of a node, with the world's links on them.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use atoll_runtime::{Runtime, Stream};
use http_body_util::{Either, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, Uri};
use tokio::io::copy_bidirectional;
use tokio::time::timeout;
use tracing::{debug, warn};

use super::EtcdError;

/// How long another node may take to be reached; over a cut link it never is.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Takes connections from the world and passes them on to an inner port.
pub(super) async fn inward(
    runtime: &Runtime,
    at: SocketAddr,
    inner: SocketAddr,
) -> Result<(), EtcdError> {
    let listener = runtime.listen(at).await;
    let listener = listener.map_err(|source| EtcdError::Listen { at, source })?;
    let runtime = runtime.clone();
    let tasks = runtime.tasks().clone();
    let work = async move {
        loop {
            let Some(stream) = accepted(listener.accept().await) else {
                continue;
            };
            let runtime = runtime.clone();
            let pass = pass(runtime.clone(), stream, inner);
            runtime.tasks().spawn("etcd: relay", pass);
        }
    };
    tasks.spawn(format!("etcd: {at}"), work);
    Ok(())
}

fn accepted(result: io::Result<(Stream, SocketAddr)>) -> Option<Stream> {
    match result {
        Ok((stream, _)) => Some(stream),
        Err(error) => {
            warn!(%error, "a connection could not be taken");
            None
        }
    }
}

async fn pass(runtime: Runtime, mut outer: Stream, inner: SocketAddr) {
    let shutdown = runtime.shutdown();
    let work = async {
        let mut inner = runtime.connect_plain(inner).await?;
        copy_bidirectional(&mut outer, &mut inner).await
    };
    tokio::select! {
        ended = work => if let Err(error) = ended {
            debug!(%error, "relay ended");
        },
        () = shutdown.requested() => {}
    }
}

/// A proxy for requests to the other nodes, by their names.
pub(super) async fn outward(
    runtime: &Runtime,
    at: SocketAddr,
    ways: BTreeMap<String, SocketAddr>,
) -> Result<(), EtcdError> {
    let listener = runtime.listen_plain(at).await;
    let listener = listener.map_err(|source| EtcdError::Listen { at, source })?;
    let (runtime, ways) = (runtime.clone(), Arc::new(ways));
    let tasks = runtime.tasks().clone();
    let work = async move {
        loop {
            let Some(stream) = accepted(listener.accept().await) else {
                continue;
            };
            let (runtime, ways) = (runtime.clone(), ways.clone());
            let serve = serve(runtime.clone(), stream, ways);
            runtime.tasks().spawn("etcd: proxy", serve);
        }
    };
    tasks.spawn(format!("etcd: {at}"), work);
    Ok(())
}

async fn serve(runtime: Runtime, stream: Stream, ways: Arc<BTreeMap<String, SocketAddr>>) {
    let shutdown = runtime.shutdown();
    let service = service_fn(|request| {
        let (runtime, ways) = (runtime.clone(), ways.clone());
        async move { Ok::<_, Infallible>(forward(&runtime, request, &ways).await) }
    });
    let connection =
        hyper::server::conn::http1::Builder::new().serve_connection(stream.hyper(), service);
    tokio::select! {
        ended = connection => if let Err(error) = ended {
            debug!(%error, "proxy connection ended");
        },
        () = shutdown.requested() => {}
    }
}

type Answer = Response<Either<Incoming, Empty<Bytes>>>;

/// One request on a connection of its own: etcd's streams live long, and the rest is rare.
async fn forward(
    runtime: &Runtime,
    mut request: Request<Incoming>,
    ways: &BTreeMap<String, SocketAddr>,
) -> Answer {
    let refused = |status| {
        let mut answer = Response::new(Either::Right(Empty::new()));
        *answer.status_mut() = status;
        answer
    };
    let way = request.uri().host().and_then(|host| ways.get(host));
    let Some(to) = way.copied() else {
        return refused(StatusCode::NOT_FOUND);
    };
    let path = request.uri().path_and_query().map(ToString::to_string);
    let Some(path) = path.and_then(|path| path.parse::<Uri>().ok()) else {
        return refused(StatusCode::BAD_REQUEST);
    };
    *request.uri_mut() = path;
    let connect = async {
        let stream = runtime.connect(to).await?;
        let shaken = hyper::client::conn::http1::handshake(stream.hyper()).await;
        shaken.map_err(io::Error::other)
    };
    let Ok(Ok((mut sender, connection))) = timeout(CONNECT_LIMIT, connect).await else {
        return refused(StatusCode::BAD_GATEWAY);
    };
    // Ends with the answer's body, which etcd ends.
    runtime.tasks().spawn("etcd: to a peer", async move {
        drop(connection.await);
    });
    match sender.send_request(request).await {
        Ok(answer) => answer.map(Either::Left),
        Err(error) => {
            debug!(%error, "a peer gave no answer");
            refused(StatusCode::BAD_GATEWAY)
        }
    }
}
