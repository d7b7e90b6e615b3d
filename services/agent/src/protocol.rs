//! Everything of an agent that speaks the protocol, around its member's actor: beats, calls, the
//! driver, what a leader repeats, and the streams to control.

use std::sync::Arc;

use atoll_ownership::LogEnd;
use atoll_runtime::{Listener, Runtime};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use crate::actor::Handle;
use crate::beats::{BEAT_INTERVAL, Beats};
use crate::config::Config;
use crate::control::ToControl;
use crate::driving::Driving;
use crate::gate::Gate;
use crate::leading::Cascade;
use crate::peers::Peers;
use crate::postgres::Postgres;
use crate::{calls, leading};

/// Reports that wait for control; a lost control is told the last progress again.
const OUTBOX_MAX: usize = 64;

/// The log as last read, which is what others are told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Its end; none while PostgreSQL does not answer.
    pub(crate) end: Option<LogEnd>,
    pub(crate) replay_lag_bytes: u64,
}

/// Speaks for the member behind `actor` until shutdown. `calls` is where other members call.
pub fn speak(
    runtime: &Runtime,
    config: &Config,
    calls: Listener,
    actor: &Handle,
    peers: &Arc<Peers>,
    gate: &Arc<Gate>,
    postgres: &Arc<dyn Postgres>,
) {
    let (group, member) = (&config.group, &config.member);
    let seen = observe(runtime, postgres);
    let beats = Beats::new(
        group.clone(),
        member.clone(),
        actor.view.clone(),
        seen.clone(),
    );
    let (of, to) = (group.clone(), member.clone());
    calls::serve(runtime, calls, of, to, actor.clone(), beats.clone());
    beats.dial(runtime, peers);
    let cascade = Cascade::default();
    leading::repeat_follow(runtime, config, peers, actor, &cascade);
    leading::watch_isolation(runtime, actor, &beats, gate, usize::from(config.k));
    let (reports, outbox) = mpsc::channel(OUTBOX_MAX);
    let driving = Arc::new(Driving {
        runtime: runtime.clone(),
        group: group.clone(),
        member: member.clone(),
        actor: actor.clone(),
        peers: peers.clone(),
        postgres: postgres.clone(),
        reports: reports.clone(),
        fail_after: config.fail_after,
        now: std::sync::Mutex::new(None),
    });
    let to_control = Arc::new(ToControl {
        runtime: runtime.clone(),
        process: config.process.clone(),
        group: group.clone(),
        member: member.clone(),
        actor: actor.clone(),
        gate: gate.clone(),
        postgres: postgres.clone(),
        seen,
        beats,
        driving,
        cascade,
        reports,
    });
    to_control.run(config, outbox);
}

/// Reads the log's end as often as it is told to others.
fn observe(runtime: &Runtime, postgres: &Arc<dyn Postgres>) -> watch::Receiver<Seen> {
    let (out, seen) = watch::channel(Seen::default());
    let (postgres, shutdown) = (postgres.clone(), runtime.shutdown());
    let work = async move {
        loop {
            let read = postgres.end().await;
            out.send_modify(|seen| {
                seen.end = read.map(|reading| reading.end);
                if let Some(reading) = read {
                    seen.replay_lag_bytes = reading.replay_lag_bytes;
                }
            });
            sleep(BEAT_INTERVAL).await;
        }
    };
    runtime.tasks().spawn("observe-log", async move {
        tokio::select! {
            () = work => {}
            () = shutdown.requested() => {}
        }
    });
    seen
}
