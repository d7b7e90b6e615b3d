//! What would hold up an op, or must not be there when a switch is planned: the oldest writing transaction,
//! and whatever goes round the owner's privilege. Read where this member leads, on a session of its
//! own, so that no step of a switch waits for it.

use std::sync::Arc;

use atoll_postgres::{Session, check_privileges};
use atoll_runtime::Runtime;
use tokio::sync::watch;
use tokio::time::{Duration, sleep, timeout};
use tracing::{debug, warn};

use crate::actor::Handle;
use crate::database::{Database, READ_LIMIT, too_long};
use crate::error::Error;

/// How often the oldest transaction is looked for.
const LOOK: Duration = Duration::from_secs(1);
/// The privileges are checked every so many looks: a few seconds, and so soon after a schema file.
const LOOKS_PER_CHECK: u32 = 4;
/// Findings that are told; each must be mended before the next switch is planned anyway.
const FINDINGS_MAX: usize = 3;

/// A transaction that holds an id writes; its age is that of its begin.
const OLDEST: &str = "SELECT coalesce(max((extract(epoch FROM clock_timestamp() - xact_start) \
     * 1000)::bigint), 0) FROM pg_stat_activity \
     WHERE backend_xid IS NOT NULL AND backend_type = 'client backend'";

/// What was found last; nothing where this member does not lead.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hindrances {
    /// How long the oldest writing transaction has been open.
    pub oldest_transaction_ms: u64,
    /// Rule and object; none: nothing goes round the owner's privilege.
    pub broken_privilege: Option<String>,
}

/// Looks until shutdown.
pub(crate) fn watch(
    runtime: &Runtime,
    database: &Arc<Database>,
    actor: &Handle,
) -> watch::Receiver<Hindrances> {
    let (out, hindrances) = watch::channel(Hindrances::default());
    let (database, view) = (database.clone(), actor.view.clone());
    let shutdown = runtime.shutdown();
    let work = async move {
        let mut session: Option<Arc<Session>> = None;
        let mut looks = 0;
        loop {
            if view.borrow().leading.is_none() {
                session = None;
                looks = 0;
                out.send_replace(Hindrances::default());
            } else {
                let check = looks % LOOKS_PER_CHECK == 0;
                let look = timeout(READ_LIMIT, look(&database, &mut session, check, &out));
                match look.await.unwrap_or_else(|_| Err(too_long())) {
                    Ok(()) => looks += 1,
                    Err(error) => {
                        // Cut with the port, or PostgreSQL is busy or gone: that is told elsewhere.
                        debug!(%error, "what holds up a switch cannot be read");
                        session = None;
                    }
                }
            }
            sleep(LOOK).await;
        }
    };
    runtime.tasks().spawn("hindrances", async move {
        tokio::select! {
            () = work => {}
            () = shutdown.requested() => {}
        }
    });
    hindrances
}

async fn look(
    database: &Arc<Database>,
    kept: &mut Option<Arc<Session>>,
    check: bool,
    out: &watch::Sender<Hindrances>,
) -> Result<(), Error> {
    let session = match kept {
        Some(session) if session.is_open() => session.clone(),
        _ => kept.insert(database.session().await?).clone(),
    };
    let rows = session.rows("find the oldest transaction", OLDEST).await?;
    let oldest = rows.into_iter().flatten().flatten().next();
    let oldest_transaction_ms = oldest.and_then(|text| text.parse().ok()).unwrap_or(0);
    let broken_privilege = if check {
        let findings = check_privileges(&session, None).await?;
        let told = findings.iter().take(FINDINGS_MAX).map(ToString::to_string);
        let told: Vec<_> = told.collect();
        (!told.is_empty()).then(|| told.join("; "))
    } else {
        out.borrow().broken_privilege.clone()
    };
    if let Some(what) = broken_privilege.as_ref().filter(|_| check) {
        warn!(
            what,
            "something goes round the owner's privilege: no switch is planned before it is mended"
        );
    }
    out.send_replace(Hindrances {
        oldest_transaction_ms,
        broken_privilege,
    });
    Ok(())
}
