//! gRPC on our sockets: the channel connects lazily, again after a loss, and the server knows who
//! calls.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use atoll_runtime::{RealOptions, Runtime};
use tokio::sync::oneshot;
use tonic::transport::server::TcpConnectInfo;
use tonic::transport::{Channel, Server};
use tower::ServiceExt;

const LIMIT: Duration = Duration::from_secs(20);

fn runtime(source: &str) -> Runtime {
    let source: IpAddr = source.parse().expect("an address");
    Runtime::real(RealOptions {
        source: Some(source),
        ..RealOptions::default()
    })
}

/// Serves one kind of answer: the caller's address as a header.
async fn serve(runtime: &Runtime, at: SocketAddr) -> (SocketAddr, oneshot::Sender<()>) {
    let listener = runtime.listen(at).await.expect("the address is free");
    let at = listener.local_addr();
    let who = tower::service_fn(|request: http::Request<tonic::body::Body>| async move {
        let info = request
            .extensions()
            .get::<TcpConnectInfo>()
            .expect("who calls");
        let peer = info.remote_addr().expect("an address").ip().to_string();
        let answer = http::Response::builder().header("peer", peer);
        Ok::<_, std::convert::Infallible>(answer.body(tonic::body::Body::empty()).expect("valid"))
    });
    let (end, ended) = oneshot::channel::<()>();
    // Its connections end with it too; a server that is only dropped leaves them running.
    let server = Server::builder().serve_with_incoming_shutdown(who, listener.incoming(), async {
        drop(ended.await);
    });
    runtime
        .tasks()
        .spawn("server", async move { server.await.expect("it serves") });
    (at, end)
}

async fn ask(channel: &Channel) -> Result<String, tonic::transport::Error> {
    let request = http::Request::post("/any/Call").body(tonic::body::Body::empty());
    let answer = channel.clone().oneshot(request.expect("valid"));
    let answer = tokio::time::timeout(LIMIT, answer)
        .await
        .expect("an answer or an error")?;
    Ok(answer.headers()["peer"].to_str().expect("text").to_owned())
}

#[tokio::test]
async fn a_channel_connects_when_it_is_used_and_again_after_a_loss() {
    let (here, there) = (runtime("127.251.16.1"), runtime("127.251.32.1"));
    let any = SocketAddr::new(there.source().expect("given"), 0);
    // The port is not served yet when the channel is made.
    let at = there.listen(any).await.expect("a free port").local_addr();
    let channel = here.grpc_channel(at);
    assert!(ask(&channel).await.is_err(), "nobody serves");
    let (_, server) = serve(&there, at).await;
    assert_eq!(ask(&channel).await.expect("it connects"), "127.251.16.1");
    drop(server);
    there.tasks().end(LIMIT).await;
    assert!(ask(&channel).await.is_err(), "nobody serves any more");
    let (_, _server) = serve(&there, at).await;
    assert_eq!(
        ask(&channel).await.expect("it connects again"),
        "127.251.16.1"
    );
}
