//! Keeps one process running for as long as that is wanted.

use std::sync::Arc;
use std::time::Duration;

use atoll_hosts::{Spec, kill, ready_line, spawn};
use atoll_topology::ProcessId;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::board::{Board, Wish};
use crate::status::Doing;

/// The wait before the first restart; doubled by each further one.
const BACK_OFF_FIRST: Duration = Duration::from_millis(200);
/// The longest wait before a restart.
const BACK_OFF_MAX: Duration = Duration::from_secs(5);
/// A process that lived this long has recovered: its next restart waits the first wait again.
const LIVED_WELL: Duration = Duration::from_secs(10);
/// A process that does not say `ready` for this long is only logged; who waits has own limits.
const READY_LIMIT: Duration = Duration::from_secs(300);

/// Runs until the world ends.
pub(crate) async fn keep(
    board: Arc<Board>,
    id: ProcessId,
    spec: Spec,
    mut wish: watch::Receiver<Wish>,
) {
    let mut back_off = BACK_OFF_FIRST;
    loop {
        let Ok(wanted) = wish.wait_for(|w| *w != Wish::Rest).await.map(|w| *w) else {
            return;
        };
        if wanted == Wish::End {
            return;
        }
        let begun = Instant::now();
        let how = run_once(&board, &id, &spec, &wish).await;
        let restart = *wish.borrow() == Wish::Run;
        board.ended(
            &id,
            how.clone(),
            if restart { Doing::BackOff } else { Doing::Down },
        );
        if !restart {
            info!(process = %id, how, "process ended as ordered");
            continue;
        }
        if begun.elapsed() >= LIVED_WELL {
            back_off = BACK_OFF_FIRST;
        }
        let wait_ms = u64::try_from(back_off.as_millis()).unwrap_or(u64::MAX);
        warn!(process = %id, how, wait_ms, "process ended by itself and is started again");
        tokio::select! {
            () = sleep(back_off) => {}
            _ = wish.wait_for(|w| *w != Wish::Run) => {}
        }
        if *wish.borrow() == Wish::Rest {
            board.ended(&id, how, Doing::Down);
        }
        back_off = (back_off * 2).min(BACK_OFF_MAX);
    }
}

/// One life of the process; returns how it ended.
async fn run_once(
    board: &Board,
    id: &ProcessId,
    spec: &Spec,
    wish: &watch::Receiver<Wish>,
) -> String {
    let mut running = match spawn(spec) {
        Ok(running) => running,
        Err(error) => return format!("{error}: {}", cause(&error)),
    };
    let process = running.process();
    board.started(id, process);
    info!(process = %id, pid = process.pid, "process started");
    // An order to kill may have come between the decision to start and the start.
    if *wish.borrow() != Wish::Run
        && let Err(error) = kill(&[process])
    {
        warn!(process = %id, %error, "process cannot be killed");
    }
    let ready = ready_line(process, &spec.output, &spec.log, READY_LIMIT);
    let ended = tokio::select! {
        ended = running.wait() => ended,
        ready = ready => {
            match ready {
                Ok(_) => board.serves(id),
                Err(error) => warn!(process = %id, %error, "process is not ready"),
            }
            running.wait().await
        }
    };
    match ended {
        Ok(ending) => ending.to_string(),
        Err(error) => format!("could not be waited for: {error}"),
    }
}

fn cause(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(String::new, ToString::to_string)
}
