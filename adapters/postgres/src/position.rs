//! Where a log ends, which term rows it holds, and how a standby becomes a primary.

use atoll_ownership::{LogEnd, TermRow};
use atoll_topology::{Lsn, MemberId, Position, Term};
use tokio::time::{Duration, Instant, sleep};

use crate::history::read_timelines;
use crate::{Error, Layout, Session};

/// `pg_promote(true)` polls every 100 ms.
const PROMOTE_POLL: Duration = Duration::from_micros(500);

/// A promotion takes 15 to 50 ms.
const PROMOTE_LIMIT: Duration = Duration::from_secs(20);

/// What a running instance says about its log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogState {
    /// Whether it is a standby.
    pub standby: bool,
    /// End of what is flushed (primary) or replayed (standby).
    pub end: Lsn,
    /// End of what its receiver has flushed; may lie before `end` after a restart.
    pub received: Option<Lsn>,
    /// Pid of its receiver, while there is one.
    pub receiver: Option<i32>,
}

/// A log: its state, its end, and the term rows in it.
#[derive(Debug, Clone)]
pub struct Line {
    /// What the instance says.
    pub state: LogState,
    /// The end, comparable with other members'.
    pub end: LogEnd,
    /// The term rows, oldest first.
    pub history: Vec<TermRow>,
}

/// Columns of [`LogState`].
const LOG_STATE: &str = "pg_is_in_recovery(), \
    CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() \
         ELSE pg_current_wal_flush_lsn() END, \
    CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() END, \
    (SELECT pid FROM pg_stat_get_wal_receiver())";

/// How many they are.
const LOG_STATE_COLUMNS: usize = 4;

/// Reads the state of the log.
pub async fn read_log(session: &Session) -> Result<LogState, Error> {
    let sql = format!("SELECT {LOG_STATE}");
    let rows = session.rows("read the log's state", &sql).await?;
    log_state(rows.first().map(Vec::as_slice).unwrap_or_default())
}

/// The state of the log and its end, in one query: members read it five times a second.
pub async fn read_end(session: &Session, layout: &Layout) -> Result<(LogState, LogEnd), Error> {
    let sql = format!(
        "SELECT {LOG_STATE}, t.term, t.timeline FROM (SELECT 1) AS one \
         LEFT JOIN (SELECT term, timeline FROM atoll.term ORDER BY term DESC LIMIT 1) AS t ON true"
    );
    let rows = session.rows("read the log's end", &sql).await?;
    let row = rows.first().map(Vec::as_slice).unwrap_or_default();
    let state = log_state(row)?;
    let number = |at: usize| -> Option<u64> { row.get(at)?.as_ref()?.parse().ok() };
    let last = number(4).zip(number(5).and_then(|timeline| u32::try_from(timeline).ok()));
    let end = log_end(last, state.end, layout)?;
    Ok((state, end))
}

fn log_state(row: &[Option<String>]) -> Result<LogState, Error> {
    let text = |at: usize| row.get(at).cloned().flatten();
    let garbled = || Error::Garbled {
        what: "the log's state",
        text: format!("{row:?}"),
    };
    let lsn = |text: String| text.parse::<Lsn>().map_err(|_| garbled());
    Ok(LogState {
        standby: text(0).ok_or_else(garbled)? == "t",
        end: lsn(text(1).ok_or_else(garbled)?)?,
        received: text(2).map(lsn).transpose()?,
        receiver: text(3).and_then(|pid| pid.parse().ok()),
    })
}

/// `last`: term and timeline of the last term row. A template was never led by anyone: term 1.
fn log_end(last: Option<(u64, u32)>, end: Lsn, layout: &Layout) -> Result<LogEnd, Error> {
    let (term, written) = last.unwrap_or((1, 1));
    let timeline = current_timeline(written, end, layout)?;
    let position = Position {
        term: Term::new(term),
        lsn: end,
    };
    Ok(LogEnd { position, timeline })
}

/// The state of the log, its end, and the term rows, oldest first: in one query, because users wait
/// for it.
///
/// The timeline of the end is that of the last row, unless the log has gone on to a later one
/// (promoted, and lost before its opening transaction): then it is that one, which no other
/// member's list contains.
pub async fn read_line(session: &Session, layout: &Layout) -> Result<Line, Error> {
    let sql = format!(
        "SELECT {LOG_STATE}, \
         t.term, t.timeline, t.fork, t.\"primary\", array_to_string(t.members, ','), t.k, t.op \
         FROM (SELECT 1) AS one LEFT JOIN atoll.term AS t ON true ORDER BY t.term"
    );
    let rows = session.rows("read the term rows", &sql).await?;
    // The state was read anew for each row.
    let state = log_state(rows.last().map(Vec::as_slice).unwrap_or_default())?;
    let written = rows.iter().filter_map(|row| row.get(LOG_STATE_COLUMNS..));
    let history: Vec<TermRow> = written
        .filter(|row| row.first().is_some_and(Option::is_some))
        .map(term_row)
        .collect::<Result<_, _>>()?;
    let last = history.last().map(|row| (row.term.get(), row.timeline));
    let end = log_end(last, state.end, layout)?;
    Ok(Line {
        state,
        end,
        history,
    })
}

fn term_row(row: &[Option<String>]) -> Result<TermRow, Error> {
    let parse = || {
        let text = |at: usize| row.get(at)?.as_deref();
        let members = text(4)?.split(',').filter(|id| !id.is_empty());
        Some(TermRow {
            term: Term::new(text(0)?.parse().ok()?),
            timeline: text(1)?.parse().ok()?,
            fork: text(2)?.parse().ok()?,
            primary: MemberId::parse(text(3)?).ok()?,
            members: members
                .map(|id| MemberId::parse(id).ok())
                .collect::<Option<_>>()?,
            k: text(5)?.parse().ok()?,
            op: text(6)?.to_owned(),
        })
    };
    parse().ok_or_else(|| Error::Garbled {
        what: "a term row",
        text: format!("{row:?}"),
    })
}

/// Follows real history files from the last row's timeline as far as the log's end has gone.
fn current_timeline(written: u32, end: Lsn, layout: &Layout) -> Result<u32, Error> {
    let timelines = read_timelines(layout)?;
    let mut current = written;
    for (id, fork) in timelines {
        if id > current && fork.parent == current && end > fork.at {
            current = id;
        }
    }
    Ok(current)
}

/// Promotes and waits until the instance has left recovery. Placeholders come first.
pub async fn promote(session: &Session) -> Result<(), Error> {
    session
        .value("pg_promote", "SELECT pg_promote(false)")
        .await?;
    let started = Instant::now();
    loop {
        let standby = session
            .value("poll the promotion", "SELECT pg_is_in_recovery()")
            .await?;
        if standby.as_deref() == Some("f") {
            return Ok(());
        }
        if started.elapsed() > PROMOTE_LIMIT {
            return Err(Error::TooLong {
                what: "the promotion",
                limit_ms: PROMOTE_LIMIT.as_millis(),
                last: format!("in recovery: {standby:?}"),
            });
        }
        // PostgreSQL announces the end of recovery to nobody.
        sleep(PROMOTE_POLL).await;
    }
}

/// The timeline on which a primary writes.
pub async fn timeline_of_primary(session: &Session) -> Result<u32, Error> {
    let sql = "SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)";
    let text = session
        .value("read the timeline", sql)
        .await?
        .unwrap_or_default();
    u32::from_str_radix(&text, 16).map_err(|_| Error::Garbled {
        what: "a log file's name",
        text,
    })
}
