//! The client port. A connection's start-up exchange is relayed at once, so that it can be opened
//! ahead, and nothing else until the gate lets it through.
//!
//! A cancel that reaches a session in its wait for the quorum turns that into a false success. So
//! a cancel is relayed only for sessions whose opener has promised to keep cancels from commits
//! (an SQL router does), and its connection is closed only when none can come any more.

use std::os::fd::AsFd;
use std::sync::Arc;

use atoll_pgwire::backend::tag;
use atoll_pgwire::{
    CANCELS, CANCELS_KEPT_FROM_COMMITS, Limits, Peer, StartupMessage, StartupRequest, TERM, decode,
    decode_startup,
};
use atoll_runtime::{Listener, Runtime, Stream};
use atoll_topology::Term;
use bytes::{BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{Duration, timeout};
use tracing::{debug, warn};

use crate::database::Database;
use crate::gate::{Gate, Place};

/// A client says who it is within this.
const STARTUP_LIMIT: Duration = Duration::from_secs(5);

/// PostgreSQL closes a cancel request's connection when the signal is sent: a fork and a kill.
const CANCEL_LIMIT: Duration = Duration::from_secs(1);

/// What is relayed in one piece.
const PIECE_BYTES: usize = 16 * 1024;

/// The client port.
pub(crate) struct Port {
    runtime: Runtime,
    database: Arc<Database>,
    gate: Arc<Gate>,
}

impl Port {
    pub(crate) fn new(runtime: &Runtime, database: Arc<Database>, gate: Arc<Gate>) -> Arc<Self> {
        let runtime = runtime.clone();
        Arc::new(Self {
            runtime,
            database,
            gate,
        })
    }

    /// Accepts clients until shutdown.
    pub(crate) fn listen(self: Arc<Self>, listener: Listener) {
        let (shutdown, tasks) = (self.runtime.shutdown(), self.runtime.tasks().clone());
        tasks.spawn("port", async move {
            loop {
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    () = shutdown.requested() => return,
                };
                match accepted {
                    Ok((stream, _)) => self.clone().admit(stream),
                    Err(error) => warn!(%error, "a client was not accepted"),
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
            let shutdown = self.runtime.shutdown();
            tokio::select! {
                served = self.serve(&place, stream) => {
                    if let Err(error) = served {
                        debug!(%error, "client lost");
                    }
                }
                () = place.cut.cancelled() => {}
                () = shutdown.requested() => {}
            }
        });
    }

    async fn serve(&self, place: &Place, stream: Stream) -> std::io::Result<()> {
        let mut client = stream;
        let mut input = BytesMut::new();
        let Ok(startup) = timeout(STARTUP_LIMIT, startup(&mut client, &mut input)).await else {
            return Ok(());
        };
        let mut startup = match startup? {
            Some(Asked::Session(startup)) => startup,
            Some(Asked::Cancel { process, secret }) => {
                self.cancel((process, secret)).await;
                return Ok(());
            }
            None => return Ok(()),
        };
        if let Err((code, text)) = admissible(&startup) {
            return refuse(&mut client, code, &text).await;
        }
        if startup.get(CANCELS) == Some(CANCELS_KEPT_FROM_COMMITS) {
            place.keeps_cancels_from_commits();
        }
        if let Some(term) = startup.get(TERM).and_then(|term| term.parse().ok()) {
            place.names(Term::new(term));
        }
        let ours = [CANCELS, TERM];
        startup
            .parameters
            .retain(|(name, _)| !ours.contains(&name.as_str()));
        let socket = self.database.options.layout.socket();
        let Ok(mut backend) = self.runtime.connect_unix(&socket).await else {
            return refuse(&mut client, "57P03", "this member's PostgreSQL is not up").await;
        };
        place.has_socket(backend.as_fd().try_clone_to_owned()?);
        let mut packet = BytesMut::new();
        StartupRequest::Startup(startup).encode(&mut packet);
        backend.write_all(&packet).await?;
        if !start(place, &mut client, &mut backend).await? {
            return Ok(());
        }
        // Nothing that the client sends is read before this.
        let served = tokio::select! {
            served = place.until_served() => served,
            // A client that goes away meanwhile shows when the other end closes.
            _ = closed(&mut backend) => false,
        };
        if !served {
            return Ok(());
        }
        self.relay(client, backend, input).await
    }

    /// Relays a cancel request, and returns when no cancel can come of it any more: PostgreSQL has
    /// closed its connection, or the session is cut off, so that no COMMIT reaches it either.
    async fn cancel(&self, key: (u32, u32)) {
        let Some(meant) = self.gate.cancelled_by(key) else {
            debug!(process = key.0, "cancel request dropped");
            return;
        };
        let relayed = async {
            let socket = self.database.options.layout.socket();
            let mut backend = self.runtime.connect_unix(&socket).await?;
            let mut packet = BytesMut::new();
            let (process, secret) = key;
            StartupRequest::Cancel { process, secret }.encode(&mut packet);
            backend.write_all(&packet).await?;
            // It says nothing; it closes.
            backend.read_to_end(&mut Vec::new()).await
        };
        match timeout(CANCEL_LIMIT, relayed).await {
            Ok(Ok(_)) => debug!(process = key.0, "cancel request relayed"),
            outcome => {
                warn!(
                    process = key.0,
                    ?outcome,
                    "a cancel may be late: its session is cut"
                );
                self.gate.cut(meant).await;
            }
        }
    }

    /// Both ways; before each answer the validity is checked, so also after a thaw.
    async fn relay(
        &self,
        client: Stream,
        backend: UnixStream,
        sent: BytesMut,
    ) -> std::io::Result<()> {
        let (mut from_client, mut to_client) = tokio::io::split(client);
        let (mut from_backend, mut to_backend) = tokio::io::split(backend);
        let requests = async {
            to_backend.write_all(&sent).await?;
            tokio::io::copy(&mut from_client, &mut to_backend).await?;
            to_backend.shutdown().await
        };
        let answers = async {
            let mut piece = vec![0; PIECE_BYTES];
            loop {
                let length = from_backend.read(&mut piece).await?;
                if length == 0 || !self.gate.is_valid() {
                    return Ok(());
                }
                to_client.write_all(&piece[..length]).await?;
            }
        };
        tokio::select! {
            // When the client has closed, PostgreSQL still ends what it has begun, and closes.
            result = answers => result,
            result = async { requests.await?; std::future::pending().await } => result,
        }
    }
}

/// The backend's half of the start-up exchange; false if it refused.
async fn start(
    place: &Place,
    client: &mut Stream,
    backend: &mut UnixStream,
) -> std::io::Result<bool> {
    let mut input = BytesMut::new();
    loop {
        while let Some(frame) =
            decode(&mut input, Peer::Backend, Limits::default()).map_err(std::io::Error::other)?
        {
            client.write_all(frame.raw()).await?;
            match frame.tag() {
                tag::BACKEND_KEY_DATA => {
                    let key = atoll_pgwire::backend::backend_key_data(frame.body())
                        .map_err(std::io::Error::other)?;
                    place.has_backend(key);
                }
                tag::READY_FOR_QUERY => return Ok(true),
                tag::ERROR => return Ok(false),
                _ => {}
            }
        }
        if backend.read_buf(&mut input).await? == 0 {
            return Ok(false);
        }
    }
}

/// Waits until the backend closes; before the port is open it has nothing more to say.
async fn closed(backend: &mut UnixStream) {
    loop {
        match backend.ready(tokio::io::Interest::READABLE).await {
            Ok(ready) if !ready.is_read_closed() => {
                // A notice, perhaps: it stays for the relay.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            _ => return,
        }
    }
}

/// What a connection is for.
enum Asked {
    Session(StartupMessage),
    Cancel { process: u32, secret: u32 },
}

/// Reads up to the start-up message or cancel request; none if the client goes before.
async fn startup<S>(client: &mut S, input: &mut BytesMut) -> std::io::Result<Option<Asked>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        let request = decode_startup(input, Limits::default()).map_err(std::io::Error::other)?;
        match request {
            Some(StartupRequest::Ssl | StartupRequest::GssEnc) => client.write_all(b"N").await?,
            Some(StartupRequest::Cancel { process, secret }) => {
                return Ok(Some(Asked::Cancel { process, secret }));
            }
            Some(StartupRequest::Startup(message)) => return Ok(Some(Asked::Session(message))),
            None => {
                if client.read_buf(input).await? == 0 {
                    return Ok(None);
                }
            }
        }
    }
}

/// Only cells enter: everybody else could go round the owner's privilege.
fn admissible(startup: &StartupMessage) -> Result<(), (&'static str, String)> {
    let user = startup.get("user").unwrap_or_default();
    if !user.starts_with("cell_") {
        let text = format!("role {user:?} may not enter here: only cells' roles may");
        return Err(("28000", text));
    }
    if startup.get("replication").is_some() {
        return Err(("28000", "no replication through the client port".into()));
    }
    if startup
        .get("database")
        .is_some_and(|name| name != atoll_postgres::DATABASE)
    {
        let text = format!("there is one database, {:?}", atoll_postgres::DATABASE);
        return Err(("3D000", text));
    }
    Ok(())
}

async fn refuse(client: &mut Stream, code: &str, text: &str) -> std::io::Result<()> {
    let mut body = BytesMut::new();
    for (kind, value) in [(b'S', "FATAL"), (b'V', "FATAL"), (b'C', code), (b'M', text)] {
        body.put_u8(kind);
        body.put_slice(value.as_bytes());
        body.put_u8(0);
    }
    body.put_u8(0);
    let mut packet = BytesMut::new();
    packet.put_u8(b'E');
    packet.put_u32(u32::try_from(body.len() + 4).unwrap_or(u32::MAX));
    packet.put_slice(&body);
    client.write_all(&packet).await
}
