//! Starts, watches and ends processes on this machine.
//!
//! A process is named by its pid *and* its start time, and the pair is checked before every signal:
//! a number that the kernel has given to somebody else is never hit. Whole trees are frozen, thawed
//! and killed together, so that "a city lost its power" includes the children of its processes.
//! Disks can be made small, full and slow without help of the kernel's owner.
#![warn(missing_docs)]

mod disk;
mod process;
mod ready;
mod slow_disk;
mod spawn;
mod tree;

pub use disk::{Disk, fill, free, on_own_disks, own_disks_are_possible, seen_by};
pub use nix::sys::signal::Signal;
pub use process::{ProcessRef, State};
pub use ready::{NotReady, ready_line};
pub use slow_disk::{DELAY_FILE, NoSlowDisk, PRELOAD, SlowDisks};
pub use spawn::{Ending, LOG_BYTES_MAX, Running, SpawnError, Spec, spawn};
pub use tree::{StillAlive, Tree, below_directory, freeze, kill, terminate, thaw, wait_gone};
