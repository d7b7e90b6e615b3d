//! Starts, watches and ends processes on this machine.
//!
//! A process is named by its pid *and* its start time, and the pair is checked before every signal:
//! a number that the kernel has given to somebody else is never hit. Whole trees are frozen, thawed
//! and killed together, so that "a city lost its power" includes the children of its processes.
#![warn(missing_docs)]

mod process;
mod ready;
mod spawn;
mod tree;

pub use nix::sys::signal::Signal;
pub use process::{ProcessRef, State};
pub use ready::{NotReady, ready_line};
pub use spawn::{Ending, LOG_BYTES_MAX, Running, SpawnError, Spec, spawn};
pub use tree::{StillAlive, Tree, below_directory, freeze, kill, terminate, thaw, wait_gone};
