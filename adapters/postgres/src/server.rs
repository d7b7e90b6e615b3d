//! A running PostgreSQL: started as a standby and in no other way, stopped so that its log ends
//! where it is.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::{Duration, Instant, sleep};

use crate::history::settle_histories;
use crate::{Binaries, Error, Exit, Launch, Launcher, Layout, MemberSettings, Running};

/// Its presence makes PostgreSQL start as a standby.
pub(crate) const STANDBY_SIGNAL: &str = "standby.signal";

/// Crash recovery included, on small data.
const START_LIMIT: Duration = Duration::from_secs(60);

/// After SIGQUIT PostgreSQL itself kills what is left after 5 s.
const STOP_LIMIT: Duration = Duration::from_secs(8);

/// How long processes of an earlier life may take to go.
const VACANT_LIMIT: Duration = Duration::from_secs(15);

/// Between two looks at /proc or at the socket: neither announces a change.
const LOOK: Duration = Duration::from_millis(10);

/// A log file larger than this is moved aside at the next start.
const LOG_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// What a server is started with.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// PostgreSQL's programs.
    pub binaries: Binaries,
    /// How they are started.
    pub launcher: Launcher,
    /// Where.
    pub layout: Layout,
    /// Its configuration.
    pub settings: MemberSettings,
}

/// A running PostgreSQL.
#[derive(Debug, Clone)]
pub struct Server {
    running: Running,
    log: PathBuf,
    lock: PathBuf,
}

impl Server {
    /// Starts it as a standby. Returns when the process exists; [`Server::ready`] waits until it
    /// answers.
    pub async fn start(options: &ServerOptions) -> Result<Self, Error> {
        let ServerOptions {
            binaries,
            launcher,
            layout,
            settings,
        } = options;
        vacate(&layout.data()).await?;
        rotate(&layout.log());
        settings.write(layout)?;
        let signal = layout.data().join(STANDBY_SIGNAL);
        fs::write(&signal, "").map_err(Error::file("write", &signal))?;
        if let Some(account) = launcher.account() {
            account.give(&signal)?;
        }
        let recovery = layout.data().join("recovery.signal");
        if recovery.try_exists().unwrap_or(false) {
            fs::remove_file(&recovery).map_err(Error::file("remove", &recovery))?;
        }
        settle_histories(layout, launcher.account())?;
        let mut config = OsString::from("config_file=");
        config.push(layout.settings());
        let args: Vec<OsString> = vec!["-D".into(), layout.data().into(), "-c".into(), config];
        let launch = Launch {
            program: binaries.program("postgres"),
            args,
            dir: layout.scratch(),
            log: layout.log(),
            input: None,
        };
        let running = launcher.serve(launch).await?;
        Ok(Self {
            running,
            log: layout.log(),
            lock: layout.data().join("postmaster.pid"),
        })
    }

    /// Its process.
    pub fn running(&self) -> &Running {
        &self.running
    }

    /// Waits until `probe` succeeds, or the process ends, or the limit.
    pub async fn ready<T, F>(&self, mut probe: impl FnMut() -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let started = Instant::now();
        loop {
            // Each refused session costs a process, so the server's own word is waited for first.
            let last = if self.says_ready() {
                match probe().await {
                    Ok(found) => return Ok(found),
                    Err(error) => error.to_string(),
                }
            } else {
                "not ready by its own account".to_owned()
            };
            if let Some(exit) = self.running.ended() {
                return Err(Error::Program {
                    program: "postgres".into(),
                    tail: format!("ended while starting: {exit:?}: {}", self.last_lines()),
                });
            }
            if started.elapsed() > START_LIMIT {
                return Err(Error::TooLong {
                    what: "PostgreSQL's start",
                    limit_ms: START_LIMIT.as_millis(),
                    last,
                });
            }
            sleep(LOOK).await;
        }
    }

    /// Line 8 of `postmaster.pid`: `ready` once sessions are accepted, a standby's included.
    fn says_ready(&self) -> bool {
        let text = fs::read_to_string(&self.lock).unwrap_or_default();
        let mut lines = text.lines();
        let own = lines.next() == Some(self.running.pid().to_string().as_str());
        own && lines.nth(6).is_some_and(|status| status.trim() == "ready")
    }

    fn last_lines(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let lines: Vec<&str> = text
            .lines()
            .filter(|line| line.contains("FATAL") || line.contains("PANIC"))
            .take(3)
            .collect();
        lines.join(" | ")
    }

    /// Ends it at once, without a shutdown record, and waits until every process of it is gone.
    pub async fn quit(&self, layout: &Layout) -> Result<Exit, Error> {
        self.running.quit();
        let mut running = self.running.clone();
        let exit = match tokio::time::timeout(STOP_LIMIT, running.exited()).await {
            Ok(exit) => exit,
            Err(_) => {
                self.running.kill();
                running.exited().await
            }
        };
        vacate(&layout.data()).await?;
        Ok(exit)
    }
}

/// Waits until no process works in this data directory, telling those that do to end: children of
/// a postmaster that was killed, or all of an earlier agent's PostgreSQL.
async fn vacate(data: &Path) -> Result<(), Error> {
    let started = Instant::now();
    loop {
        let left = working_in(data);
        if left.is_empty() {
            return Ok(());
        }
        let signal = if started.elapsed() > VACANT_LIMIT / 2 {
            Signal::SIGKILL
        } else {
            Signal::SIGQUIT
        };
        for pid in &left {
            // It may have ended since we looked.
            kill(Pid::from_raw(*pid), signal).ok();
        }
        if started.elapsed() > VACANT_LIMIT {
            return Err(Error::TooLong {
                what: "the end of an earlier PostgreSQL",
                limit_ms: VACANT_LIMIT.as_millis(),
                last: format!("processes {left:?} still work in {data:?}"),
            });
        }
        sleep(LOOK).await;
    }
}

/// Processes whose working directory is this one; every process of PostgreSQL's has moved there.
fn working_in(data: &Path) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let cwd = fs::read_link(entry.path().join("cwd")).ok()?;
            (cwd == data).then_some(pid)
        })
        .collect()
}

fn rotate(log: &Path) {
    if fs::metadata(log).is_ok_and(|meta| meta.len() > LOG_BYTES_MAX) {
        // A log that cannot be moved is appended to.
        fs::rename(log, log.with_extension("log.1")).ok();
    }
}
