//! The only crate that provides sockets, the clock, tasks and signals.
//!
//! Everything above is handed a [`Runtime`] and asks it for connections and listeners. So a local
//! world can give regions their distance and their cuts ([`Links`]), and the simulator can replace
//! the network, without any caller knowing.

mod clock;
mod entry;
mod grpc;
mod linked;
mod links;
mod net;
mod polled;
mod runtime;
mod shutdown;
#[cfg(feature = "simulation")]
mod simulated;
mod tasks;

pub use clock::{UnixMillis, machine_clock};
pub use entry::{DRAIN_LIMIT, TASKS_GRACE, main, main_with};
pub use linked::HELD_BYTES_MAX;
pub use links::{Link, LinkRule, Links, LinksFile};
pub use net::{Listener, Stream};
pub use runtime::{RealOptions, Runtime};
pub use shutdown::Shutdown;
#[cfg(feature = "simulation")]
pub use simulated::SimulatedOptions;
pub use tasks::{BLOCKING_AT_ONCE, ScopedTask, TaskEnd, TaskHandle, Tasks};
