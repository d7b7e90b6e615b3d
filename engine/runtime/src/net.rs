//! Connections and listeners: TCP with links, TCP without, or the simulator's.

#![expect(
    clippy::disallowed_types,
    reason = "this is the module that wraps tokio's sockets for everybody else"
)]

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tonic::transport::server::{Connected, TcpConnectInfo};
use tracing::warn;

use crate::linked::Inbound;
use crate::links::{Links, crossing};

/// Connections that may wait in the kernel for `accept`.
const BACKLOG: u32 = 1024;

/// Pause after an `accept` that failed for want of file descriptors: it would fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// One connection.
pub struct Stream {
    inner: Inner,
    local: SocketAddr,
    peer: SocketAddr,
}

enum Inner {
    Tcp(TcpStream),
    Linked(TcpStream, Box<Inbound>),
    #[cfg(feature = "simulation")]
    Simulated(Box<turmoil::net::TcpStream>),
    #[cfg(feature = "simulation")]
    SimulatedLinked(Box<turmoil::net::TcpStream>, Box<Inbound>),
}

impl Stream {
    /// Wraps a connection; `links` only matters where it crosses regions.
    pub(crate) fn tcp(stream: TcpStream, links: Option<&Links>) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let (local, peer) = (stream.local_addr()?, stream.peer_addr()?);
        let inner = match inbound(links, local, peer) {
            Some(inbound) => Inner::Linked(stream, inbound),
            None => Inner::Tcp(stream),
        };
        Ok(Self { inner, local, peer })
    }

    #[cfg(feature = "simulation")]
    pub(crate) fn simulated(
        stream: turmoil::net::TcpStream,
        links: Option<&Links>,
    ) -> io::Result<Self> {
        let (local, peer) = (stream.local_addr()?, stream.peer_addr()?);
        let (local, peer) = (
            crate::simulated::named(local),
            crate::simulated::named(peer),
        );
        let stream = Box::new(stream);
        let inner = match inbound(links, local, peer) {
            Some(inbound) => Inner::SimulatedLinked(stream, inbound),
            None => Inner::Simulated(stream),
        };
        Ok(Self { inner, local, peer })
    }

    /// The other end. Processes of a world bind what they send, so this tells who it is.
    pub fn peer_addr(&self) -> SocketAddr {
        self.peer
    }

    /// This end.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// The same, for hyper.
    pub fn hyper(self) -> TokioIo<Self> {
        TokioIo::new(self)
    }
}

/// The link that bytes from `peer` meet, where there is one.
fn inbound(links: Option<&Links>, local: SocketAddr, peer: SocketAddr) -> Option<Box<Inbound>> {
    crossing(peer.ip(), local.ip())?;
    let seed = (u64::from(peer.port()) << 16) | u64::from(local.port());
    let inbound = Inbound::new(links?, peer.ip(), local.ip(), seed);
    Some(Box::new(inbound))
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Stream({} ↔ {})", self.local, self.peer)
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.inner {
            Inner::Tcp(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Inner::Linked(tcp, inbound) => inbound.poll_read(tcp, cx, buf),
            #[cfg(feature = "simulation")]
            Inner::Simulated(stream) => Pin::new(&mut **stream).poll_read(cx, buf),
            #[cfg(feature = "simulation")]
            Inner::SimulatedLinked(stream, inbound) => inbound.poll_read(&mut **stream, cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.inner {
            Inner::Tcp(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Inner::Linked(tcp, inbound) => {
                silent(Pin::new(tcp).poll_write(cx, buf), inbound, buf.len())
            }
            #[cfg(feature = "simulation")]
            Inner::Simulated(stream) => Pin::new(&mut **stream).poll_write(cx, buf),
            #[cfg(feature = "simulation")]
            Inner::SimulatedLinked(stream, inbound) => silent(
                Pin::new(&mut **stream).poll_write(cx, buf),
                inbound,
                buf.len(),
            ),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.inner {
            Inner::Tcp(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Inner::Linked(tcp, inbound) => {
                let all = bufs.iter().map(|buf| buf.len()).sum();
                silent(Pin::new(tcp).poll_write_vectored(cx, bufs), inbound, all)
            }
            #[cfg(feature = "simulation")]
            Inner::Simulated(stream) => Pin::new(&mut **stream).poll_write_vectored(cx, bufs),
            #[cfg(feature = "simulation")]
            Inner::SimulatedLinked(stream, inbound) => {
                let all = bufs.iter().map(|buf| buf.len()).sum();
                silent(
                    Pin::new(&mut **stream).poll_write_vectored(cx, bufs),
                    inbound,
                    all,
                )
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.inner {
            Inner::Tcp(tcp) | Inner::Linked(tcp, _) => tcp.is_write_vectored(),
            #[cfg(feature = "simulation")]
            Inner::Simulated(stream) | Inner::SimulatedLinked(stream, _) => {
                stream.is_write_vectored()
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.inner {
            Inner::Tcp(tcp) | Inner::Linked(tcp, _) => Pin::new(tcp).poll_flush(cx),
            #[cfg(feature = "simulation")]
            Inner::Simulated(stream) | Inner::SimulatedLinked(stream, _) => {
                Pin::new(&mut **stream).poll_flush(cx)
            }
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.inner {
            Inner::Tcp(tcp) | Inner::Linked(tcp, _) => Pin::new(tcp).poll_shutdown(cx),
            #[cfg(feature = "simulation")]
            Inner::Simulated(stream) | Inner::SimulatedLinked(stream, _) => {
                Pin::new(&mut **stream).poll_shutdown(cx)
            }
        }
    }
}

/// A reset cannot come over a cut link: as far as the writer can know, the kernel still takes its
/// bytes. They are lost with the connection; the error shows when the link is healed.
fn silent(
    written: Poll<io::Result<usize>>,
    inbound: &mut Inbound,
    offered: usize,
) -> Poll<io::Result<usize>> {
    match written {
        Poll::Ready(Err(_)) if inbound.is_cut() => Poll::Ready(Ok(offered)),
        other => other,
    }
}

impl Connected for Stream {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        TcpConnectInfo {
            local_addr: Some(self.local),
            remote_addr: Some(self.peer),
        }
    }
}

/// A socket that takes connections.
pub struct Listener {
    inner: ListenerInner,
    local: SocketAddr,
}

enum ListenerInner {
    Tcp(TcpListener, Option<Links>),
    #[cfg(feature = "simulation")]
    Simulated(turmoil::net::TcpListener, Option<Links>),
}

/// Whether several listeners may share an address.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sharing {
    Alone,
    Shared,
}

impl Listener {
    pub(crate) fn tcp(at: SocketAddr, sharing: Sharing, links: Option<Links>) -> io::Result<Self> {
        let socket = socket_for(at)?;
        socket.set_reuseaddr(true)?;
        if sharing == Sharing::Shared {
            socket.set_reuseport(true)?;
        }
        socket.bind(at)?;
        let listener = socket.listen(BACKLOG)?;
        let local = listener.local_addr()?;
        Ok(Self {
            inner: ListenerInner::Tcp(listener, links),
            local,
        })
    }

    #[cfg(feature = "simulation")]
    pub(crate) fn simulated(
        listener: turmoil::net::TcpListener,
        links: Option<Links>,
    ) -> io::Result<Self> {
        let local = listener.local_addr()?;
        Ok(Self {
            inner: ListenerInner::Simulated(listener, links),
            local,
        })
    }

    /// The next connection and who made it. Connections that died while they waited are skipped;
    /// other errors are given after a pause, so that a loop may log them and go on. Safe to cancel.
    pub async fn accept(&self) -> io::Result<(Stream, SocketAddr)> {
        loop {
            let stream = match &self.inner {
                ListenerInner::Tcp(tcp, links) => match tcp.accept().await {
                    Ok((stream, _)) => Stream::tcp(stream, links.as_ref()),
                    Err(error) if died_waiting(&error) => continue,
                    Err(error) => {
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                        return Err(error);
                    }
                },
                #[cfg(feature = "simulation")]
                ListenerInner::Simulated(listener, links) => listener
                    .accept()
                    .await
                    .and_then(|(stream, _)| Stream::simulated(stream, links.as_ref())),
            };
            match stream {
                Ok(stream) => {
                    let peer = stream.peer;
                    return Ok((stream, peer));
                }
                // The peer went away between `accept` and the first look at the socket.
                Err(error) => warn!(listener = %self.local, %error, "connection died on arrival"),
            }
        }
    }

    /// The address, with the real port when 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// All connections, for `tonic`'s `serve_with_incoming`.
    pub fn incoming(self) -> impl futures::Stream<Item = io::Result<Stream>> + Send {
        futures::stream::unfold(self, |listener| async move {
            let next = listener.accept().await.map(|(stream, _)| stream);
            Some((next, listener))
        })
    }
}

fn died_waiting(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

/// A fresh socket of the family of `at`.
pub(crate) fn socket_for(at: SocketAddr) -> io::Result<TcpSocket> {
    match at {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }
}
