//! One thread a core, each with a current-thread runtime of its own: nothing is shared between two
//! requests but what is meant to be.

use std::num::NonZeroUsize;

use atoll_runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::LocalSet;

/// Why a worker gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The thread could not be started.
    #[error("worker {0} could not be started")]
    Start(usize, #[source] std::io::Error),
    /// It panicked.
    #[error("worker {0} ended without a result")]
    Died(usize),
}

/// A running worker.
#[derive(Debug)]
pub struct Worker<T> {
    index: usize,
    result: oneshot::Receiver<T>,
}

/// How many workers this machine has room for.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

/// Starts a worker: a thread that runs the future which `body` makes there, and ends with it. In
/// the simulator, which has one thread, it is a task beside the others.
pub fn start<T, F, Fut>(
    runtime: &Runtime,
    role: &str,
    index: usize,
    body: F,
) -> Result<Worker<T>, WorkerError>
where
    T: Send + 'static,
    F: FnOnce() -> Fut + Send + 'static,
    Fut: Future<Output = T> + 'static,
{
    let (give, result) = oneshot::channel();
    if runtime.is_simulated() {
        let work = async move { drop(give.send(body().await)) };
        runtime.tasks().spawn_local(format!("{role}-{index}"), work);
        return Ok(Worker { index, result });
    }
    let tokio = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| WorkerError::Start(index, error))?;
    std::thread::Builder::new()
        .name(format!("{role}-{index}"))
        .spawn(move || {
            let local = LocalSet::new();
            let done = local.block_on(&tokio, async move { body().await });
            // Tasks that are left end here, before the result is known.
            drop(local);
            drop(give.send(done));
        })
        .map_err(|error| WorkerError::Start(index, error))?;
    Ok(Worker { index, result })
}

impl<T> Worker<T> {
    /// Waits for its result.
    pub async fn join(self) -> Result<T, WorkerError> {
        self.result.await.map_err(|_| WorkerError::Died(self.index))
    }
}
