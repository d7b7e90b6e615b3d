//! Starting a process with its logs in files.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use thiserror::Error;
use tokio::process::{Child, Command};

use crate::process::ProcessRef;

/// A log longer than this is put aside (one old log is kept) when its process starts.
pub const LOG_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// What to start.
#[derive(Debug, Clone)]
pub struct Spec {
    /// The program's file.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Variables set on top of those of the caller.
    pub env: Vec<(String, String)>,
    /// Its current directory; must be there.
    pub directory: PathBuf,
    /// Where standard output goes; emptied at each start, so its first line is of this start.
    pub output: PathBuf,
    /// Where standard error goes; appended to.
    pub log: PathBuf,
}

/// Why a process could not be started.
#[derive(Debug, Error)]
pub enum SpawnError {
    /// A log file could not be opened.
    #[error("the log {} cannot be written", path.display())]
    Log {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel refused.
    #[error("{} cannot be started", program.display())]
    Start {
        /// What was to be started.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It ended before its start time could be read.
    #[error("{} ended at once; its last words are in {}", program.display(), log.display())]
    EndedAtOnce {
        /// What was started.
        program: PathBuf,
        /// Where its words are.
        log: PathBuf,
    },
}

/// A process that we are the parent of.
#[derive(Debug)]
pub struct Running {
    child: Child,
    process: ProcessRef,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It returned this code.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
}

impl std::fmt::Display for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "ended with code {code}"),
            Self::Signal(signal) => write!(f, "was ended by signal {signal}"),
        }
    }
}

/// Starts a process: no standard input, output and log in files.
pub fn spawn(spec: &Spec) -> Result<Running, SpawnError> {
    let log_error = |path: &Path| {
        let path = path.to_path_buf();
        move |source| SpawnError::Log { path, source }
    };
    rotate(&spec.log).map_err(log_error(&spec.log))?;
    let output = File::create(&spec.output).map_err(log_error(&spec.output))?;
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&spec.log)
        .map_err(log_error(&spec.log))?;
    let child = Command::new(&spec.program)
        .args(&spec.args)
        .envs(spec.env.iter().map(|(k, v)| (k, v)))
        .current_dir(&spec.directory)
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(log)
        .spawn()
        .map_err(|source| SpawnError::Start {
            program: spec.program.clone(),
            source,
        })?;
    let process = child
        .id()
        .and_then(|pid| i32::try_from(pid).ok())
        .and_then(ProcessRef::of)
        .ok_or_else(|| SpawnError::EndedAtOnce {
            program: spec.program.clone(),
            log: spec.log.clone(),
        })?;
    Ok(Running { child, process })
}

/// Puts a log that has grown too long aside.
fn rotate(log: &Path) -> io::Result<()> {
    match fs::metadata(log) {
        Ok(found) if found.len() > LOG_BYTES_MAX => {
            let mut old = log.as_os_str().to_owned();
            old.push(".1");
            fs::rename(log, old)
        }
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

impl Running {
    /// Its pid and start time.
    pub fn process(&self) -> ProcessRef {
        self.process
    }

    /// Waits for its end. Cancel safe.
    pub async fn wait(&mut self) -> io::Result<Ending> {
        self.child.wait().await.map(ending)
    }
}

fn ending(status: ExitStatus) -> Ending {
    use std::os::unix::process::ExitStatusExt;
    match status.code() {
        Some(code) => Ending::Code(code),
        None => Ending::Signal(status.signal().unwrap_or_default()),
    }
}
