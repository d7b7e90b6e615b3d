//! Tasks with a name, an owner and an end.

use std::any::Any;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::{Notify, Semaphore};
use tokio::task::{AbortHandle, JoinHandle};
use tracing::{error, warn};

/// Blocking calls of one process that run at once; more wait.
pub const BLOCKING_AT_ONCE: usize = 16;

/// The tasks of a process. A cheap handle; tasks belong to the set, not to whoever spawned them.
#[derive(Clone)]
pub struct Tasks(Arc<Shared>);

/// Name and how to abort, by number. A task that was just begun has no handle yet.
type Running = BTreeMap<u64, (Cow<'static, str>, Option<AbortHandle>)>;

struct Shared {
    next: AtomicU64,
    running: Mutex<Running>,
    emptied: Notify,
    blocking: Arc<Semaphore>,
    threads: Threads,
}

/// Where blocking calls run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Threads {
    /// On threads of their own.
    Own,
    /// Within the task: the simulator's time stands still while a task runs, and a thread would
    /// make the order of events a matter of chance.
    #[cfg(feature = "simulation")]
    None,
}

impl Default for Tasks {
    fn default() -> Self {
        Self::on(Threads::Own)
    }
}

/// Why a task gave no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TaskEnd {
    /// It was aborted.
    #[error("the task was aborted")]
    Aborted,
    /// It panicked; already logged.
    #[error("the task panicked: {0}")]
    Panicked(String),
}

/// One task. Dropping the handle leaves the task running.
#[derive(Debug)]
pub struct TaskHandle<T>(JoinHandle<Result<T, TaskEnd>>);

impl<T> TaskHandle<T> {
    /// Waits for the task's value. Safe to cancel.
    pub async fn join(&mut self) -> Result<T, TaskEnd> {
        (&mut self.0).await.unwrap_or(Err(TaskEnd::Aborted))
    }

    /// Ends the task at its next await.
    pub fn abort(&self) {
        self.0.abort();
    }

    /// Whether the task has ended.
    pub fn is_finished(&self) -> bool {
        self.0.is_finished()
    }

    /// A handle whose drop aborts the task: for a task that serves one owner only.
    pub fn scoped(self) -> ScopedTask<T> {
        ScopedTask(self)
    }
}

impl<T> Future for TaskHandle<T> {
    type Output = Result<T, TaskEnd>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0
            .poll_unpin(cx)
            .map(|joined| joined.unwrap_or(Err(TaskEnd::Aborted)))
    }
}

/// A task that ends with its owner.
#[derive(Debug)]
pub struct ScopedTask<T>(TaskHandle<T>);

impl<T> ScopedTask<T> {
    /// Waits for the task's value. Safe to cancel.
    pub async fn join(&mut self) -> Result<T, TaskEnd> {
        self.0.join().await
    }

    /// Whether the task has ended.
    pub fn is_finished(&self) -> bool {
        self.0.is_finished()
    }
}

impl<T> Drop for ScopedTask<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Tasks {
    /// Those of a simulated process: blocking calls run in their task.
    #[cfg(feature = "simulation")]
    pub(crate) fn inline() -> Self {
        Self::on(Threads::None)
    }

    fn on(threads: Threads) -> Self {
        Self(Arc::new(Shared {
            next: AtomicU64::new(0),
            running: Mutex::default(),
            emptied: Notify::new(),
            blocking: Arc::new(Semaphore::new(BLOCKING_AT_ONCE)),
            threads,
        }))
    }

    /// Starts a task on the current async runtime. A panic in it is logged as an error.
    #[expect(clippy::disallowed_methods, reason = "this is the owner of all tasks")]
    pub fn spawn<T: Send + 'static>(
        &self,
        name: impl Into<Cow<'static, str>>,
        future: impl Future<Output = T> + Send + 'static,
    ) -> TaskHandle<T> {
        let entry = self.enter(name.into());
        let id = entry.id;
        self.entered(id, tokio::spawn(entry.run(future)))
    }

    /// As [`Tasks::spawn`], for futures that stay on the thread of a `LocalSet`.
    pub fn spawn_local<T: 'static>(
        &self,
        name: impl Into<Cow<'static, str>>,
        future: impl Future<Output = T> + 'static,
    ) -> TaskHandle<T> {
        let entry = self.enter(name.into());
        let id = entry.id;
        self.entered(id, tokio::task::spawn_local(entry.run(future)))
    }

    /// Runs a blocking call off the async threads, [`BLOCKING_AT_ONCE`] at a time. A call that has
    /// begun cannot be aborted.
    pub fn spawn_blocking<T: Send + 'static>(
        &self,
        name: impl Into<Cow<'static, str>>,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> TaskHandle<T> {
        let name = name.into();
        let (entry, blocking) = (self.enter(name.clone()), self.0.blocking.clone());
        let threads = self.0.threads;
        let id = entry.id;
        #[expect(clippy::disallowed_methods, reason = "this is the owner of all tasks")]
        let handle = tokio::spawn(async move {
            let entry = entry;
            // The permit goes with the call, which goes on when this future is dropped.
            let Ok(permit) = blocking.acquire_owned().await else {
                return Err(TaskEnd::Aborted);
            };
            let run = move || {
                let done = std::panic::catch_unwind(AssertUnwindSafe(call));
                drop(permit);
                done.map_err(|panic| entry.panicked(&*panic))
            };
            match threads {
                Threads::Own => tokio::task::spawn_blocking(run)
                    .await
                    .unwrap_or(Err(TaskEnd::Aborted)),
                #[cfg(feature = "simulation")]
                Threads::None => run(),
            }
        });
        self.entered(id, handle)
    }

    /// Names of the running tasks, for debugging.
    pub fn names(&self) -> Vec<String> {
        self.0
            .lock()
            .values()
            .map(|(name, _)| name.clone().into_owned())
            .collect()
    }

    /// Waits until no task runs, at most for `grace`, then aborts those that still do and names
    /// them in the log. Call it after [`crate::Shutdown::request`].
    pub async fn end(&self, grace: Duration) {
        let emptied = async {
            loop {
                let emptied = self.0.emptied.notified();
                if self.0.lock().is_empty() {
                    return;
                }
                emptied.await;
            }
        };
        if tokio::time::timeout(grace, emptied).await.is_ok() {
            return;
        }
        for (name, abort) in self.0.lock().values() {
            warn!(task = %name, "task aborted: it did not end within the grace");
            if let Some(abort) = abort {
                abort.abort();
            }
        }
    }

    fn enter(&self, name: Cow<'static, str>) -> Entry {
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        self.0.lock().insert(id, (name.clone(), None));
        Entry {
            tasks: self.clone(),
            id,
            name,
        }
    }

    /// Keeps how to abort the task, unless it has already ended.
    fn entered<T>(&self, id: u64, handle: JoinHandle<Result<T, TaskEnd>>) -> TaskHandle<T> {
        if let Some((_, abort)) = self.0.lock().get_mut(&id) {
            *abort = Some(handle.abort_handle());
        }
        TaskHandle(handle)
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A task's place in the set; its drop, also by abort, gives it up.
struct Entry {
    tasks: Tasks,
    id: u64,
    name: Cow<'static, str>,
}

impl Entry {
    async fn run<T>(self, future: impl Future<Output = T>) -> Result<T, TaskEnd> {
        let done = AssertUnwindSafe(future).catch_unwind().await;
        done.map_err(|panic| self.panicked(&*panic))
    }

    fn panicked(&self, panic: &(dyn Any + Send)) -> TaskEnd {
        let text = panic
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "a panic without text".to_owned());
        error!(task = %self.name, panic = %text, "task panicked");
        TaskEnd::Panicked(text)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut running = self.tasks.0.lock();
        running.remove(&self.id);
        if running.is_empty() {
            self.tasks.0.emptied.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_gives_its_value_or_says_how_it_ended() {
        let tasks = Tasks::default();
        assert_eq!(tasks.spawn("sum", async { 1 + 1 }).join().await, Ok(2));
        assert_eq!(tasks.spawn_blocking("sum", || 1 + 2).await, Ok(3));
        let mut panics = tasks.spawn("panics", async { panic!("at the disco") });
        let panicked = TaskEnd::Panicked("at the disco".into());
        assert_eq!(panics.join().await, Err::<(), _>(panicked.clone()));
        let mut blocks = tasks.spawn_blocking("panics", || panic!("at the disco"));
        assert_eq!(blocks.join().await, Err::<(), _>(panicked));
        let mut waits = tasks.spawn("waits", std::future::pending::<()>());
        waits.abort();
        assert_eq!(waits.join().await, Err(TaskEnd::Aborted));
        assert_eq!(tasks.names(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn a_scoped_task_ends_with_its_owner() {
        let tasks = Tasks::default();
        let (_keep, kept) = tokio::sync::oneshot::channel::<()>();
        let scoped = tasks.spawn("waits", kept).scoped();
        assert_eq!(tasks.names(), ["waits"]);
        drop(scoped);
        tasks.end(Duration::from_secs(5)).await;
        assert_eq!(tasks.names(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn the_end_waits_for_tasks_and_aborts_those_that_stay() {
        let tasks = Tasks::default();
        let shutdown = crate::Shutdown::default();
        let asked = shutdown.clone();
        let mut good = tasks.spawn("good", async move { asked.requested().await });
        let mut bad = tasks.spawn("bad", std::future::pending::<()>());
        shutdown.request();
        tasks.end(Duration::from_millis(100)).await;
        assert_eq!(good.join().await, Ok(()));
        assert_eq!(bad.join().await, Err(TaskEnd::Aborted));
    }
}
