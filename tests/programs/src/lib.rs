//! Real programs for tests and demos: found on the machine, or installed from the machine's own
//! package sources, and always said aloud. Knows nothing of what they are used for.
#![warn(missing_docs)]
#![expect(
    clippy::print_stderr,
    reason = "whoever waits for an installation is told what it is"
)]

mod etcd;
mod install;
mod postgres;
mod python;
mod user;

pub use etcd::{Etcd, etcd};
pub use postgres::{POSTGRES_VERSION_MIN, Postgres, postgres};
pub use python::{Python, python};
pub use user::{User, unprivileged_user};

/// Tells the person what happens; standard output is left for data.
fn say(text: &str) {
    eprintln!("  {text}");
}
