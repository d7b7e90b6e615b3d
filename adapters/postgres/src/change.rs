//! The owner change on a running primary: the drain lock, then the opening transaction without a
//! term row. Sessions of other shards go on.

use std::collections::BTreeSet;

use atoll_ownership::{Grant, TermRow};
use tokio::time::{Duration, sleep};

use crate::opening::{Born, move_shards, write_term_row};
use crate::session::Session;
use crate::sql::{CELL_ROLES, literal};
use crate::{Error, Layout, timeline_of_primary};

/// How often the drain lock is tried before the change is called off.
pub const DRAIN_ATTEMPTS_MAX: u32 = 10;

/// SQLSTATE of a lock that was not granted in time.
const LOCK_NOT_AVAILABLE: &str = "55P03";

/// SQLSTATE of a deadlock; the lock order makes it rare, applications can still cause it.
const DEADLOCK: &str = "40P01";

/// Between two attempts, so that the waiters that our lock request held up get through.
const PAUSE: Duration = Duration::from_millis(20);

/// An owner change in place.
#[derive(Debug, Clone)]
pub struct InPlace {
    /// Shards and their new owners.
    pub moves: Vec<Grant>,
    /// A term row to write in the same transaction: only for calling off.
    pub row: Option<TermRow>,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Moved {
    /// Committed and acknowledged by the quorum.
    Done,
    /// The tables stayed in use; sessions that idle in a transaction are in the way.
    Busy,
}

/// A session of a cell that sits idle in a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdleSession {
    /// Its backend.
    pub pid: i32,
    /// Its role.
    pub role: String,
}

/// Tries the change [`DRAIN_ATTEMPTS_MAX`] times. `between` is called after each failed attempt
/// with the sessions that idle in a transaction: their client *sockets* may be closed (an idle
/// transaction then aborts, a COMMIT goes on waiting), their backends never be told to end.
pub async fn change_owner<F>(
    session: &Session,
    layout: &Layout,
    change: &InPlace,
    mut between: F,
) -> Result<Moved, Error>
where
    F: FnMut(Vec<IdleSession>),
{
    for _ in 0..DRAIN_ATTEMPTS_MAX {
        match attempt(session, layout, change).await {
            Ok(()) => return Ok(Moved::Done),
            Err(error) if is_busy(&error) => {
                between(idle_sessions(session).await?);
                sleep(PAUSE).await;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(Moved::Busy)
}

/// Whether somebody else holds what is needed, for now.
fn is_busy(error: &Error) -> bool {
    matches!(error.sqlstate(), Some(LOCK_NOT_AVAILABLE | DEADLOCK))
}

async fn attempt(session: &Session, layout: &Layout, change: &InPlace) -> Result<(), Error> {
    session
        .execute(
            "begin the owner change",
            "BEGIN; SET LOCAL lock_timeout = '200ms'",
        )
        .await?;
    let work = async {
        match &change.row {
            None => lock_tables(session, &change.moves).await?,
            Some(_) => {
                let changing = changing_hands(session, &change.moves).await?;
                lock_tables(session, &changing).await?;
            }
        }
        if let Some(mut row) = change.row.clone() {
            row.timeline = timeline_of_primary(session).await?;
            write_term_row(session, layout, &mut row).await?;
        }
        move_shards(session, &change.moves, &[], Born::Before).await
    };
    match work.await {
        Ok(()) => session.execute("commit the owner change", "COMMIT").await,
        Err(error) => {
            let rolled_back = session
                .execute("roll back the owner change", "ROLLBACK")
                .await;
            // What went wrong first is the reason, unless it is to be tried again: that needs a session.
            match rolled_back {
                Err(lost) if is_busy(&error) => Err(lost),
                _ => Err(error),
            }
        }
    }
}

/// A call-off gives shards back to cells that, by the log, still have them: nobody's transaction
/// is in the way there, least of all the one for which the switch is called off. Only what the log
/// gave to another cell meanwhile has to be drained.
async fn changing_hands(session: &Session, moves: &[Grant]) -> Result<Vec<Grant>, Error> {
    let shards: Vec<String> = moves.iter().map(|m| m.shard.to_string()).collect();
    if shards.is_empty() {
        return Ok(Vec::new());
    }
    let sql = format!(
        "SELECT shard, cell FROM atoll.shard_owner WHERE shard IN ({}) ORDER BY shard FOR UPDATE",
        shards.join(", ")
    );
    let owners: BTreeSet<(String, String)> = session
        .rows("lock the shards' rows", &sql)
        .await?
        .into_iter()
        .filter_map(|row| {
            let mut values = row.into_iter();
            Some((values.next()??, values.next()??))
        })
        .collect();
    let stays = |m: &&Grant| owners.contains(&(m.shard.to_string(), m.cell.to_string()));
    Ok(moves.iter().filter(|m| !stays(m)).cloned().collect())
}

/// Writers wait, readers go on; in the order of oids, so that two changes cannot deadlock.
async fn lock_tables(session: &Session, moves: &[Grant]) -> Result<(), Error> {
    let schemas: BTreeSet<String> = moves.iter().map(|m| literal(&m.shard.schema())).collect();
    let schemas: Vec<String> = schemas.into_iter().collect();
    if schemas.is_empty() {
        return Ok(());
    }
    let sql = format!(
        "SELECT c.oid::regclass FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.relkind IN ('r', 'p') AND n.nspname IN ({}) ORDER BY c.oid",
        schemas.join(", ")
    );
    for row in session.rows("list the tables", &sql).await? {
        if let Some(Some(table)) = row.first() {
            let sql = format!("LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE");
            session.execute("take the drain lock", &sql).await?;
        }
    }
    Ok(())
}

/// Cells' sessions that sit idle in a transaction.
pub async fn idle_sessions(session: &Session) -> Result<Vec<IdleSession>, Error> {
    let sql = format!(
        "SELECT pid, usename FROM pg_stat_activity WHERE usename LIKE '{CELL_ROLES}' \
         AND state IN ('idle in transaction', 'idle in transaction (aborted)')"
    );
    let rows = session.rows("list idle transactions", &sql).await?;
    Ok(rows
        .into_iter()
        .filter_map(|row| {
            let mut cells = row.into_iter();
            let pid = cells.next()??.parse().ok()?;
            Some(IdleSession {
                pid,
                role: cells.next()??,
            })
        })
        .collect())
}
