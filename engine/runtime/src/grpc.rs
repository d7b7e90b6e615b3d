//! gRPC channels on our own sockets.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

use crate::Runtime;

/// Limit for one attempt to connect.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// A ping this often, also on an idle connection: a cut is silent, and without pings a stream over
/// it would hang for ever.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(1);
/// A ping that is not answered for this long ends the connection.
const KEEP_ALIVE_LIMIT: Duration = Duration::from_secs(2);

/// Limit for one attempt to connect to a server that is not ours.
const FOREIGN_CONNECT_LIMIT: Duration = Duration::from_millis(500);

impl Runtime {
    /// A channel to a server that is not ours, which may take frequent pings for an attack: whoever
    /// uses it has a time limit for each call, and drops the channel after a silent one.
    #[expect(
        clippy::expect_used,
        reason = "the URI is made of an address and always parses"
    )]
    pub fn grpc_channel_without_pings(&self, to: SocketAddr) -> Channel {
        let runtime = self.clone();
        Endpoint::from_shared(format!("http://{to}"))
            .expect("a socket address is an authority")
            .connect_timeout(FOREIGN_CONNECT_LIMIT)
            .connect_with_connector_lazy(tower::service_fn(move |_: http::Uri| {
                let runtime = runtime.clone();
                async move { Ok::<_, io::Error>(runtime.connect(to).await?.hyper()) }
            }))
    }

    /// A channel that connects when it is first used and again after a loss.
    #[expect(
        clippy::expect_used,
        reason = "the URI is made of an address and always parses"
    )]
    pub fn grpc_channel(&self, to: SocketAddr) -> Channel {
        let runtime = self.clone();
        Endpoint::from_shared(format!("http://{to}"))
            .expect("a socket address is an authority")
            .connect_timeout(CONNECT_LIMIT)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_LIMIT)
            .keep_alive_while_idle(true)
            .connect_with_connector_lazy(tower::service_fn(move |_: http::Uri| {
                let runtime = runtime.clone();
                async move { Ok::<_, io::Error>(runtime.connect(to).await?.hyper()) }
            }))
    }
}
