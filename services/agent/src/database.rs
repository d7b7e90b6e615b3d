//! Our PostgreSQL: one process at a time, and the sessions that we hold with it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use atoll_ownership::LogEnd;
use atoll_postgres::{
    Line, LogState, Server, ServerOptions, Session, read_end, read_line, read_log,
};
use atoll_runtime::Runtime;
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::{Duration, timeout};
use tracing::debug;

use crate::error::Error;

/// Reading positions takes a millisecond; a PostgreSQL that does not answer counts as down.
pub(crate) const READ_LIMIT: Duration = Duration::from_secs(5);

/// Our PostgreSQL, running or not.
pub(crate) struct Database {
    pub(crate) runtime: Runtime,
    pub(crate) options: ServerOptions,
    /// Held while a process is being started or ended, so that there is never a second one.
    process: AsyncMutex<Option<Server>>,
    /// Names the last start that was ordered; an order to end makes it void.
    start: AtomicU64,
    sessions: Mutex<Sessions>,
}

#[derive(Default)]
struct Sessions {
    /// Kept warm: it survives a promotion.
    kept: Option<Arc<Session>>,
    /// Opened ahead, for whoever asks for one next.
    ahead: Option<Arc<Session>>,
    /// All that may still be open.
    all: Vec<std::sync::Weak<Session>>,
}

impl Database {
    pub(crate) fn new(runtime: Runtime, options: ServerOptions) -> Arc<Self> {
        let (process, sessions) = (AsyncMutex::new(None), Mutex::default());
        Arc::new(Self {
            runtime,
            options,
            process,
            start: AtomicU64::new(0),
            sessions,
        })
    }

    /// Orders a start: its number, for [`Database::start`].
    pub(crate) fn order_start(&self) -> u64 {
        self.start.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Whether this start was the last order.
    pub(crate) fn is_wanted(&self, start: u64) -> bool {
        self.start.load(Ordering::SeqCst) == start
    }

    /// Starts it as a standby and returns when the process exists; none if the order was taken
    /// back.
    pub(crate) async fn start(&self, start: u64) -> Result<Option<Server>, Error> {
        let mut process = self.process.lock().await;
        if !self.is_wanted(start) {
            return Ok(None);
        }
        if let Some(server) = process.take() {
            server.quit(&self.options.layout).await?;
        }
        let server = Server::start(&self.options).await?;
        *process = Some(server.clone());
        Ok(Some(server))
    }

    /// Ends it at once; its log ends where it is.
    pub(crate) async fn quit(&self) -> Result<(), Error> {
        self.start.fetch_add(1, Ordering::SeqCst);
        self.cut_sessions();
        if let Some(kept) = self.lock().kept.take() {
            kept.cut();
        }
        let mut process = self.process.lock().await;
        if let Some(server) = process.take() {
            server.quit(&self.options.layout).await?;
        }
        Ok(())
    }

    /// A session that nobody else uses.
    pub(crate) async fn session(&self) -> Result<Arc<Session>, Error> {
        let ahead = self.lock().ahead.take();
        if let Some(session) = ahead.filter(|session| session.is_open()) {
            return Ok(session);
        }
        let session = Arc::new(Session::open(&self.runtime, &self.options.layout).await?);
        let mut sessions = self.lock();
        sessions.all.retain(|weak| weak.strong_count() > 0);
        sessions.all.push(Arc::downgrade(&session));
        Ok(session)
    }

    /// Opens the next session ahead: a standby's session becomes a primary's.
    pub(crate) async fn open_ahead(&self) {
        match self.session().await {
            Ok(session) => self.lock().ahead = Some(session),
            // It will be opened when it is needed.
            Err(error) => debug!(%error, "no session was opened ahead"),
        }
    }

    /// The warm session, if there is one and it is open.
    pub(crate) fn warm(&self) -> Option<Arc<Session>> {
        let sessions = self.lock();
        sessions.kept.clone().filter(|session| session.is_open())
    }

    /// The warm session, for short reads; opened where there is none.
    pub(crate) async fn kept(&self) -> Result<Arc<Session>, Error> {
        if let Some(session) = self.warm() {
            return Ok(session);
        }
        let session = Arc::new(Session::open(&self.runtime, &self.options.layout).await?);
        self.lock().kept = Some(session.clone());
        Ok(session)
    }

    /// Cuts every session of ours that may write: what they wait for is reported to nobody. The
    /// kept one only reads and promotes; opening another one would cost a switch a tenth of a
    /// second.
    pub(crate) fn cut_sessions(&self) {
        let mut sessions = self.lock();
        sessions.ahead = None;
        for session in sessions.all.drain(..).filter_map(|weak| weak.upgrade()) {
            session.cut();
        }
    }

    /// The state of the log, its end and the term rows.
    pub(crate) async fn line(&self) -> Result<Line, Error> {
        let session = self.kept().await?;
        let reading = read_line(&session, &self.options.layout);
        Ok(timeout(READ_LIMIT, reading)
            .await
            .map_err(|_| too_long())??)
    }

    /// The state of the log and its end.
    pub(crate) async fn end(&self) -> Result<(LogState, LogEnd), Error> {
        let session = self.kept().await?;
        let reading = read_end(&session, &self.options.layout);
        Ok(timeout(READ_LIMIT, reading)
            .await
            .map_err(|_| too_long())??)
    }

    /// The state of the log.
    pub(crate) async fn log(&self) -> Result<LogState, Error> {
        let session = self.kept().await?;
        Ok(timeout(READ_LIMIT, read_log(&session))
            .await
            .map_err(|_| too_long())??)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) fn too_long() -> Error {
    Error::TooLong {
        what: "reading the database",
        limit_ms: READ_LIMIT.as_millis(),
    }
}
