//! Agents as real processes: start, kill, freeze, thaw.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use atoll_postgres::{Account, Binaries, DATABASE, SUPERUSER};
use atoll_topology::MemberId;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::ground::Ground;

/// A process says that it is ready, or ends, within this.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// Between two looks at a process or a file of another process.
const LOOK: Duration = Duration::from_millis(10);

/// The `atoll` binary under test.
pub fn binary() -> Result<PathBuf> {
    #[expect(
        clippy::disallowed_methods,
        reason = "tests are told by xtask where the binary is"
    )]
    let named = std::env::var("ATOLL_BIN");
    named.map(PathBuf::from).context(
        "ATOLL_BIN is not set: run `cargo xtask test`, or build the binary and name it \
         (`cargo build -p atoll && ATOLL_BIN=target/debug/atoll cargo test …`)",
    )
}

/// One agent.
pub struct AgentProcess {
    /// Its member.
    pub member: MemberId,
    /// Its directory.
    pub root: PathBuf,
    /// Its client port.
    pub sql: SocketAddr,
    config: Value,
    config_file: PathBuf,
    log: PathBuf,
    ground: Ground,
    child: Option<Child>,
}

impl AgentProcess {
    pub(crate) fn new(
        member: MemberId,
        root: PathBuf,
        sql: SocketAddr,
        config: Value,
        ground: Ground,
    ) -> Self {
        let config_file = root.with_extension("json");
        let log = root.with_extension("log");
        Self {
            member,
            root,
            sql,
            config,
            config_file,
            log,
            ground,
            child: None,
        }
    }

    /// Starts it.
    pub fn start(&mut self) -> Result<()> {
        self.start_with(json!({}))
    }

    /// Starts it with some keys of its configuration changed.
    pub fn start_with(&mut self, changes: Value) -> Result<()> {
        let mut config = self.config.clone();
        if let (Value::Object(config), Value::Object(changes)) = (&mut config, changes) {
            config.extend(changes);
        }
        fs::write(&self.config_file, serde_json::to_vec_pretty(&config)?)?;
        let log = File::options().create(true).append(true).open(&self.log)?;
        let child = self
            .ground
            .command(&self.root, &binary()?)?
            .args(["agent", "--config"])
            .arg(&self.config_file)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .env("RUST_LOG", "info")
            .spawn()
            .context("the agent cannot be started")?;
        self.child = Some(child);
        Ok(())
    }

    /// Its directory as the test sees it: one on a disk of its own is seen through its process.
    pub fn folder(&self) -> PathBuf {
        let pid = self.child.as_ref().map(Child::id);
        self.ground.seen(&self.root, pid)
    }

    /// Whether the process runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.as_mut().map(Child::try_wait), Some(Ok(None)))
    }

    /// kill -9.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// SIGTERM, and waits for its end.
    pub async fn stop(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM)?;
            let started = Instant::now();
            while child.try_wait()?.is_none() {
                if started.elapsed() > READY_LIMIT {
                    bail!("{} did not stop", self.member);
                }
                sleep(LOOK).await;
            }
        }
        Ok(())
    }

    /// Waits until the process has ended by itself.
    pub async fn ended(&mut self) -> Result<ExitStatus> {
        let mut child = self.child.take().context("it does not run")?;
        let started = Instant::now();
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            if started.elapsed() > READY_LIMIT {
                let log = self.log.display().to_string();
                self.child = Some(child);
                bail!("{} did not end; its log is {log}", self.member);
            }
            sleep(LOOK).await;
        }
    }

    /// Waits until no process of its PostgreSQL is left.
    pub async fn postgres_gone(&self) -> Result<()> {
        let started = Instant::now();
        while !self.postgres().is_empty() {
            if started.elapsed() > READY_LIMIT {
                bail!("the PostgreSQL of {} outlived its agent", self.member);
            }
            sleep(LOOK).await;
        }
        Ok(())
    }

    /// From now on no file that the agent itself writes may grow beyond, or be written beyond, so
    /// many bytes. Its PostgreSQL, which runs already, is not touched.
    pub fn limit_files(&self, bytes: u64) -> Result<()> {
        let pid = self.child.as_ref().context("it does not run")?.id();
        let limited = Command::new("prlimit")
            .args([
                "--pid",
                &pid.to_string(),
                &format!("--fsize={bytes}:{bytes}"),
            ])
            .status()
            .context("prlimit (util-linux)")?;
        anyhow::ensure!(limited.success(), "prlimit: {limited}");
        Ok(())
    }

    /// The processes of its PostgreSQL.
    pub fn postgres(&self) -> Vec<Pid> {
        working_in(&self.root.join("pg"))
    }

    /// kill -9 of the postmaster alone.
    pub fn kill_postmaster(&self) -> Result<()> {
        let path = self.root.join("pg/postmaster.pid");
        let text = fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
        let pid: i32 = text.lines().next().context("empty")?.parse()?;
        kill(Pid::from_raw(pid), Signal::SIGKILL).context("kill")
    }

    /// SIGSTOP of the agent and all of its PostgreSQL: as silent as a lost machine.
    pub fn freeze(&self) -> Result<()> {
        self.signal_all(Signal::SIGSTOP)
    }

    /// SIGCONT of all.
    pub fn thaw(&self) -> Result<()> {
        self.signal_all(Signal::SIGCONT)
    }

    fn signal_all(&self, signal: Signal) -> Result<()> {
        let child = self.child.as_ref().context("it does not run")?;
        kill(Pid::from_raw(child.id().cast_signed()), signal)?;
        for pid in self.postgres() {
            // It may have ended since we looked.
            kill(pid, signal).ok();
        }
        Ok(())
    }

    /// The ends of its log and of its PostgreSQL's, for failures.
    pub fn log_tail(&self) -> String {
        let postgres = self.folder().join("postgres.log");
        let tails = [&self.log, &postgres].map(|path| {
            let text = fs::read(path).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().rev().take(40).collect();
            lines.into_iter().rev().collect::<Vec<_>>().join("\n")
        });
        tails.join("\n-- postgres --\n")
    }
}

impl Drop for AgentProcess {
    fn drop(&mut self) {
        // The end of a test: whatever still runs must go.
        drop(self.thaw());
        drop(self.kill());
        for pid in self.postgres() {
            kill(pid, Signal::SIGKILL).ok();
        }
    }
}

/// PostgreSQL as somebody would start it who knows nothing of the agent: on a member's data, as
/// whatever it was when it ended.
pub struct Naive {
    child: Child,
}

impl Naive {
    /// Starts it. The member's agent must be gone, with its PostgreSQL.
    pub fn start(agent: &AgentProcess) -> Result<Self> {
        let data = agent.root.join("pg");
        let signal = data.join("standby.signal");
        if signal.try_exists()? {
            fs::remove_file(&signal)?;
        }
        let mut setting = std::ffi::OsString::from("config_file=");
        setting.push(agent.root.join("postgresql.conf"));
        let log = File::options()
            .create(true)
            .append(true)
            .open(agent.root.join("naive.log"))?;
        let mut command = Command::new(Binaries::find(None)?.program("postgres"));
        command.arg("-D").arg(&data).arg("-c").arg(setting);
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        command.current_dir(&data);
        if let Some(account) = Account::unprivileged()? {
            command.uid(account.uid).gid(account.gid);
        }
        let child = command.spawn().context("postgres")?;
        Ok(Self { child })
    }
}

/// pg_rewind of one member's data, which nobody uses, against another that runs; what it said.
pub fn rewind_by_hand(target: &AgentProcess, source: &AgentProcess) -> Result<String> {
    let mut connection = std::ffi::OsString::from("host=");
    connection.push(source.root.join("run"));
    connection.push(format!(" user={SUPERUSER} dbname={DATABASE}"));
    let mut command = Command::new(Binaries::find(None)?.program("pg_rewind"));
    command.arg("--target-pgdata").arg(target.root.join("pg"));
    command.arg("--source-server").arg(connection);
    command
        .arg("--config-file")
        .arg(target.root.join("postgresql.conf"));
    command.current_dir(target.root.join("scratch"));
    if let Some(account) = Account::unprivileged()? {
        command.uid(account.uid).gid(account.gid);
    }
    let said = command.stdin(Stdio::null()).output().context("pg_rewind")?;
    let mut text = String::from_utf8_lossy(&said.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&said.stderr));
    Ok(text)
}

impl Drop for Naive {
    fn drop(&mut self) {
        // Fast: it waits for no session.
        let pid = Pid::from_raw(self.child.id().cast_signed());
        kill(pid, Signal::SIGQUIT).ok();
        self.child.wait().ok();
    }
}

fn working_in(folder: &Path) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let cwd = fs::read_link(entry.path().join("cwd")).ok()?;
            (cwd == folder).then_some(Pid::from_raw(pid))
        })
        .collect()
}
