//! One SQL session of the agent's own, over PostgreSQL's socket.

use std::path::Path;

use atoll_runtime::Runtime;
use tokio::sync::watch;
use tokio::time::{Duration, timeout};
use tokio_postgres::{Client, Config, NoTls};

use crate::sql::{DATABASE, SUPERUSER};
use crate::{Error, Layout};

/// A local start-up exchange takes a few milliseconds.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// One SQL session. Its socket closes when this is dropped or cut; its backend is never told to
/// end, so a commit that waits goes on waiting and is reported to nobody.
#[derive(Debug)]
pub struct Session {
    client: Client,
    cut: watch::Sender<bool>,
}

impl Session {
    /// Opens a session as the superuser.
    pub async fn open(runtime: &Runtime, layout: &Layout) -> Result<Self, Error> {
        Self::open_as(runtime, &layout.socket(), SUPERUSER).await
    }

    /// Opens a session as any role.
    pub async fn open_as(runtime: &Runtime, socket: &Path, user: &str) -> Result<Self, Error> {
        let stream = runtime
            .connect_unix(socket)
            .await
            .map_err(Error::file("connect to", socket))?;
        let mut config = Config::new();
        config
            .user(user)
            .dbname(DATABASE)
            .application_name("atoll-agent");
        let limit_ms = CONNECT_LIMIT.as_millis();
        let (client, connection) = timeout(CONNECT_LIMIT, config.connect_raw(stream, NoTls))
            .await
            .map_err(|_| Error::TooLong {
                what: "the start-up exchange",
                limit_ms,
                last: "no answer".into(),
            })?
            .map_err(Error::sql("start-up"))?;
        let (cut, mut cutting) = watch::channel(false);
        let relay = async move {
            tokio::select! {
                // A broken session is seen by whoever uses it next.
                _ = connection => {}
                _ = cutting.wait_for(|cut| *cut) => {}
            }
        };
        runtime.tasks().spawn("postgres-session", relay);
        Ok(Self { client, cut })
    }

    /// Closes the socket now, whatever is under way.
    pub fn cut(&self) {
        self.cut.send_replace(true);
    }

    /// Whether the session can still be used.
    pub fn is_open(&self) -> bool {
        !self.client.is_closed()
    }

    /// tokio-postgres's client.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Executes statements without parameters.
    pub async fn execute(&self, what: &'static str, sql: &str) -> Result<(), Error> {
        self.client
            .batch_execute(sql)
            .await
            .map_err(Error::sql(what))
    }

    /// The first column of the first row of a query without parameters, as text.
    pub async fn value(&self, what: &'static str, sql: &str) -> Result<Option<String>, Error> {
        let rows = self
            .client
            .simple_query(sql)
            .await
            .map_err(Error::sql(what))?;
        Ok(rows.iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        }))
    }

    /// All rows of a query without parameters, as text.
    pub async fn rows(
        &self,
        what: &'static str,
        sql: &str,
    ) -> Result<Vec<Vec<Option<String>>>, Error> {
        let messages = self
            .client
            .simple_query(sql)
            .await
            .map_err(Error::sql(what))?;
        Ok(messages
            .iter()
            .filter_map(|message| match message {
                tokio_postgres::SimpleQueryMessage::Row(row) => Some(
                    (0..row.len())
                        .map(|column| row.get(column).map(str::to_owned))
                        .collect(),
                ),
                _ => None,
            })
            .collect())
    }
}
