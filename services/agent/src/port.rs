//! The client port. A connection is opened for a term: the one that it names, or the member's
//! promise at that time. Its start-up exchange is relayed at once, so that it can be opened ahead,
//! and nothing else until the member serves that very term. It is closed when the member promises
//! a later one, or serves that one no longer.
//!
//! A cancel that reaches a session in its wait for the quorum turns that into a false success. So
//! a cancel is relayed only for sessions whose opener has promised to keep cancels from commits
//! (an SQL router does), and its connection is closed only when none can come any more.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

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
use tokio::sync::watch;
use tokio::time::{Duration, Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::database::Database;

/// A client says who it is within this.
const STARTUP_LIMIT: Duration = Duration::from_secs(5);

/// PostgreSQL closes a cancel request's connection when the signal is sent: a fork and a kill.
const CANCEL_LIMIT: Duration = Duration::from_secs(1);

/// Connections at once; more are refused. PostgreSQL has its own limit below this.
const CONNECTIONS_MAX: usize = 1_000;

/// What is relayed in one piece.
const PIECE_BYTES: usize = 16 * 1024;

/// Which term's clients are served, and until when answers may be given without news.
#[derive(Debug, Clone, Copy)]
struct Gate {
    /// The member's promise: connections that name no later term are opened for it.
    promise: Term,
    /// The term that is open.
    open: Option<Term>,
}

struct Client {
    cut: CancellationToken,
    /// The term that it is opened for.
    term: Term,
    /// Whether what it sends reaches PostgreSQL.
    served: bool,
    /// Its backend and that one's secret, from BackendKeyData.
    backend: Option<(u32, u32)>,
    cancels: Cancels,
}

/// What its opener has promised about cancel requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cancels {
    Dropped,
    KeptFromCommits,
}

/// The client port.
pub(crate) struct Port {
    runtime: Runtime,
    database: Arc<Database>,
    gate: watch::Sender<Gate>,
    clients: Mutex<BTreeMap<u64, Client>>,
    /// Connections whose sockets are not closed yet.
    alive: watch::Sender<usize>,
    /// Answers after this moment are not given: nobody confirmed our term lately.
    valid_until: Mutex<Instant>,
}

impl Port {
    pub(crate) fn new(runtime: &Runtime, database: Arc<Database>) -> Arc<Self> {
        Arc::new(Self {
            runtime: runtime.clone(),
            database,
            gate: watch::Sender::new(Gate {
                promise: Term::ZERO,
                open: None,
            }),
            clients: Mutex::default(),
            alive: watch::Sender::new(0),
            valid_until: Mutex::new(Instant::now()),
        })
    }

    /// Accepts clients until shutdown.
    pub(crate) fn listen(self: &Arc<Self>, listener: Listener) {
        let (port, shutdown) = (self.clone(), self.runtime.shutdown());
        self.runtime.tasks().spawn("port", async move {
            let mut number = 0;
            loop {
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    () = shutdown.requested() => return,
                };
                number += 1;
                match accepted {
                    Ok((stream, _)) => port.clone().admit(number, stream),
                    Err(error) => warn!(%error, "a client was not accepted"),
                }
            }
        });
    }

    /// The term that is open.
    pub(crate) fn open_term(&self) -> Option<Term> {
        self.gate.borrow().open
    }

    /// Serves clients under this term.
    pub(crate) fn open(&self, term: Term) {
        self.gate.send_replace(Gate {
            promise: term,
            open: Some(term),
        });
        info!(%term, "port open");
    }

    /// A call-off keeps its clients under its new term.
    pub(crate) fn keep_open(&self, term: Term) {
        let mut clients = self.lock();
        for client in clients.values_mut() {
            client.term = client.term.newest(term);
        }
        self.gate.send_modify(|gate| {
            gate.promise = term;
            if gate.open.is_some() {
                gate.open = Some(term);
            }
        });
    }

    /// Closes: returns when the socket is closed of every client that was served or is for an
    /// earlier term. No backend is told to end.
    pub(crate) async fn close(&self, promise: Term) {
        let cut: Vec<u64> = {
            let clients = self.lock();
            self.gate.send_replace(Gate {
                promise,
                open: None,
            });
            let past = |client: &Client| client.served || promise.supersedes(client.term);
            let cut = clients.iter().filter(|(_, client)| past(client));
            cut.map(|(number, client)| {
                client.cut.cancel();
                *number
            })
            .collect()
        };
        self.until_gone(&cut).await;
    }

    /// Returns when the sockets of these clients are closed.
    async fn until_gone(&self, cut: &[u64]) {
        let mut alive = self.alive.subscribe();
        loop {
            // Looked at without the channel's lock: `admit` takes the two the other way round.
            alive.borrow_and_update();
            let ended = {
                let clients = self.lock();
                !cut.iter().any(|number| clients.contains_key(number))
            };
            // We hold a sender, so the channel cannot close.
            if ended || alive.changed().await.is_err() {
                return;
            }
        }
    }

    /// Answers may be given until `moment`.
    pub(crate) fn valid_until(&self, moment: Instant) {
        *self
            .valid_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = moment;
    }

    /// Closes the sockets of these backends' clients.
    pub(crate) fn cut_clients_of(&self, backends: &[i32]) {
        for client in self.lock().values() {
            let of_one =
                |pid: &i32| client.backend.map(|(pid, _)| pid) == Some(pid.cast_unsigned());
            if backends.iter().any(of_one) {
                client.cut.cancel();
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Client>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_valid(&self) -> bool {
        Instant::now()
            < *self
                .valid_until
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
    }

    fn admit(self: Arc<Self>, number: u64, stream: Stream) {
        let cut = CancellationToken::new();
        {
            let mut clients = self.lock();
            if clients.len() >= CONNECTIONS_MAX {
                return;
            }
            clients.insert(
                number,
                Client {
                    cut: cut.clone(),
                    term: self.gate.borrow().promise,
                    served: false,
                    backend: None,
                    cancels: Cancels::Dropped,
                },
            );
            self.alive.send_modify(|alive| *alive += 1);
        }
        let tasks = self.runtime.tasks().clone();
        tasks.spawn("client", async move {
            let place = Place { port: self, number };
            let shutdown = place.port.runtime.shutdown();
            tokio::select! {
                served = place.port.serve(number, stream) => {
                    if let Err(error) = served {
                        debug!(%error, "client lost");
                    }
                }
                () = cut.cancelled() => {}
                () = shutdown.requested() => {}
            }
        });
    }

    async fn serve(&self, number: u64, stream: Stream) -> std::io::Result<()> {
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
        if let Some(client) = self.lock().get_mut(&number) {
            if startup.get(CANCELS) == Some(CANCELS_KEPT_FROM_COMMITS) {
                client.cancels = Cancels::KeptFromCommits;
            }
            // One that is behind is served under the promise, as one that names none.
            let named = startup.get(TERM).and_then(|term| term.parse().ok());
            client.term = client.term.newest(named.map_or(Term::ZERO, Term::new));
        }
        let ours = [CANCELS, TERM];
        startup
            .parameters
            .retain(|(name, _)| !ours.contains(&name.as_str()));
        let socket = self.database.options.layout.socket();
        let Ok(mut backend) = self.runtime.connect_unix(&socket).await else {
            return refuse(&mut client, "57P03", "this member's PostgreSQL is not up").await;
        };
        let mut packet = BytesMut::new();
        StartupRequest::Startup(startup).encode(&mut packet);
        backend.write_all(&packet).await?;
        if !self.start(number, &mut client, &mut backend).await? {
            return Ok(());
        }
        // Nothing that the client sends is read before this.
        let served = tokio::select! {
            served = self.until_served(number) => served,
            // A client that goes away meanwhile shows when the other end closes.
            _ = closed(&mut backend) => false,
        };
        if !served {
            return Ok(());
        }
        self.relay(client, backend, input).await
    }

    /// Waits until the member serves the term of this client; false when that is past.
    async fn until_served(&self, number: u64) -> bool {
        let mut changes = self.gate.subscribe();
        loop {
            changes.borrow_and_update();
            {
                // Under the lock of whoever closes: it sees this client, or this one sees it.
                let mut clients = self.lock();
                let gate = *self.gate.borrow();
                let Some(client) = clients.get_mut(&number) else {
                    return false;
                };
                if gate.promise.supersedes(client.term) {
                    return false;
                }
                if gate.open == Some(client.term) {
                    client.served = true;
                    return true;
                }
            }
            // We hold a sender, so the channel cannot close.
            drop(changes.changed().await);
        }
    }

    /// Relays a cancel request, and returns when no cancel can come of it any more: PostgreSQL has
    /// closed its connection, or the session is cut off, so that no COMMIT reaches it either.
    async fn cancel(&self, key: (u32, u32)) {
        let meant = self.lock().iter().find_map(|(number, client)| {
            let kept = client.cancels == Cancels::KeptFromCommits && !client.cut.is_cancelled();
            (kept && client.backend == Some(key)).then(|| (*number, client.cut.clone()))
        });
        let Some((number, cut)) = meant else {
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
                cut.cancel();
                self.until_gone(&[number]).await;
            }
        }
    }

    /// The backend's half of the start-up exchange; false if it refused.
    async fn start(
        &self,
        number: u64,
        client: &mut Stream,
        backend: &mut UnixStream,
    ) -> std::io::Result<bool> {
        let mut input = BytesMut::new();
        loop {
            while let Some(frame) = decode(&mut input, Peer::Backend, Limits::default())
                .map_err(std::io::Error::other)?
            {
                client.write_all(frame.raw()).await?;
                match frame.tag() {
                    tag::BACKEND_KEY_DATA => {
                        let key = atoll_pgwire::backend::backend_key_data(frame.body())
                            .map_err(std::io::Error::other)?;
                        if let Some(client) = self.lock().get_mut(&number) {
                            client.backend = Some(key);
                        }
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
                if length == 0 || !self.is_valid() {
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

/// A client's place in the port; its drop, also by a cut, comes after its sockets are closed.
struct Place {
    port: Arc<Port>,
    number: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.port.lock().remove(&self.number);
        self.port.alive.send_modify(|alive| *alive -= 1);
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
