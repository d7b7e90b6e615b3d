//! The simulator's network and clock.
//!
//! Hosts of the simulator cannot have loopback addresses, and everything else that we write down
//! about a world does: so the process at 127.W.Z.n runs on the host 10.W.Z.n, and nobody above
//! sees the difference.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use crate::{Links, Listener, Stream, UnixMillis};

/// What a process of a simulation is told at its start.
#[derive(Debug, Clone)]
pub struct SimulatedOptions {
    /// The process's own address; what its links are found by.
    pub source: Option<IpAddr>,
    /// The links of the simulated world; they may change at any time.
    pub links: Links,
    /// Added to the wall clock; may be changed while the process runs.
    pub clock_offset_ms: Arc<AtomicI64>,
}

impl Default for SimulatedOptions {
    fn default() -> Self {
        Self {
            source: None,
            links: Links::none(),
            clock_offset_ms: Arc::default(),
        }
    }
}

impl SimulatedOptions {
    /// The host of the simulation on which the process at `address` runs.
    pub fn host_of(address: IpAddr) -> IpAddr {
        swapped(address, 127, 10)
    }

    pub(crate) fn wall_clock(&self) -> UnixMillis {
        let UnixMillis(millis) = wall_clock();
        UnixMillis(millis.saturating_add_signed(self.clock_offset_ms.load(Ordering::Relaxed)))
    }
}

fn swapped(address: IpAddr, from: u8, to: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) if v4.octets()[0] == from => {
            let [_, world, zone, number] = v4.octets();
            Ipv4Addr::new(to, world, zone, number).into()
        }
        other => other,
    }
}

/// What a process calls a host of the simulation.
pub(crate) fn named(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(swapped(address.ip(), 10, 127), address.port())
}

pub(crate) async fn connect(to: SocketAddr, links: Option<&Links>) -> io::Result<Stream> {
    let host = SocketAddr::new(SimulatedOptions::host_of(to.ip()), to.port());
    Stream::simulated(turmoil::net::TcpStream::connect(host).await?, links)
}

/// Hosts of the simulator have their own address and bind to any-address only.
pub(crate) async fn listen(at: SocketAddr, links: Option<Links>) -> io::Result<Listener> {
    let any = (Ipv4Addr::UNSPECIFIED, at.port());
    Listener::simulated(turmoil::net::TcpListener::bind(any).await?, links)
}

/// Where the wall clock of every simulation begins: 2026-01-01 UTC. The simulator's own epoch is the
/// machine's clock, which would make two runs of one seed differ.
const EPOCH_MILLIS: u64 = 1_767_225_600_000;

/// The same in every run; the beginning outside of a host.
fn wall_clock() -> UnixMillis {
    let since = turmoil::sim_elapsed().unwrap_or_default();
    UnixMillis(EPOCH_MILLIS + u64::try_from(since.as_millis()).unwrap_or(u64::MAX >> 1))
}
