//! Starts programs that die with us, and watches their end.
//!
//! The kernel sends the death signal when the *thread* that forked ends, so one thread of the
//! process, which never ends, starts them all.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use tokio::sync::{oneshot, watch};

use crate::exec::{Death, ExecArgs};
use crate::{Account, Error};

/// Starts that may wait for the thread at once.
const STARTS_WAITING_MAX: usize = 64;

/// Of our own environment, what PostgreSQL gets: what a test puts under a member to slow its disk
/// down must be under the programs that write.
const PASSED_ON: [&str; 2] = ["LD_PRELOAD", "ATOLL_SLOW_DISK"];

type Start = (Command, oneshot::Sender<io::Result<Child>>);

/// How to start PostgreSQL's programs: through which re-exec, as whom.
#[derive(Debug, Clone)]
pub struct Launcher {
    exec: Vec<OsString>,
    account: Option<Account>,
}

/// One program to start.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Its working directory.
    pub dir: PathBuf,
    /// Where both its outputs are appended.
    pub log: PathBuf,
    /// What it reads, if anything.
    pub input: Option<PathBuf>,
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with a code.
    Code(i32),
    /// By a signal.
    Signal(i32),
}

impl Exit {
    /// Whether it ended well.
    pub fn success(&self) -> bool {
        *self == Self::Code(0)
    }
}

/// A program that runs, or ran.
#[derive(Debug, Clone)]
pub struct Running {
    pid: i32,
    reaped: Arc<Mutex<bool>>,
    exited: watch::Receiver<Option<Exit>>,
}

impl Launcher {
    /// `exec` is the command line of the hidden subcommand, usually our own binary and
    /// `postgres-exec`.
    pub fn new(exec: Vec<OsString>, account: Option<Account>) -> Self {
        Self { exec, account }
    }

    /// As whom the programs run; none: as ourselves.
    pub fn account(&self) -> Option<Account> {
        self.account
    }

    /// Starts a server: it is quit, not killed, if we die.
    pub async fn serve(&self, launch: Launch) -> Result<Running, Error> {
        self.start(launch, Death::Quit).await
    }

    /// Runs a tool to its end; if it fails, the error has the last lines that it printed.
    pub async fn run(&self, launch: Launch) -> Result<(), Error> {
        let (program, log) = (launch.program.display().to_string(), launch.log.clone());
        let from = std::fs::metadata(&log).map_or(0, |meta| meta.len());
        let mut running = self.start(launch, Death::Kill).await?;
        let exit = running.exited().await;
        if exit.success() {
            return Ok(());
        }
        let text = std::fs::read(&log).unwrap_or_default();
        let start = usize::try_from(from).unwrap_or(0).min(text.len());
        let text = String::from_utf8_lossy(&text[start..]).into_owned();
        let tail: Vec<&str> = text.lines().rev().take(4).collect();
        let tail = tail.into_iter().rev().collect::<Vec<_>>().join(" | ");
        Err(Error::Program {
            program,
            tail: format!("{exit:?}: {tail}"),
        })
    }

    async fn start(&self, launch: Launch, death: Death) -> Result<Running, Error> {
        let Launch {
            program,
            args,
            dir,
            log,
            input,
        } = launch;
        let name = program.display().to_string();
        let mut command = vec![OsString::from(program)];
        command.extend(args);
        let account = self.account.map(|account| (account.uid, account.gid));
        let parent = std::process::id().cast_signed();
        let words = ExecArgs {
            account,
            parent,
            death,
            dir,
            command,
        }
        .to_words();
        let (head, rest) = self.exec.split_first().ok_or(Error::NoAccount)?;
        let output = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .map_err(Error::file("open the log", &log))?;
        let copy = output
            .try_clone()
            .map_err(Error::file("open the log", &log))?;
        let stdin = match input {
            Some(path) => Stdio::from(
                std::fs::File::open(&path).map_err(Error::file("open the script", &path))?,
            ),
            None => Stdio::null(),
        };
        let mut process = Command::new(head);
        process.args(rest).args(words).env_clear();
        process
            .env("PATH", "/usr/bin:/bin")
            .env("LC_ALL", "C")
            .env("TZ", "UTC")
            .envs(
                PASSED_ON
                    .iter()
                    .filter_map(|name| Some((name, std::env::var_os(name)?))),
            );
        process.stdin(stdin).stdout(output).stderr(copy);
        let failed = |why: String| Error::Program {
            program: name.clone(),
            tail: why,
        };
        let (answer, started) = oneshot::channel();
        let waiting = starter().try_send((process, answer));
        waiting.map_err(|_| failed("too many programs are being started".into()))?;
        let child = match started.await {
            Ok(Ok(child)) => child,
            Ok(Err(error)) => return Err(failed(error.to_string())),
            Err(_) => return Err(failed("the starting thread is gone".into())),
        };
        watch_end(child).map_err(|error| failed(error.to_string()))
    }
}

/// The thread that starts everything, made at the first start.
fn starter() -> &'static SyncSender<Start> {
    static STARTER: OnceLock<SyncSender<Start>> = OnceLock::new();
    STARTER.get_or_init(|| {
        let (sender, receiver) = sync_channel::<Start>(STARTS_WAITING_MAX);
        let work = move || {
            // The sender is static, so this loop and its thread last as long as the process.
            for (mut command, answer) in receiver {
                drop(answer.send(command.spawn()));
            }
        };
        // Without the thread every start fails with a message of its own.
        drop(
            std::thread::Builder::new()
                .name("postgres-starter".into())
                .spawn(work),
        );
        sender
    })
}

fn watch_end(mut child: Child) -> io::Result<Running> {
    let pid = child.id().cast_signed();
    let reaped = Arc::new(Mutex::new(false));
    let (sender, exited) = watch::channel(None);
    let flag = Arc::clone(&reaped);
    let wait = move || {
        // First only look, so that the pid stays ours until nobody can signal it any more.
        while waitid(
            Id::Pid(Pid::from_raw(pid)),
            WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT,
        ) == Err(nix::Error::EINTR)
        {}
        let mut reaped = flag.lock().unwrap_or_else(PoisonError::into_inner);
        *reaped = true;
        use std::os::unix::process::ExitStatusExt;
        let exit = match child.wait() {
            Ok(status) => match (status.code(), status.signal()) {
                (Some(code), _) => Exit::Code(code),
                (None, signal) => Exit::Signal(signal.unwrap_or(0)),
            },
            Err(_) => Exit::Code(-1),
        };
        drop(reaped);
        sender.send_replace(Some(exit));
    };
    std::thread::Builder::new()
        .name(format!("postgres-{pid}"))
        .spawn(wait)?;
    Ok(Running {
        pid,
        reaped,
        exited,
    })
}

impl Running {
    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Waits for its end.
    pub async fn exited(&mut self) -> Exit {
        match self.exited.wait_for(Option::is_some).await {
            Ok(exit) => exit.clone().unwrap_or(Exit::Code(-1)),
            Err(_) => Exit::Code(-1),
        }
    }

    /// How it ended, if it did.
    pub fn ended(&self) -> Option<Exit> {
        self.exited.borrow().clone()
    }

    /// Immediate shutdown of a server: no shutdown record, the log ends where it is.
    pub fn quit(&self) {
        self.signal(Signal::SIGQUIT);
    }

    /// The last resort.
    pub fn kill(&self) {
        self.signal(Signal::SIGKILL);
    }

    fn signal(&self, signal: Signal) {
        let reaped = self.reaped.lock().unwrap_or_else(PoisonError::into_inner);
        if !*reaped {
            // It may have ended in between, and then the signal has done no harm.
            kill(Pid::from_raw(self.pid), signal).ok();
        }
    }
}
