//! Follows sources of tables: opens a stream, takes what is newer, and keeps the last good table on
//! disk, off the path. A data plane follows one source and turns to the next when it is silent; a
//! mesh follows all replicas of control at once, for each of them wants its reports.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use atoll_routing::TableVersion;
use atoll_runtime::{Runtime, ScopedTask};
use atoll_streams::EncodedTable;
use atoll_streams::proto::table::TableUpdate;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::Channel;
use tonic::{Status, Streaming};
use tracing::{error, info, warn};

use super::receive::{Gap, Received, receive};
use super::{BEAT_INTERVAL, BEATS_MISSED, file};

/// Limit for opening a stream. Less than the silence that ends one: a dead source must not cost
/// more than a silent one.
const OPEN_LIMIT: Duration = Duration::from_secs(1);
/// Pause after all sources in turn gave nothing; doubles up to the second.
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(20);
/// See [`RETRY_PAUSE_MIN`].
const RETRY_PAUSE_MAX: Duration = Duration::from_millis(500);
/// A source that has said nothing fresh for this long is left, if there is another: it may have
/// lost control while the other has not.
const STALE_LIMIT: Duration = Duration::from_secs(10);
/// Pause before the file is tried again after a write that failed.
const FILE_PAUSE: Duration = Duration::from_secs(1);

/// What to follow.
#[derive(Debug, Clone)]
pub struct FollowConfig {
    /// Where tables come from.
    pub sources: Vec<SocketAddr>,
    /// The last good table.
    pub file: PathBuf,
}

/// What a receiver holds, for its reports.
#[derive(Debug)]
pub struct Held {
    tables: watch::Receiver<Option<Arc<EncodedTable>>>,
    /// Whether the next report hides what is held, to get a snapshot.
    hidden: bool,
}

impl Held {
    /// The version that the report being made names.
    pub fn named(&mut self) -> Option<TableVersion> {
        if std::mem::take(&mut self.hidden) {
            return None;
        }
        self.tables
            .borrow()
            .as_ref()
            .map(|table| table.version().clone())
    }
}

/// How a receiver opens its stream; it sends its reports on it for as long as the stream lives.
pub trait Uplink: Send + 'static {
    /// Opens the stream. Each report names `held.named()`.
    fn open(
        &mut self,
        channel: Channel,
        held: Held,
    ) -> impl Future<Output = Result<Streaming<TableUpdate>, Status>> + Send;
}

/// How old what is held is: the time since control itself said that it was its newest table.
#[derive(Debug, Clone, Default)]
pub struct Age(Arc<Mutex<Option<(Instant, Duration)>>>);

impl Age {
    fn heard(&self, age_ms: u64) {
        let heard = (Instant::now(), Duration::from_millis(age_ms));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(heard);
    }

    /// None before any table.
    pub fn now(&self) -> Option<Duration> {
        let heard = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        heard.map(|(at, age)| at.elapsed().saturating_add(age))
    }

    /// In whole milliseconds; 0 before any table.
    pub fn now_ms(&self) -> u64 {
        self.now()
            .map_or(0, |age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX))
    }
}

/// A follower at work; it ends when this is dropped.
#[derive(Debug)]
pub struct Followed {
    /// What is held.
    pub tables: watch::Receiver<Option<Arc<EncodedTable>>>,
    /// How old it is.
    pub age: Age,
    _tasks: Vec<ScopedTask<()>>,
}

/// Starts to follow one of the sources, tried in turn. `accept` sees each newer table, first the one
/// on disk, before it counts as held; what it refuses is not held.
pub fn follow<E: std::error::Error + 'static>(
    runtime: &Runtime,
    config: FollowConfig,
    uplink: impl Uplink,
    accept: impl FnMut(&Arc<EncodedTable>) -> Result<(), E> + Send + 'static,
) -> Followed {
    let sources = config.sources.clone();
    start(runtime, config, vec![(sources, uplink)], accept)
}

/// The same with every source at once, each on a stream of its own; the newest table of any of them
/// is held.
pub fn follow_all<E: std::error::Error + 'static, U: Uplink>(
    runtime: &Runtime,
    config: FollowConfig,
    uplink: impl Fn() -> U,
    accept: impl FnMut(&Arc<EncodedTable>) -> Result<(), E> + Send + 'static,
) -> Followed {
    let sources = config.sources.iter();
    let streams = sources.map(|source| (vec![*source], uplink())).collect();
    start(runtime, config, streams, accept)
}

fn start<E: std::error::Error + 'static, U: Uplink>(
    runtime: &Runtime,
    config: FollowConfig,
    streams: Vec<(Vec<SocketAddr>, U)>,
    accept: impl FnMut(&Arc<EncodedTable>) -> Result<(), E> + Send + 'static,
) -> Followed {
    let (newest, tables) = watch::channel(None);
    let age = Age::default();
    let taken = Arc::new(Taken {
        accept: Mutex::new(accept),
        newest,
        age: age.clone(),
    });
    restore(runtime, &config, &taken);
    let keeper = keep(runtime.clone(), config.file, tables.clone());
    let mut tasks = vec![runtime.tasks().spawn("table-keep", keeper).scoped()];
    for (sources, uplink) in streams {
        let follower = Follower {
            runtime: runtime.clone(),
            sources,
            uplink,
            held: watch::Sender::new(tables.borrow().clone()),
            taken: taken.clone(),
        };
        let follower = runtime.tasks().spawn("table-follow", follower.run());
        tasks.push(follower.scoped());
    }
    Followed {
        tables,
        age,
        _tasks: tasks,
    }
}

/// What all streams together have brought.
struct Taken<A> {
    accept: Mutex<A>,
    newest: watch::Sender<Option<Arc<EncodedTable>>>,
    age: Age,
}

impl<A> Taken<A> {
    /// A stream has brought a table that is newer than what it brought before.
    fn take<E>(&self, table: &Arc<EncodedTable>) -> Result<(), E>
    where
        A: FnMut(&Arc<EncodedTable>) -> Result<(), E>,
    {
        let mut accept = self.accept.lock().unwrap_or_else(PoisonError::into_inner);
        let held = self.newest.borrow().clone();
        if held.is_some_and(|held| !table.version().supersedes(held.version())) {
            // Another stream was faster.
            return Ok(());
        }
        accept(table)?;
        self.newest.send_replace(Some(table.clone()));
        Ok(())
    }

    /// A source says that this is its newest table.
    fn current(&self, table: &EncodedTable, age_ms: u64) {
        let newest = self.newest.borrow();
        let newest = newest.as_ref().map(|newest| newest.version());
        if newest == Some(table.version()) {
            self.age.heard(age_ms);
        }
    }
}

/// Begins with the table on disk, if it is good.
fn restore<E: std::error::Error, A>(runtime: &Runtime, config: &FollowConfig, taken: &Taken<A>)
where
    A: FnMut(&Arc<EncodedTable>) -> Result<(), E>,
{
    let path = config.file.display();
    let stored = match file::read(&config.file) {
        Ok(Some(stored)) => stored,
        Ok(None) => return,
        Err(error) => {
            error!(file = %path, error = %chain(&error), "last good table refused");
            return;
        }
    };
    let table = Arc::new(stored.table);
    if let Err(error) = taken.take(&table) {
        error!(file = %path, error = %chain(&error), "last good table refused");
        return;
    }
    let age_ms = runtime
        .wall_clock()
        .0
        .saturating_sub(stored.written_unix_ms);
    info!(file = %path, version = %table.version(), age_ms, "table restored");
    taken.age.heard(age_ms);
}

/// Writes each new table to disk; those that come while one is being written are skipped but for
/// the last.
async fn keep(
    runtime: Runtime,
    path: PathBuf,
    mut tables: watch::Receiver<Option<Arc<EncodedTable>>>,
) {
    // What came from the file is in the file.
    let mut written = tables
        .borrow_and_update()
        .as_ref()
        .map(|table| table.version().clone());
    while tables.changed().await.is_ok() {
        loop {
            let Some(table) = tables.borrow_and_update().clone() else {
                break;
            };
            if written.as_ref() == Some(table.version()) {
                break;
            }
            let version = table.version().clone();
            let (to, now) = (path.clone(), runtime.wall_clock().0);
            let write = move || file::write(&to, &table, now);
            match runtime
                .tasks()
                .spawn_blocking("table-write", write)
                .join()
                .await
            {
                Ok(Ok(())) => written = Some(version),
                Ok(Err(error)) => {
                    let (file, error) = (path.display(), chain(&error));
                    error!(%file, %error, %version, "last good table not written; retrying");
                    sleep(FILE_PAUSE).await;
                }
                Err(_) => return,
            }
        }
    }
}

/// An error with its causes, for one field of a log line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

struct Follower<U, A> {
    runtime: Runtime,
    /// Tried in turn.
    sources: Vec<SocketAddr>,
    uplink: U,
    /// What its own stream has brought: the base of what comes next on it.
    held: watch::Sender<Option<Arc<EncodedTable>>>,
    taken: Arc<Taken<A>>,
}

/// Nothing after a stream that gave something or while other sources are untried.
async fn pause(rounds: usize) {
    if let Some(rounds) = rounds.checked_sub(1) {
        let factor = 1 << u32::try_from(rounds).unwrap_or(u32::MAX).min(10);
        sleep(RETRY_PAUSE_MIN.saturating_mul(factor).min(RETRY_PAUSE_MAX)).await;
    }
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("it could not be opened within {} ms", OPEN_LIMIT.as_millis())]
    OpenLimit,
    #[error("{0}")]
    Status(Box<Status>),
    #[error("it ended the stream")]
    Closed,
    #[error("it missed {BEATS_MISSED} beats")]
    Silent,
    #[error("nothing fresh came from it for {} s", STALE_LIMIT.as_secs())]
    Stale,
    #[error("a snapshot is needed: {0}")]
    Gap(Gap),
    #[error("its table {version} is not usable: {why}")]
    Unusable { version: TableVersion, why: String },
}

impl From<Status> for End {
    fn from(status: Status) -> Self {
        Self::Status(Box::new(status))
    }
}

/// Whether a stream gave anything.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Gave {
    Nothing,
    Updates,
}

impl<E, U, A> Follower<U, A>
where
    E: std::error::Error + 'static,
    U: Uplink,
    A: FnMut(&Arc<EncodedTable>) -> Result<(), E> + Send,
{
    async fn run(mut self) {
        let mut at = 0;
        let mut snapshot_wanted = false;
        let mut barren = 0;
        let mut said = None;
        while let Some(source) = self.sources.get(at % self.sources.len().max(1)).copied() {
            let mut gave = Gave::Nothing;
            let end = self.stream(source, snapshot_wanted, &mut gave).await;
            if gave == Gave::Updates {
                (barren, said) = (0, None);
            }
            let again = snapshot_wanted && matches!(end, End::Gap(_));
            snapshot_wanted = matches!(end, End::Gap(_));
            if again {
                // A source that is wrong each time must not be asked in a tight loop.
                sleep(RETRY_PAUSE_MIN).await;
            }
            // A gap alone is no reason to leave a source, but one that only has gaps is.
            if !snapshot_wanted || gave == Gave::Nothing {
                at += 1;
            }
            let reason = end.to_string();
            if said.as_ref() != Some(&(source, reason.clone())) {
                let age_ms = self.taken.age.now_ms();
                warn!(%source, %reason, age_ms, "source of tables lost; trying the next");
                said = Some((source, reason));
            }
            barren += 1;
            pause(barren / self.sources.len()).await;
        }
        error!("no source of tables is configured");
    }

    async fn stream(&mut self, source: SocketAddr, snapshot_wanted: bool, gave: &mut Gave) -> End {
        let held = Held {
            tables: self.held.subscribe(),
            hidden: snapshot_wanted,
        };
        let channel = self.runtime.grpc_channel(source);
        let mut updates = match timeout(OPEN_LIMIT, self.uplink.open(channel, held)).await {
            Ok(Ok(updates)) => updates,
            Ok(Err(status)) => return status.into(),
            Err(_) => return End::OpenLimit,
        };
        info!(%source, "following source of tables");
        let mut refused = None;
        let mut fresh = Instant::now();
        loop {
            if self.sources.len() > 1 && fresh.elapsed() > STALE_LIMIT {
                return End::Stale;
            }
            let update = match timeout(BEAT_INTERVAL * BEATS_MISSED, updates.message()).await {
                Ok(Ok(Some(update))) => update,
                Ok(Ok(None)) => return End::Closed,
                Ok(Err(status)) => return status.into(),
                Err(_) => return End::Silent,
            };
            let held = self.held.borrow().clone();
            match receive(held.as_ref(), update) {
                Received::Taken(table) => {
                    if let Err(error) = self.taken.take(&table) {
                        let version = table.version().clone();
                        return End::Unusable {
                            version,
                            why: chain(&error),
                        };
                    }
                    self.held.send_replace(Some(table));
                    fresh = Instant::now();
                    *gave = Gave::Updates;
                }
                Received::Current { age_ms } => {
                    if let Some(held) = &held {
                        self.taken.current(held, age_ms);
                    }
                    if Duration::from_millis(age_ms) < STALE_LIMIT {
                        fresh = Instant::now();
                    }
                    *gave = Gave::Updates;
                }
                Received::Duplicate => *gave = Gave::Updates,
                Received::Refused { theirs } => {
                    let ours = held
                        .map(|held| held.version().to_string())
                        .unwrap_or_default();
                    if refused.as_ref() != Some(&theirs) {
                        let theirs = theirs.as_ref().map(ToString::to_string).unwrap_or_default();
                        warn!(%source, %theirs, %ours, "older table refused: a receiver never goes back");
                    }
                    refused = Some(theirs);
                }
                Received::Gap(gap) => return End::Gap(gap),
            }
        }
    }
}
