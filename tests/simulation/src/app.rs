//! The application of a cell: takes requests from its gateway, speaks SQL to its router, and tells
//! apart what is done, what surely is not, and what nobody knows.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use atoll_pgwire::backend::{self, tag};
use atoll_pgwire::{Limits, Peer, StartupMessage, StartupRequest, decode, frontend};
use atoll_runtime::{Runtime, Stream};
use atoll_topology::{CellId, ShardId};
use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::http::{self, Message};
use crate::member::Weakened;
use crate::oracle::Oracle;

/// Connections to the router that are kept.
const IDLE_MAX: usize = 8;

/// Committed or not: nobody knows.
const OUTCOME_UNKNOWN: &str = "08007";

/// An instance of the application.
pub(crate) struct App {
    pub(crate) runtime: Runtime,
    pub(crate) cell: CellId,
    pub(crate) router: SocketAddr,
    pub(crate) oracle: Oracle,
    pub(crate) weakened: Weakened,
    pub(crate) idle: Mutex<Vec<Sql>>,
}

/// What came of a statement.
enum Came {
    Rows(Vec<String>),
    Refused(String),
    Unknown(String),
}

impl App {
    /// Serves for ever.
    pub(crate) async fn serve(self: Arc<Self>, at: SocketAddr) -> io::Result<()> {
        let listener = self.runtime.listen(at).await?;
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                continue;
            };
            let app = self.clone();
            let tasks = self.runtime.tasks().clone();
            tasks.spawn("request", async move { drop(app.connection(stream).await) });
        }
    }

    async fn connection(&self, mut stream: Stream) -> io::Result<()> {
        let mut input = BytesMut::new();
        while let Some(request) = http::receive(&mut stream, &mut input).await? {
            let (status, outcome, body) = self.answer(&request).await;
            let text = format!(
                "HTTP/1.1 {status}\r\nbank-outcome: {outcome}\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(text.as_bytes()).await?;
        }
        Ok(())
    }

    async fn answer(&self, request: &Message) -> (&'static str, &'static str, String) {
        let path = request.first.split(' ').nth(1).unwrap_or_default();
        let value = |name: &str| {
            let query = path.split_once('?').map_or("", |(_, query)| query);
            let found = query.split('&').filter_map(|pair| pair.split_once('='));
            found
                .filter(|(key, _)| *key == name)
                .map(|(_, value)| value.to_owned())
                .next()
                .unwrap_or_default()
        };
        let shard = request.header("atoll-shard").parse();
        let epoch = request.header("atoll-epoch").parse();
        if let (Ok(shard), Ok(epoch)) = (shard, epoch) {
            self.oracle.handed(&self.cell, ShardId(shard), epoch);
        }
        let user = value("user");
        let statement = match path.split('?').next().unwrap_or_default() {
            "/write" => format!("INSERT INTO t VALUES ('{user}', {})", value("number")),
            // A canary asks whether writes are possible; here a read of the owner tells as much.
            "/read" | "/canary" => format!("SELECT number FROM t WHERE who = '{user}'"),
            _ => return ("200 OK", "done", String::new()),
        };
        match self.run(&format!("/*key={user}*/ {statement}")).await {
            Came::Rows(rows) => ("200 OK", "done", rows.join(" ")),
            Came::Refused(why) => ("503 Service Unavailable", "failed", why),
            Came::Unknown(why) if self.weakened.unknown_is_failed => {
                ("503 Service Unavailable", "failed", why)
            }
            Came::Unknown(why) => ("500 Internal Server Error", "unknown", why),
        }
    }

    async fn run(&self, statement: &str) -> Came {
        let kept = self.idle().pop();
        let connected = match kept {
            Some(sql) => Ok(sql),
            None => Sql::connect(&self.runtime, self.router).await,
        };
        let mut sql = match connected {
            Ok(sql) => sql,
            Err(error) => return Came::Refused(error.to_string()),
        };
        match sql.query(statement).await {
            Ok(done) => {
                let mut idle = self.idle();
                if idle.len() < IDLE_MAX {
                    idle.push(sql);
                }
                done
            }
            Err(error) => Came::Unknown(error.to_string()),
        }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Sql>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A session at the router.
pub(crate) struct Sql {
    stream: Stream,
    input: BytesMut,
}

impl Sql {
    async fn connect(runtime: &Runtime, at: SocketAddr) -> io::Result<Self> {
        let stream = runtime.connect(at).await?;
        let input = BytesMut::new();
        let mut sql = Self { stream, input };
        let parameters = [("user", "app"), ("database", "bank")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
        let mut output = BytesMut::new();
        StartupRequest::Startup(StartupMessage {
            minor: 0,
            parameters: parameters.into(),
        })
        .encode(&mut output);
        sql.stream.write_all(&output).await?;
        match sql.answers().await? {
            Came::Rows(_) => Ok(sql),
            Came::Refused(why) | Came::Unknown(why) => Err(io::Error::other(why)),
        }
    }

    async fn query(&mut self, statement: &str) -> io::Result<Came> {
        let mut output = BytesMut::new();
        frontend::put_query(&mut output, statement.as_bytes());
        self.stream.write_all(&output).await?;
        self.answers().await
    }

    /// Everything up to the next ReadyForQuery.
    async fn answers(&mut self) -> io::Result<Came> {
        let mut rows = Vec::new();
        let mut error = None;
        loop {
            while let Some(frame) = decode(&mut self.input, Peer::Backend, Limits::default())
                .map_err(io::Error::other)?
            {
                match frame.tag() {
                    tag::DATA_ROW => {
                        let row = backend::data_row(frame.body()).map_err(io::Error::other)?;
                        let first = row.into_iter().next().flatten().unwrap_or_default();
                        rows.push(String::from_utf8_lossy(&first).into_owned());
                    }
                    tag::ERROR => {
                        let fields = backend::fields(frame.body()).map_err(io::Error::other)?;
                        let code = String::from_utf8_lossy(fields.code()).into_owned();
                        error = Some((code, fields.message()));
                    }
                    tag::READY_FOR_QUERY => {
                        return Ok(match error {
                            None => Came::Rows(rows),
                            Some((code, text)) if code == OUTCOME_UNKNOWN => {
                                Came::Unknown(format!("{code} {text}"))
                            }
                            Some((code, text)) => Came::Refused(format!("{code} {text}")),
                        });
                    }
                    _ => {}
                }
            }
            if self.stream.read_buf(&mut self.input).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}
