//! Orders to the supervisor: one JSON line in, lines of progress and one outcome out, over the
//! unix socket of the world.

use std::io;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

/// The longest line of an order or an answer.
pub(crate) const LINE_BYTES_MAX: usize = 64 * 1024;
/// How long the supervisor may be silent before it is taken for dead.
const SILENCE_MAX: Duration = Duration::from_secs(150);

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "order")]
pub(crate) enum Order {
    /// Answer once everything serves.
    WaitServing,
    /// End processes with -9, at one instant, and leave them down.
    Kill { target: String },
    /// Freeze processes, at one instant.
    Pause { target: String },
    /// Let frozen processes run.
    Resume { target: String },
    /// Start processes that are down, and answer once they are ready.
    Start { target: String },
    /// Take all that is left of members' own disks.
    FillDisk { target: String },
    /// Give it back.
    FreeDisk { target: String },
    /// End the world.
    Down,
}

/// What became of an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// When it was done (for kill and pause: just before the first signal), in ms since 1970.
    pub at_ms: u64,
    /// The processes that it was for, by name.
    pub processes: Vec<String>,
    /// How many processes got a signal, children (PostgreSQL's among them) included.
    pub signalled: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Answer {
    Progress(String),
    Done(Outcome),
    Refused(String),
}

/// Why an order was not carried out.
#[derive(Debug, Error)]
pub enum OrderError {
    /// Nobody takes orders.
    #[error("the world's supervisor does not answer; see log/supervisor.log in its directory")]
    NoSupervisor(#[source] io::Error),
    /// The supervisor said no, and why.
    #[error("{0}")]
    Refused(String),
    /// It ended, or said something else.
    #[error("the world's supervisor broke off: {0}")]
    BrokenOff(String),
}

/// Gives an order, passes its progress on and returns its outcome.
pub(crate) async fn give(
    socket: &Path,
    order: &Order,
    mut talk: impl FnMut(&str),
) -> Result<Outcome, OrderError> {
    let mut stream = UnixStream::connect(socket)
        .await
        .map_err(OrderError::NoSupervisor)?;
    let broken = |error: &dyn std::fmt::Display| OrderError::BrokenOff(error.to_string());
    let mut line = serde_json::to_string(order).map_err(|e| broken(&e))?;
    line.push('\n');
    stream
        .write_all(line.as_bytes())
        .await
        .map_err(|e| broken(&e))?;
    let mut lines = BufReader::new(stream).lines();
    loop {
        let next = tokio::time::timeout(SILENCE_MAX, lines.next_line()).await;
        let line = match next {
            Err(_) => return Err(broken(&format!("silent for {SILENCE_MAX:?}"))),
            Ok(Err(error)) => return Err(broken(&error)),
            Ok(Ok(None)) => return Err(broken(&"it ended")),
            Ok(Ok(Some(line))) => line,
        };
        match serde_json::from_str(&line).map_err(|e| broken(&e))? {
            Answer::Progress(text) => talk(&text),
            Answer::Done(outcome) => return Ok(outcome),
            Answer::Refused(why) => return Err(OrderError::Refused(why)),
        }
    }
}
