//! Looks whether our standby hangs at a torn tail (see [`atoll_postgres::cut_torn_tail`]), and has
//! it cut off.

use std::sync::Arc;

use atoll_ownership::LogEnd;
use atoll_postgres::has_torn_tail;
use atoll_runtime::Runtime;
use atoll_streams::agent::MemberRole;
use tokio::time::{Duration, sleep};
use tracing::debug;

use crate::actor::{Command, Handle};
use crate::database::Database;

/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// A record that is on its way is torn for a moment; one that stays so for so many looks in a row
/// has nobody who would send the rest.
const LOOKS: u32 = 3;

/// Looks until shutdown.
pub(crate) fn watch(runtime: &Runtime, actor: &Handle, database: &Arc<Database>) {
    let (actor, database, shutdown) = (actor.clone(), database.clone(), runtime.shutdown());
    let work = async move {
        let (mut last, mut looks) = (None, 0);
        loop {
            sleep(LOOK).await;
            let follows = actor.view.borrow().role == MemberRole::Following;
            let end = match database.end().await {
                Ok((log, end)) if follows && log.standby => end,
                _ => {
                    looks = 0;
                    continue;
                }
            };
            // A log that moves on is not stuck, and its files need not be looked at.
            let stands = last.replace(end) == Some(end);
            let torn = stands && is_torn(&database, end);
            looks = if torn { looks + 1 } else { 0 };
            if looks >= LOOKS {
                looks = 0;
                if actor.send(Command::TornTail { end }).await.is_err() {
                    return;
                }
            }
        }
    };
    runtime.tasks().spawn("torn-tail", async move {
        tokio::select! {
            () = work => {}
            () = shutdown.requested() => {}
        }
    });
}

fn is_torn(database: &Database, end: LogEnd) -> bool {
    let layout = &database.options.layout;
    has_torn_tail(layout, end.timeline, end.position.lsn).unwrap_or_else(|error| {
        debug!(%error, "the end of the log cannot be looked at");
        false
    })
}
