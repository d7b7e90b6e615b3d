//! One client: a session with one router after the other, one transaction after the other.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client as Sql, NoTls, SimpleQueryMessage};

use crate::deeds::{Key, Wish};
use crate::history::{Deed, Event, Fate, Owner, SessionId};

/// Longest wait for a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// Longest wait for an answer; longer than a router holds.
const ANSWER_LIMIT: Duration = Duration::from_secs(14);
/// A router's way of saying that the shard is another cell's.
const ANOTHER_CELLS: &str = "ZA004";
/// SQLSTATE classes of errors that come before a commit could: data, constraint, transaction state,
/// rollback, authorisation, missing object, syntax and access, resources.
const BEFORE_ANY_COMMIT: [&str; 9] = ["22", "23", "25", "28", "3D", "3F", "40", "42", "53"];

pub(crate) struct Client {
    pub(crate) number: u64,
    pub(crate) key: Key,
    pub(crate) routers: Vec<SocketAddr>,
    pub(crate) pause: Duration,
    pub(crate) seed: u64,
    pub(crate) begun: Instant,
    pub(crate) stop: watch::Receiver<bool>,
}

/// What a client leaves.
#[derive(Default)]
pub(crate) struct Noted {
    pub(crate) events: Vec<Event>,
    pub(crate) refusals: BTreeMap<String, u64>,
}

/// A connection, and the task that carries its bytes.
pub(crate) struct Connection {
    sql: Sql,
    _driver: JoinSet<()>,
}

/// Why a statement was not answered with what it asked for.
pub(crate) enum Refused {
    /// By the database or the router.
    Said(SqlState),
    /// The connection broke, or nobody answered in time, or the answer was strange.
    Silent(&'static str),
}

impl Client {
    /// Until it is told to stop.
    pub(crate) async fn run(self) -> Noted {
        let mut noted = Noted::default();
        let mut chance = StdRng::seed_from_u64(self.seed.wrapping_add(self.number));
        // Far apart: no two clients ever append the same element.
        let mut element = i64::try_from(self.number).unwrap_or_default() * 1_000_000_000;
        let mut session: SessionId = self.number << 32;
        let mut router = chance.random_range(0..self.routers.len());
        let mut connection: Option<Connection> = None;
        let mut known = 0;
        let mut stop = self.stop.clone();
        loop {
            let pause = self.pause.mul_f64(chance.random_range(0.5..1.5));
            tokio::select! {
                () = sleep(pause) => {}
                _ = stop.wait_for(|stop| *stop) => return noted,
            }
            let at = self.routers[router];
            let Some(open) = still_open(connection.take(), at).await else {
                router = (router + 1) % self.routers.len();
                continue;
            };
            if open.is_new {
                session += 1;
                known = 0;
            }
            element += 1;
            let wish = Wish::draw(&mut chance, element, known);
            let (event, refused) = self.transaction(&open.connection, session, wish).await;
            known = position(&event.deed).unwrap_or(known).max(known);
            if wish.is_write() || event.fate == Fate::Acknowledged {
                noted.events.push(event);
            }
            match refused {
                None => connection = Some(open.connection),
                Some(Refused::Said(state)) => {
                    *noted.refusals.entry(state.code().to_owned()).or_default() += 1;
                    if state.code() == ANOTHER_CELLS {
                        router = (router + 1) % self.routers.len();
                    }
                }
                Some(Refused::Silent(how)) => {
                    *noted.refusals.entry(how.to_owned()).or_default() += 1;
                }
            }
        }
    }

    /// One transaction. After a refusal the connection is to be dropped: whatever it had begun is
    /// rolled back.
    async fn transaction(
        &self,
        connection: &Connection,
        session: SessionId,
        wish: Wish,
    ) -> (Event, Option<Refused>) {
        let start_us = self.now_us();
        let mut event = Event {
            session,
            shard: self.key.shard,
            key: self.key.name.clone(),
            start_us,
            inside_us: start_us,
            commit_us: start_us,
            end_us: start_us,
            fate: Fate::Failed,
            owner: None,
            deed: wish.unanswered(),
        };
        let outcome = self.steps(connection, wish, &mut event).await;
        event.end_us = self.now_us();
        (event, outcome.err())
    }

    async fn steps(
        &self,
        connection: &Connection,
        wish: Wish,
        event: &mut Event,
    ) -> Result<(), Refused> {
        if wish.is_write() {
            connection.ask("BEGIN").await?;
        }
        let answer = connection.ask(&wish.sql(&self.key)).await?;
        event.inside_us = self.now_us();
        let answered = wish.answered(&answer);
        let (deed, owner): (Deed, Option<Owner>) =
            answered.ok_or(Refused::Silent("a strange answer"))?;
        event.commit_us = self.now_us();
        if wish.is_write() {
            let committed = connection.ask("COMMIT").await;
            if let Err(refused) = committed {
                if !refused.is_before_any_commit() {
                    event.fate = Fate::Unknown;
                }
                return Err(refused);
            }
        }
        (event.fate, event.deed, event.owner) = (Fate::Acknowledged, deed, owner);
        Ok(())
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

/// The last position that a deed has shown.
fn position(deed: &Deed) -> Option<i64> {
    match deed {
        Deed::Append { at, .. } => *at,
        Deed::ReadList { tail } => tail.last().map(|(position, _)| *position),
        Deed::Count { .. } | Deed::ReadRegister { .. } => None,
    }
}

impl Refused {
    /// Whether it is sure that a COMMIT that was refused so did nothing.
    fn is_before_any_commit(&self) -> bool {
        match self {
            Self::Said(state) => {
                let code = state.code();
                // 40003: a statement's completion is unknown.
                code != "40003"
                    && (BEFORE_ANY_COMMIT
                        .iter()
                        .any(|class| code.starts_with(class))
                        || *state == SqlState::CANNOT_CONNECT_NOW)
            }
            Self::Silent(_) => false,
        }
    }
}

struct Open {
    connection: Connection,
    is_new: bool,
}

async fn still_open(connection: Option<Connection>, router: SocketAddr) -> Option<Open> {
    if let Some(connection) = connection
        && !connection.sql.is_closed()
    {
        return Some(Open {
            connection,
            is_new: false,
        });
    }
    let connection = Connection::open(router).await?;
    Some(Open {
        connection,
        is_new: true,
    })
}

impl Connection {
    pub(crate) async fn open(router: SocketAddr) -> Option<Self> {
        let mut config = tokio_postgres::Config::new();
        config
            .host(router.ip().to_string())
            .port(router.port())
            .user("workload")
            .dbname("atoll")
            .application_name("workload");
        let opened = timeout(CONNECT_LIMIT, config.connect(NoTls)).await;
        let (sql, carrier) = opened.ok()?.ok()?;
        let mut driver = JoinSet::new();
        // Its end is seen by whoever uses the connection next.
        driver.spawn(async move { drop(carrier.await) });
        Some(Self {
            sql,
            _driver: driver,
        })
    }

    pub(crate) async fn ask(&self, text: &str) -> Result<Vec<SimpleQueryMessage>, Refused> {
        match timeout(ANSWER_LIMIT, self.sql.simple_query(text)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(match error.as_db_error() {
                Some(said) => Refused::Said(said.code().clone()),
                None => Refused::Silent("the connection broke"),
            }),
            Err(_) => Err(Refused::Silent("no answer in time")),
        }
    }
}
