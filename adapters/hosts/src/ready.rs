//! The one line by which a process says that it serves: `ready <role> <addresses>`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use crate::process::ProcessRef;

/// How often the output file is read again.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// How much of a log is shown when something goes wrong, in lines.
const LAST_LINES: usize = 12;

/// Why a process is not known to serve.
#[derive(Debug, Error)]
pub enum NotReady {
    /// It ended first.
    #[error("it ended before it was ready; the end of {}:\n{last_words}", log.display())]
    Ended {
        /// Its log.
        log: PathBuf,
        /// The log's last lines.
        last_words: String,
    },
    /// It lives, but has not said so in time.
    #[error("no ready line within {limit:?}; the end of {}:\n{last_words}", log.display())]
    TimedOut {
        /// How long was waited.
        limit: Duration,
        /// Its log.
        log: PathBuf,
        /// The log's last lines.
        last_words: String,
    },
    /// Its output cannot be read.
    #[error("its output {} cannot be read", path.display())]
    Output {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Waits until `output` has a line that begins with `ready `, and returns that line.
pub async fn ready_line(
    process: ProcessRef,
    output: &Path,
    log: &Path,
    limit: Duration,
) -> Result<String, NotReady> {
    let until = tokio::time::Instant::now() + limit;
    loop {
        // Asked before the file is read: what it said before its end is not missed.
        let alive = process.is_alive();
        let text = match fs::read(output) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(source) => {
                return Err(NotReady::Output {
                    path: output.to_path_buf(),
                    source,
                });
            }
        };
        let complete = text
            .split_inclusive('\n')
            .filter(|line| line.ends_with('\n'));
        if let Some(line) = complete
            .map(str::trim_end)
            .find(|l| l.starts_with("ready "))
        {
            return Ok(line.to_owned());
        }
        if !alive {
            let (log, last_words) = (log.to_path_buf(), last_words(log));
            return Err(NotReady::Ended { log, last_words });
        }
        if tokio::time::Instant::now() >= until {
            let (log, last_words) = (log.to_path_buf(), last_words(log));
            return Err(NotReady::TimedOut {
                limit,
                log,
                last_words,
            });
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// The last lines of a log, or a word on why there are none.
fn last_words(log: &Path) -> String {
    match fs::read(log) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let lines: Vec<&str> = text.lines().collect();
            let from = lines.len().saturating_sub(LAST_LINES);
            lines[from..].join("\n")
        }
        Err(error) => format!("(no log: {error})"),
    }
}
