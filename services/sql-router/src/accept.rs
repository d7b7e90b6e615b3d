//! New connections: what they ask for, and the first words of a session.
//!
//! No TLS and no password yet: the router listens on loopback addresses and trusts whoever reaches
//! it (`Config::check` refuses others).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use atoll_pgwire::backend::{self, Severity};
use atoll_pgwire::hint::{self, KEY_SETTING};
use atoll_pgwire::{StartupMessage, StartupRequest, decode_startup};
use atoll_runtime::{Listener, Stream};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tracing::{debug, warn};

use crate::app::Shared;
use crate::error::Refusal;
use crate::identify::{self, Keys};
use crate::refuse;
use crate::route::quoted;
use crate::session::{Session, Settings, State, Unit};
use crate::side::Side;
use crate::statement;

/// Whom a cancel request means: secret and session.
type Sessions = BTreeMap<u32, (u32, mpsc::Sender<()>)>;

/// Sessions by the numbers that their clients were given.
#[derive(Default)]
pub(crate) struct Cancels(Mutex<(u32, Sessions)>);

impl Cancels {
    fn register(&self, secret: u32) -> (u32, mpsc::Receiver<()>) {
        let (sender, receiver) = mpsc::channel(1);
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, known) = &mut *sessions;
        loop {
            *last = last.wrapping_add(1).max(1);
            if !known.contains_key(last) {
                break;
            }
        }
        known.insert(*last, (secret, sender));
        (*last, receiver)
    }

    fn forget(&self, number: u32) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .1
            .remove(&number);
    }

    fn cancel(&self, number: u32, secret: u32) {
        let sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, session)) = sessions.1.get(&number)
            && *known == secret
        {
            let sent = session.try_send(());
            // Full: it is about to be cancelled already.
            debug!(number, ?sent, "cancel request");
        }
    }
}

/// Accepts until shutdown, then waits for the sessions within the drain limit.
pub(crate) async fn accept(shared: Arc<Shared>, listener: Listener) {
    let shutdown = shared.runtime.shutdown();
    // Each session holds one end; when all are gone, so is the last message.
    let (alive, mut all_gone) = mpsc::channel::<()>(1);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.requested() => break,
        };
        match accepted {
            Ok((stream, _)) => {
                let (shared, alive) = (Arc::clone(&shared), alive.clone());
                let tasks = shared.runtime.tasks().clone();
                tasks.spawn("client", async move {
                    shared.metrics.clients.inc();
                    serve(&shared, stream).await;
                    shared.metrics.clients.dec();
                    drop(alive);
                });
            }
            Err(error) => warn!(%error, "a client could not be accepted"),
        }
    }
    drop((listener, alive));
    let drained = timeout(shared.limits.drain() * 2, all_gone.recv()).await;
    if drained.is_err() {
        warn!(
            in_flight = shared.gates.in_flight(),
            "clients were cut at the end of the drain"
        );
    }
}

async fn serve(shared: &Arc<Shared>, stream: Stream) {
    let mut side = Side::new(stream);
    let started = timeout(shared.limits.startup(), start(shared, &mut side)).await;
    match started {
        Ok(Ok(Some(startup))) => {
            let session = match begin(shared, side, &startup).await {
                Ok(session) => session,
                Err((mut side, refusal)) => {
                    refusal.put(&mut side.output, Severity::Fatal);
                    drop(side.flush().await);
                    return;
                }
            };
            let (number, session) = session;
            session.serve().await;
            shared.cancels.forget(number);
        }
        Ok(Ok(None)) => {}
        Ok(Err(refusal)) => {
            refusal.put(&mut side.output, Severity::Fatal);
            drop(side.flush().await);
        }
        Err(_) => debug!("a client said nothing"),
    }
}

/// Reads up to the request for a session; `None` for a connection that wanted something else.
async fn start(shared: &Shared, side: &mut Side) -> Result<Option<StartupMessage>, Refusal> {
    loop {
        match decode_startup(&mut side.input, shared.limits.frames())? {
            Some(StartupRequest::Ssl | StartupRequest::GssEnc) => {
                side.output.extend_from_slice(b"N");
                if side.flush().await.is_err() {
                    return Ok(None);
                }
            }
            Some(StartupRequest::Cancel { process, secret }) => {
                shared.cancels.cancel(process, secret);
                return Ok(None);
            }
            Some(StartupRequest::Startup(message)) => return Ok(Some(message)),
            None => {
                if side.read().await.is_err() {
                    return Ok(None);
                }
            }
        }
    }
}

/// What a startup message asks for.
struct Wishes {
    keys: Keys,
    settings: Settings,
}

fn wishes(startup: &StartupMessage) -> Result<Wishes, Refusal> {
    let mut given = Vec::new();
    for (name, value) in &startup.parameters {
        match name.as_str() {
            "user" | "database" | "application_name" => {}
            "replication" if matches!(value.as_str(), "false" | "off" | "no" | "0") => {}
            "replication" => {
                return Err(Refusal::Feature {
                    what: "replication",
                    hint: "",
                });
            }
            "options" => given.extend(hint::options(value).map_err(Refusal::Syntax)?),
            name if name.starts_with("_pq_.") => {}
            name => given.push((name.to_ascii_lowercase(), value.clone())),
        }
    }
    let mut key = None;
    let mut settings = Settings::default();
    for (name, value) in given {
        if name == KEY_SETTING {
            key = Some(identify::user(&value)?);
        } else if name == "client_encoding" {
            statement::encoding(Some(value))?;
        } else if name == "application_name" {
        } else if refuse::may_be_set_at_startup(&name) {
            let value = value.replace('\'', "''");
            let sql = format!("SET {} = '{value}'", quoted(&name));
            settings.startup.insert(name, sql);
        } else {
            let hint = "The router sets it itself.";
            return Err(Refusal::Feature {
                what: "a setting that the router owns",
                hint,
            });
        }
    }
    settings.reset_all();
    Ok(Wishes {
        keys: Keys::at_startup(key),
        settings,
    })
}

async fn begin(
    shared: &Arc<Shared>,
    mut side: Side,
    startup: &StartupMessage,
) -> Result<(u32, Session), (Side, Refusal)> {
    let limit = shared.limits.clients_max;
    let clients = usize::try_from(shared.metrics.clients.get()).unwrap_or(0);
    if clients > limit {
        return Err((
            side,
            Refusal::Limit {
                name: "clients_max",
                limit,
            },
        ));
    }
    let wishes = match wishes(startup) {
        Ok(wishes) => wishes,
        Err(refusal) => return Err((side, refusal)),
    };
    let told = parameters(shared, startup).await;
    let out = &mut side.output;
    let unknown: Vec<&str> = startup
        .parameters
        .iter()
        .filter(|(name, _)| name.starts_with("_pq_."))
        .map(|(name, _)| name.as_str())
        .collect();
    if startup.minor > 0 || !unknown.is_empty() {
        backend::put_negotiate_version(out, 0, &unknown);
    }
    backend::put_authentication_ok(out);
    for (name, value) in &told {
        backend::put_parameter_status(out, name, value);
    }
    let secret = secret();
    let (number, cancels) = shared.cancels.register(secret);
    backend::put_backend_key_data(out, number, secret);
    backend::put_ready_for_query(out, backend::Status::Idle);
    let session = Session {
        shared: Arc::clone(shared),
        client: side,
        told,
        keys: wishes.keys,
        settings: wishes.settings,
        statements: BTreeMap::new(),
        portals: BTreeMap::new(),
        state: State::Idle,
        attached: None,
        unit: Unit::default(),
        cancels,
        changes: shared.gates.changes(),
    };
    Ok((number, session))
}

/// What clients are told before they have a primary: what the last one said, or what every one of
/// ours says.
async fn parameters(shared: &Shared, startup: &StartupMessage) -> BTreeMap<String, String> {
    let mut told = shared.pools.parameters();
    if told.is_empty() {
        shared.introduce().await;
        told = shared.pools.parameters();
    }
    let usual = [
        ("server_version", "15.0"),
        ("server_encoding", "UTF8"),
        ("client_encoding", "UTF8"),
        ("DateStyle", "ISO, MDY"),
        ("IntervalStyle", "postgres"),
        ("TimeZone", "Etc/UTC"),
        ("integer_datetimes", "on"),
        ("standard_conforming_strings", "on"),
    ];
    for (name, value) in usual {
        told.entry(name.to_owned())
            .or_insert_with(|| value.to_owned());
    }
    let own = [
        (
            "application_name",
            startup.get("application_name").unwrap_or_default(),
        ),
        (
            "session_authorization",
            startup.get("user").unwrap_or_default(),
        ),
        ("is_superuser", "off"),
        ("in_hot_standby", "off"),
        ("default_transaction_read_only", "off"),
    ];
    for (name, value) in own {
        told.insert(name.to_owned(), value.to_owned());
    }
    told
}

/// A number that other clients cannot guess from their own.
fn secret() -> u32 {
    use std::hash::{BuildHasher, Hasher};
    let mut hasher = std::hash::RandomState::new().build_hasher();
    hasher.write_u128(Instant::now().elapsed().as_nanos());
    u32::try_from(hasher.finish() >> 32).unwrap_or(0)
}
