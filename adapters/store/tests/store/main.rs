//! What every backend promises, and what etcd's keeps when its nodes do not.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

mod cluster;
mod contract;
mod faults;
