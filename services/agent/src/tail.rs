//! Looks whether our standby hangs at a torn tail (see [`atoll_postgres::cut_torn_tail`]), and has
//! it cut off.

use std::sync::Arc;

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
            let layout = &database.options.layout;
            let torn = has_torn_tail(layout, end.timeline, end.position.lsn);
            if let Err(error) = &torn {
                debug!(%error, "the end of the log cannot be looked at");
            }
            looks = if torn.unwrap_or(false) && last == Some(end) {
                looks + 1
            } else {
                0
            };
            last = Some(end);
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
