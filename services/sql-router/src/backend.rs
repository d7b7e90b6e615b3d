//! One connection to a group's primary: its start-up, what its session holds, and statements of
//! the router's own.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use atoll_pgwire::backend::{self, Status, tag};
use atoll_pgwire::{
    CANCELS, CANCELS_KEPT_FROM_COMMITS, Frame, Limits as FrameLimits, Peer, StartupMessage,
    StartupRequest, TERM, decode, frontend,
};
use atoll_runtime::Runtime;
use atoll_topology::ShardId;
use bytes::Bytes;
use thiserror::Error;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout};

use crate::pool::Place;
use crate::side::Side;

/// A prepared statement as all connections know it.
#[derive(Debug)]
pub(crate) struct Statement {
    /// Unique in this process.
    pub(crate) number: u64,
    /// Its name on connections to primaries.
    pub(crate) name: Bytes,
    pub(crate) query: Bytes,
    pub(crate) types: Vec<u32>,
    /// Its parameters' types, once PostgreSQL has described them.
    pub(crate) described: OnceLock<Vec<u32>>,
}

/// Why a connection to a primary is not to be had, or is no more.
#[derive(Debug, Error)]
pub(crate) enum BackendError {
    #[error("the connection failed")]
    Io(#[from] io::Error),
    #[error("the primary speaks otherwise than expected")]
    Frame(#[from] atoll_pgwire::FrameError),
    #[error("the primary said {sqlstate}: {message}")]
    Said { sqlstate: String, message: String },
    #[error("the primary did not answer within {0:?}")]
    Silent(Duration),
    #[error("the primary asks for a password, which is not supported")]
    Password,
    #[error("the session is not in the state that it must be in")]
    Confused,
}

/// A connection to a primary.
pub(crate) struct Backend {
    pub(crate) side: Side,
    pub(crate) place: Place,
    pub(crate) address: SocketAddr,
    /// For cancel requests.
    pub(crate) key: (u32, u32),
    /// What the server reports about its session.
    pub(crate) parameters: BTreeMap<String, String>,
    /// The shard whose schema its `search_path` names.
    pub(crate) shard: Option<ShardId>,
    /// Settings of clients in force: name to the statement that gave it.
    pub(crate) settings: BTreeMap<String, String>,
    /// Prepared statements by number, with when each was last used.
    prepared: BTreeMap<u64, (Arc<Statement>, u64)>,
    uses: u64,
    /// The unnamed statement's number.
    pub(crate) unnamed: Option<u64>,
    /// It must not serve another transaction.
    pub(crate) spoilt: bool,
    pub(crate) idle_since: Instant,
    /// Its place among the group's connections.
    pub(crate) permit: Option<OwnedSemaphorePermit>,
    frames: FrameLimits,
}

/// Who connects.
#[derive(Debug, Clone)]
pub(crate) struct Login {
    pub(crate) role: String,
    pub(crate) database: String,
    pub(crate) frames: FrameLimits,
}

impl Backend {
    /// Connects and starts a session. Before its member opens, the answer may take until then.
    pub(crate) async fn connect(
        runtime: &Runtime,
        login: &Login,
        place: Place,
        address: SocketAddr,
    ) -> Result<Self, BackendError> {
        let side = Side::new(runtime.connect(address).await?);
        let term = place.term.to_string();
        let mut backend = Self {
            side,
            place,
            address,
            key: (0, 0),
            parameters: BTreeMap::new(),
            shard: None,
            settings: BTreeMap::new(),
            prepared: BTreeMap::new(),
            uses: 0,
            unnamed: None,
            spoilt: false,
            idle_since: Instant::now(),
            permit: None,
            frames: login.frames,
        };
        let pairs = [
            ("user", login.role.as_str()),
            ("database", login.database.as_str()),
            ("application_name", "atoll-sql-router"),
            ("client_encoding", "UTF8"),
            // A PostgreSQL without an agent only says that it does not know these two.
            (TERM, term.as_str()),
            // `Session::on_cancel` keeps it.
            (CANCELS, CANCELS_KEPT_FROM_COMMITS),
        ];
        let parameters = pairs
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
        StartupRequest::Startup(StartupMessage {
            minor: 0,
            parameters,
        })
        .encode(&mut backend.side.output);
        backend.side.flush().await?;
        loop {
            let frame = backend.next_frame().await?;
            match frame.tag() {
                tag::AUTHENTICATION if backend::authentication(frame.body())? != 0 => {
                    return Err(BackendError::Password);
                }
                tag::BACKEND_KEY_DATA => backend.key = backend::backend_key_data(frame.body())?,
                tag::PARAMETER_STATUS => {
                    let (name, value) = backend::parameter_status(frame.body())?;
                    backend.parameters.insert(name, value);
                }
                tag::READY_FOR_QUERY => return Ok(backend),
                tag::ERROR => return Err(said(&frame)),
                _ => {}
            }
        }
    }

    /// The next frame that is already here.
    pub(crate) fn decode(&mut self) -> Result<Option<Frame>, BackendError> {
        Ok(decode(&mut self.side.input, Peer::Backend, self.frames)?)
    }

    async fn next_frame(&mut self) -> Result<Frame, BackendError> {
        loop {
            if let Some(frame) = self.decode()? {
                return Ok(frame);
            }
            self.side.read().await?;
        }
    }

    /// Runs statements of the router's own, one message each, in one round trip; gives the rows of
    /// the last one. Nothing else may be on its way.
    pub(crate) async fn run(
        &mut self,
        statements: &[String],
        limit: Duration,
    ) -> Result<Own, BackendError> {
        for statement in statements {
            frontend::put_query(&mut self.side.output, statement.as_bytes());
        }
        self.unnamed = None;
        let ran = timeout(limit, self.answers(statements.len())).await;
        ran.unwrap_or(Err(BackendError::Silent(limit)))
    }

    async fn answers(&mut self, mut awaited: usize) -> Result<Own, BackendError> {
        self.side.flush().await?;
        let mut own = Own {
            rows: Vec::new(),
            status: Status::Idle,
        };
        let mut failed = None;
        while awaited > 0 {
            let frame = self.next_frame().await?;
            match frame.tag() {
                tag::DATA_ROW => own.rows.push(backend::data_row(frame.body())?),
                tag::ERROR => failed = Some(said(&frame)),
                tag::PARAMETER_STATUS => {
                    let (name, value) = backend::parameter_status(frame.body())?;
                    self.parameters.insert(name, value);
                }
                tag::READY_FOR_QUERY => {
                    own.status = backend::ready_for_query(&frame.body())?;
                    awaited -= 1;
                    if awaited > 0 {
                        own.rows.clear();
                    }
                }
                _ => {}
            }
        }
        failed.map_or(Ok(own), Err)
    }

    /// Whether `statement` is prepared here; counts as a use of it.
    pub(crate) fn uses_prepared(&mut self, statement: &Statement) -> bool {
        self.uses += 1;
        match self.prepared.get_mut(&statement.number) {
            Some((_, used)) => {
                *used = self.uses;
                true
            }
            None => false,
        }
    }

    /// `statement` is being prepared here; gives the one to be closed for it, if there are too
    /// many.
    pub(crate) fn add_prepared(
        &mut self,
        statement: &Arc<Statement>,
        limit: usize,
    ) -> Option<Arc<Statement>> {
        let oldest = if self.prepared.len() >= limit {
            let oldest = self.prepared.iter().min_by_key(|(_, (_, used))| *used);
            oldest.map(|(number, _)| *number)
        } else {
            None
        };
        self.uses += 1;
        self.prepared
            .insert(statement.number, (Arc::clone(statement), self.uses));
        oldest
            .and_then(|number| self.prepared.remove(&number))
            .map(|(statement, _)| statement)
    }

    /// `statement` could not be prepared.
    pub(crate) fn forget_prepared(&mut self, number: u64) {
        self.prepared.remove(&number);
    }
}

/// What a statement of the router's own gave.
pub(crate) struct Own {
    pub(crate) rows: Vec<Vec<Option<Bytes>>>,
    pub(crate) status: Status,
}

fn said(frame: &Frame) -> BackendError {
    match backend::fields(frame.body()) {
        Ok(fields) => BackendError::Said {
            sqlstate: String::from_utf8_lossy(fields.code()).into_owned(),
            message: fields.message(),
        },
        Err(error) => error.into(),
    }
}

/// Asks a primary to cancel what one of its sessions does, and waits until the postmaster has
/// closed the connection: then the signal is sent, and none comes later.
pub(crate) async fn cancel(
    runtime: &Runtime,
    address: SocketAddr,
    (process, secret): (u32, u32),
) -> io::Result<()> {
    let mut side = Side::new(runtime.connect(address).await?);
    StartupRequest::Cancel { process, secret }.encode(&mut side.output);
    side.flush().await?;
    loop {
        match side.read().await {
            Ok(()) => side.input.clear(),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}
