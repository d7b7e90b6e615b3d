//! The simulator's network and clock.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use crate::{Listener, Stream, UnixMillis};

pub(crate) async fn connect(to: SocketAddr) -> io::Result<Stream> {
    Stream::simulated(turmoil::net::TcpStream::connect(to).await?)
}

/// Hosts of the simulator have their own address and bind to any-address only.
pub(crate) async fn listen(at: SocketAddr) -> io::Result<Listener> {
    let any = (Ipv4Addr::UNSPECIFIED, at.port());
    Listener::simulated(turmoil::net::TcpListener::bind(any).await?)
}

/// Time since the beginning of the simulation's epoch, the same in every run.
pub(crate) fn wall_clock() -> UnixMillis {
    let since = turmoil::since_epoch();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
