//! The handle that every part of a process holds.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::UnixStream;

use crate::clock::Clock;
use crate::links::{Links, crossing};
use crate::net::{Listener, Sharing, Stream, socket_for};
use crate::{Shutdown, Tasks, UnixMillis};

/// What a process tells its runtime at the start. The default: no own address, no links.
#[derive(Debug, Clone, Default)]
pub struct RealOptions {
    /// The process's own address; its outgoing connections come from there.
    pub source: Option<IpAddr>,
    /// `links.json` of the local world.
    pub links_file: Option<PathBuf>,
    /// Added to the wall clock; for tests of clock faults.
    pub clock_offset_ms: i64,
    /// Holds what is added besides, in milliseconds; it may change, come and go at any time.
    pub clock_file: Option<PathBuf>,
}

/// Sockets, clock, tasks and shutdown of one process. Cheap to clone.
#[derive(Clone)]
pub struct Runtime(Arc<Parts>);

struct Parts {
    network: Network,
    links: Links,
    tasks: Tasks,
    shutdown: Shutdown,
}

enum Network {
    Real {
        source: Option<IpAddr>,
        clock: Clock,
    },
    #[cfg(feature = "simulation")]
    Simulated(crate::SimulatedOptions),
}

/// Whether a connection goes through the links of the local world.
#[derive(Clone, Copy)]
enum Linking {
    Applied,
    Plain,
}

impl Runtime {
    /// The machine's own sockets and clock.
    pub fn real(options: RealOptions) -> Self {
        let links = options
            .links_file
            .as_deref()
            .map_or_else(Links::none, Links::of_file);
        let network = Network::Real {
            source: options.source,
            clock: Clock::new(options.clock_offset_ms, options.clock_file.as_deref()),
        };
        Self::of(network, links)
    }

    /// The simulator's sockets and clock; only inside a host of a turmoil simulation. Listeners
    /// bind to any-address there, so the address of `listen` counts for its port only. Addresses
    /// of a local world (127.…) are those of hosts at 10.…, so links apply as they do there, and
    /// nothing runs on a thread of its own.
    #[cfg(feature = "simulation")]
    pub fn simulated(options: crate::SimulatedOptions) -> Self {
        let links = options.links.clone();
        let tasks = Tasks::inline();
        Self::with(Network::Simulated(options), links, tasks)
    }

    fn of(network: Network, links: Links) -> Self {
        Self::with(network, links, Tasks::default())
    }

    fn with(network: Network, links: Links, tasks: Tasks) -> Self {
        let shutdown = Shutdown::default();
        Self(Arc::new(Parts {
            network,
            links,
            tasks,
            shutdown,
        }))
    }

    /// Whether this is the simulator's: then nothing may run on a thread of its own.
    pub fn is_simulated(&self) -> bool {
        !matches!(self.0.network, Network::Real { .. })
    }

    /// Connects. Over a link it takes the link's round trip; over a cut one it hangs until the
    /// link is healed: callers have a time limit.
    pub async fn connect(&self, to: SocketAddr) -> io::Result<Stream> {
        self.connect_by(to, Linking::Applied).await
    }

    /// Connects without links: for replication, which applies its own.
    pub async fn connect_plain(&self, to: SocketAddr) -> io::Result<Stream> {
        self.connect_by(to, Linking::Plain).await
    }

    async fn connect_by(&self, to: SocketAddr, linking: Linking) -> io::Result<Stream> {
        match &self.0.network {
            Network::Real { source, .. } => {
                let links = matches!(linking, Linking::Applied).then_some(&self.0.links);
                if let (Some(links), Some(from)) = (links, source) {
                    handshake(links, *from, to.ip()).await;
                }
                let socket = socket_for(to)?;
                if let Some(source) = source
                    && source.is_ipv4() == to.is_ipv4()
                {
                    socket.bind(SocketAddr::new(*source, 0))?;
                }
                Stream::tcp(socket.connect(to).await?, links)
            }
            #[cfg(feature = "simulation")]
            Network::Simulated(options) => {
                let links = matches!(linking, Linking::Applied).then_some(&self.0.links);
                if let (Some(links), Some(from)) = (links, options.source) {
                    handshake(links, from, to.ip()).await;
                }
                crate::simulated::connect(to, links).await
            }
        }
    }

    /// Listens; an address that a dead process just left may be taken again at once.
    pub async fn listen(&self, at: SocketAddr) -> io::Result<Listener> {
        self.listen_by(at, Sharing::Alone, Linking::Applied).await
    }

    /// Listens; several listeners may share the address, one for each core.
    pub async fn listen_shared(&self, at: SocketAddr) -> io::Result<Listener> {
        self.listen_by(at, Sharing::Shared, Linking::Applied).await
    }

    /// Listens without links: for replication, which applies its own.
    pub async fn listen_plain(&self, at: SocketAddr) -> io::Result<Listener> {
        self.listen_by(at, Sharing::Alone, Linking::Plain).await
    }

    async fn listen_by(
        &self,
        at: SocketAddr,
        sharing: Sharing,
        linking: Linking,
    ) -> io::Result<Listener> {
        match &self.0.network {
            Network::Real { .. } => {
                let links = matches!(linking, Linking::Applied).then(|| self.0.links.clone());
                Listener::tcp(at, sharing, links)
            }
            #[cfg(feature = "simulation")]
            Network::Simulated(_) => {
                let links = matches!(linking, Linking::Applied).then(|| self.0.links.clone());
                crate::simulated::listen(at, links).await
            }
        }
    }

    /// Connects to a socket in the file system.
    pub async fn connect_unix(&self, path: &Path) -> io::Result<UnixStream> {
        match &self.0.network {
            Network::Real { .. } => UnixStream::connect(path).await,
            #[cfg(feature = "simulation")]
            Network::Simulated(_) => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "the simulator has no sockets in the file system",
            )),
        }
    }

    /// The links of the local world.
    pub fn links(&self) -> &Links {
        &self.0.links
    }

    /// The process's own address, if it was given one.
    pub fn source(&self) -> Option<IpAddr> {
        match &self.0.network {
            Network::Real { source, .. } => *source,
            #[cfg(feature = "simulation")]
            Network::Simulated(options) => options.source,
        }
    }

    /// The time of day. For people and records; durations use `tokio::time`.
    pub fn wall_clock(&self) -> UnixMillis {
        match &self.0.network {
            Network::Real { clock, .. } => clock.now(),
            #[cfg(feature = "simulation")]
            Network::Simulated(options) => options.wall_clock(),
        }
    }

    /// The process's tasks.
    pub fn tasks(&self) -> &Tasks {
        &self.0.tasks
    }

    /// The process's end.
    pub fn shutdown(&self) -> Shutdown {
        self.0.shutdown.clone()
    }
}

/// What a TCP handshake would take over the links: both ways open, and a round trip.
async fn handshake(links: &Links, from: IpAddr, to: IpAddr) {
    if crossing(from, to).is_none() {
        return;
    }
    loop {
        links.until(from, to, |link| !link.cut).await;
        links.until(to, from, |link| !link.cut).await;
        let (there, back) = (links.between(from, to), links.between(to, from));
        let trip = there.delay + back.delay;
        if !trip.is_zero() {
            tokio::time::sleep(trip).await;
        }
        if !links.between(from, to).cut && !links.between(to, from).cut {
            return;
        }
    }
}
