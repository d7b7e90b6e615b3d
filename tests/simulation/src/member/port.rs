//! The client port of a simulated member: PostgreSQL's wire, writes in memory, behind the agent's own
//! gate.

use std::io;
use std::sync::Arc;

use atoll_agent::simulation::{Gate, Place};
use atoll_pgwire::backend::{self, Report, Severity, Status, tag};
use atoll_pgwire::{
    Limits, Peer, StartupMessage, StartupRequest, TERM, decode, decode_startup, frontend,
};
use atoll_runtime::{Listener, Runtime, Stream};
use atoll_topology::{CellId, ShardId, Term};
use bytes::{BufMut, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::database::{Database, Failed, Mode};
use super::disk::Write;
use crate::oracle::Oracle;

/// The client port.
pub(crate) struct Port {
    pub(crate) runtime: Runtime,
    pub(crate) database: Arc<Database>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) oracle: Oracle,
}

impl Port {
    /// Accepts clients for ever.
    pub(crate) fn listen(self: Arc<Self>, listener: Listener) {
        let tasks = self.runtime.tasks().clone();
        tasks.spawn("port", async move {
            loop {
                if let Ok((stream, _)) = listener.accept().await {
                    self.clone().admit(stream);
                }
            }
        });
    }

    fn admit(self: Arc<Self>, stream: Stream) {
        let Some(place) = self.gate.admit() else {
            return;
        };
        let tasks = self.runtime.tasks().clone();
        tasks.spawn("client", async move {
            tokio::select! {
                biased;
                () = place.cut.cancelled() => {}
                served = self.serve(&place, stream) => drop(served),
            }
        });
    }

    async fn serve(&self, place: &Place, mut client: Stream) -> io::Result<()> {
        let mut session = Session {
            input: BytesMut::new(),
            output: BytesMut::new(),
            cell: None,
            shard: None,
        };
        let Some(startup) = session.startup(&mut client).await? else {
            return Ok(());
        };
        let user = startup.get("user").unwrap_or_default();
        session.cell = user
            .strip_prefix("cell_")
            .and_then(|cell| CellId::parse(cell).ok());
        if let Some(term) = startup.get(TERM).and_then(|term| term.parse().ok()) {
            place.names(Term::new(term));
        }
        let run = self.database.run();
        if self.database.mode() == Mode::Down || session.cell.is_none() {
            session.error("57P03", "this member's PostgreSQL is not up");
            return session.flush(&mut client).await;
        }
        backend::put_authentication_ok(&mut session.output);
        backend::put_parameter_status(&mut session.output, "server_version", "17.5");
        backend::put_backend_key_data(&mut session.output, 1, 1);
        backend::put_ready_for_query(&mut session.output, Status::Idle);
        session.flush(&mut client).await?;
        let served = tokio::select! {
            served = place.until_served() => served,
            () = self.database.ended(run) => false,
        };
        if !served {
            return Ok(());
        }
        loop {
            while let Some(frame) = decode(&mut session.input, Peer::Frontend, Limits::default())
                .map_err(io::Error::other)?
            {
                match frame.tag() {
                    frontend::tag::QUERY => {
                        let text = frontend::query(frame.body()).map_err(io::Error::other)?;
                        let text = String::from_utf8_lossy(&text).into_owned();
                        self.query(&mut session, &text).await?;
                    }
                    frontend::tag::TERMINATE => return Ok(()),
                    _ => session.error("0A000", "only simple queries are simulated"),
                }
            }
            // As the port does: an answer that nobody confirmed is not given.
            if !session.output.is_empty() {
                if !self.gate.is_valid() {
                    return Ok(());
                }
                session.flush(&mut client).await?;
            }
            if client.read_buf(&mut session.input).await? == 0 {
                return Ok(());
            }
        }
    }

    async fn query(&self, session: &mut Session, text: &str) -> io::Result<()> {
        match Statement::read(text) {
            Statement::Insert { user, number } => {
                let (Some(shard), Some(cell)) = (session.shard, session.cell.clone()) else {
                    session.error("3F000", "no schema has been selected");
                    session.ready();
                    return Ok(());
                };
                let write = Write {
                    shard,
                    user,
                    number,
                    cell,
                };
                match self.database.write(write.clone()).await {
                    Ok(epoch) => {
                        // What is told from here on is told: the moment of truth of the oracle.
                        if self.gate.is_valid() {
                            self.oracle.acknowledged(&write, epoch);
                        }
                        backend::put_command_complete(&mut session.output, "INSERT 0 1");
                    }
                    Err(Failed::Privilege) => {
                        session.error("42501", "permission denied for table t");
                    }
                    Err(Failed::NotPrimary) => {
                        session.error("25006", "cannot execute INSERT in a read-only transaction");
                    }
                    // The backend is gone: no answer.
                    Err(failed) => return Err(io::Error::other(format!("{failed:?}"))),
                }
            }
            Statement::Select { user } => {
                let rows = self.database.numbers_of(&user);
                let rows = rows.iter().map(|number| vec![number.to_string()]);
                session.rows(&["number"], rows.collect());
            }
            Statement::Term => {
                let row = self.database.row();
                let rows = row.map(|row| vec![row.term.get().to_string(), row.primary.to_string()]);
                session.rows(&["term", "primary"], rows.into_iter().collect());
            }
            Statement::Owners => {
                let owners = self.database.owners().into_iter();
                let row = |(shard, grant): (ShardId, atoll_ownership::Grant)| {
                    vec![
                        shard.0.to_string(),
                        grant.epoch.get().to_string(),
                        grant.cell.to_string(),
                    ]
                };
                session.rows(&["shard", "epoch", "cell"], owners.map(row).collect());
            }
            Statement::Owner(shard) => {
                let owner = self.database.owners().remove(&shard);
                let row = owner.map(|o| vec![o.cell.to_string(), o.epoch.get().to_string()]);
                session.rows(&["cell", "epoch"], row.into_iter().collect());
            }
            Statement::One => session.rows(&["?column?"], vec![vec!["1".to_owned()]]),
            Statement::SearchPath(shard) => {
                session.shard = Some(shard);
                backend::put_command_complete(&mut session.output, "SET");
            }
            Statement::Other(word) => {
                backend::put_command_complete(&mut session.output, &word);
            }
        }
        session.ready();
        Ok(())
    }
}

/// What is understood of SQL.
enum Statement {
    Insert { user: String, number: u64 },
    Select { user: String },
    Term,
    Owners,
    Owner(ShardId),
    One,
    SearchPath(ShardId),
    Other(String),
}

impl Statement {
    fn read(text: &str) -> Self {
        let text = match text.find("*/") {
            Some(end) if text.trim_start().starts_with("/*") => &text[end + 2..],
            _ => text,
        };
        let text = text.trim().trim_end_matches(';');
        let quoted = || text.split('\'').nth(1).unwrap_or_default().to_owned();
        let last_number = || {
            let digits = text.rsplit(|c: char| !c.is_ascii_digit());
            digits
                .map(str::parse::<u64>)
                .find_map(Result::ok)
                .unwrap_or_default()
        };
        let shard = || u16::try_from(last_number()).map_or(ShardId(u16::MAX), ShardId);
        match text {
            _ if text.starts_with("INSERT INTO t ") => Self::Insert {
                user: quoted(),
                number: last_number(),
            },
            _ if text.starts_with("SELECT number FROM t ") => Self::Select { user: quoted() },
            _ if text.contains("FROM atoll.term") => Self::Term,
            _ if text.contains("FROM atoll.shard_owner WHERE") => Self::Owner(shard()),
            _ if text.contains("FROM atoll.shard_owner") => Self::Owners,
            _ if text.starts_with("SELECT 1") => Self::One,
            _ if text.starts_with("SET search_path") => Self::SearchPath(shard()),
            _ => {
                let word = text.split(' ').next().unwrap_or_default();
                Self::Other(word.to_ascii_uppercase())
            }
        }
    }
}

struct Session {
    input: BytesMut,
    output: BytesMut,
    cell: Option<CellId>,
    shard: Option<ShardId>,
}

impl Session {
    async fn startup(&mut self, client: &mut Stream) -> io::Result<Option<StartupMessage>> {
        loop {
            match decode_startup(&mut self.input, Limits::default()).map_err(io::Error::other)? {
                Some(StartupRequest::Ssl | StartupRequest::GssEnc) => {
                    client.write_all(b"N").await?;
                }
                Some(StartupRequest::Cancel { .. }) => return Ok(None),
                Some(StartupRequest::Startup(message)) => return Ok(Some(message)),
                None => {
                    if client.read_buf(&mut self.input).await? == 0 {
                        return Ok(None);
                    }
                }
            }
        }
    }

    async fn flush(&mut self, client: &mut Stream) -> io::Result<()> {
        client.write_all(&self.output).await?;
        self.output.clear();
        Ok(())
    }

    fn ready(&mut self) {
        backend::put_ready_for_query(&mut self.output, Status::Idle);
    }

    fn error(&mut self, sqlstate: &str, message: &str) {
        let report = Report {
            severity: Severity::Error,
            sqlstate,
            message,
            detail: "",
            hint: "",
        };
        backend::put_report(&mut self.output, report);
    }

    fn rows(&mut self, columns: &[&str], rows: Vec<Vec<String>>) {
        put(&mut self.output, tag::ROW_DESCRIPTION, |out| {
            out.put_u16(u16::try_from(columns.len()).unwrap_or(u16::MAX));
            for column in columns {
                out.put_slice(column.as_bytes());
                out.put_u8(0);
                out.put_u32(0);
                out.put_u16(0);
                out.put_u32(25);
                out.put_i16(-1);
                out.put_i32(-1);
                out.put_u16(0);
            }
        });
        let count = rows.len();
        for row in rows {
            put(&mut self.output, tag::DATA_ROW, |out| {
                out.put_u16(u16::try_from(row.len()).unwrap_or(u16::MAX));
                for value in &row {
                    out.put_u32(u32::try_from(value.len()).unwrap_or(0));
                    out.put_slice(value.as_bytes());
                }
            });
        }
        backend::put_command_complete(&mut self.output, &format!("SELECT {count}"));
    }
}

fn put(out: &mut BytesMut, tag: u8, body: impl FnOnce(&mut BytesMut)) {
    let mut inner = BytesMut::new();
    body(&mut inner);
    out.put_u8(tag);
    out.put_u32(u32::try_from(inner.len() + 4).unwrap_or(u32::MAX));
    out.extend_from_slice(&inner);
}
