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

/// Where the wall clock of every simulation begins: 2026-01-01 UTC. The simulator's own epoch is the
/// machine's clock, which would make two runs of one seed differ.
const EPOCH_MILLIS: u64 = 1_767_225_600_000;

/// The same in every run; the beginning outside of a host.
pub(crate) fn wall_clock() -> UnixMillis {
    let since = turmoil::sim_elapsed().unwrap_or_default();
    UnixMillis(EPOCH_MILLIS + u64::try_from(since.as_millis()).unwrap_or(u64::MAX >> 1))
}
