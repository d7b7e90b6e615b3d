//! How every long-running role starts and ends.

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info, warn};

use crate::{RealOptions, Runtime};

/// How long a role may drain after it was asked to end.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(30);
/// How long tasks may go on after their role has returned.
pub const TASKS_GRACE: Duration = Duration::from_secs(2);
/// How long the exit waits for blocking calls that cannot be aborted.
const BLOCKING_GRACE: Duration = Duration::from_secs(1);
/// Worker threads: the data planes bring their own one-core runtimes.
const WORKERS: usize = 2;

/// [`main_with`] the default options.
pub fn main<F, E>(role: &str, run: F) -> ExitCode
where
    F: AsyncFnOnce(Runtime) -> Result<(), E>,
    E: Into<Box<dyn Error + Send + Sync>>,
{
    main_with(role, RealOptions::default(), run)
}

/// Runs a role until it returns. SIGTERM and SIGINT ask for shutdown; the role then has
/// [`DRAIN_LIMIT`] to return, or until a second signal. Exit code 0, or 1 if it failed.
pub fn main_with<F, E>(role: &str, options: RealOptions, run: F) -> ExitCode
where
    F: AsyncFnOnce(Runtime) -> Result<(), E>,
    E: Into<Box<dyn Error + Send + Sync>>,
{
    let tokio = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .thread_name(role)
        .enable_all()
        .build();
    let tokio = match tokio {
        Ok(tokio) => tokio,
        Err(error) => return failed(role, &error),
    };
    let result = tokio.block_on(until_ended(role, Runtime::real(options), run));
    tokio.shutdown_timeout(BLOCKING_GRACE);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(role, &*error),
    }
}

async fn until_ended<F, E>(
    role: &str,
    runtime: Runtime,
    run: F,
) -> Result<(), Box<dyn Error + Send + Sync>>
where
    F: AsyncFnOnce(Runtime) -> Result<(), E>,
    E: Into<Box<dyn Error + Send + Sync>>,
{
    let shutdown = runtime.shutdown();
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let forced = async {
        tokio::select! {
            () = received(&mut term, &mut int) => {}
            () = shutdown.requested() => {}
        }
        info!(role, "shutdown requested");
        shutdown.request();
        tokio::select! {
            () = received(&mut term, &mut int) => "a second signal",
            () = tokio::time::sleep(DRAIN_LIMIT) => "the limit for draining",
        }
    };
    let result = tokio::select! {
        result = run(runtime.clone()) => result.map_err(Into::into),
        cause = forced => {
            warn!(role, cause, "drain ended early");
            Ok(())
        }
    };
    runtime.shutdown().request();
    runtime.tasks().end(TASKS_GRACE).await;
    result
}

async fn received(term: &mut Signal, int: &mut Signal) {
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}

fn failed(role: &str, error: &(dyn Error + 'static)) -> ExitCode {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    if tracing::dispatcher::has_been_set() {
        error!(role, error = %text, "role failed");
    } else {
        // Nothing is left to do if even stderr is gone.
        drop(writeln!(io::stderr(), "atoll {role}: {text}"));
    }
    ExitCode::FAILURE
}
