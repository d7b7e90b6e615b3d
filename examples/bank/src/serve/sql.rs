//! A small pool of database connections. A connection goes back only when it is known to be clean;
//! dropped in any other way it is closed, and the database rolls back what it had begun.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::net::TcpSocket;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::JoinSet;
use tokio_postgres::{Client, NoTls, Statement};

use super::Options;
use super::outcome::Failure;

/// Longest wait for a free connection, a new one, and its greeting.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

pub(crate) struct Sql {
    target: SocketAddr,
    source: IpAddr,
    config: tokio_postgres::Config,
    places: Semaphore,
    idle: Mutex<Vec<Connection>>,
    /// Owns the tasks that carry the connections' bytes; each ends with its connection.
    drivers: Mutex<JoinSet<()>>,
}

pub(crate) struct Connection {
    pub(crate) client: Client,
    statements: BTreeMap<&'static str, Statement>,
}

/// A connection on loan.
pub(crate) struct Lease<'a> {
    connection: Option<Connection>,
    pool: &'a Sql,
    _place: SemaphorePermit<'a>,
}

impl Sql {
    pub(crate) fn new(options: &Options) -> Self {
        let mut config = tokio_postgres::Config::new();
        config
            .user(&options.sql_user)
            .dbname(&options.sql_database)
            .application_name("bank");
        if let Some(more) = &options.sql_options {
            config.options(more);
        }
        Self {
            target: options.sql,
            source: options.source.unwrap_or(options.listen.ip()),
            config,
            places: Semaphore::new(options.sql_connections_max),
            idle: Mutex::default(),
            drivers: Mutex::default(),
        }
    }

    /// A connection, an idle one if there is one. Nothing was executed when this fails.
    pub(crate) async fn lease(&self) -> Result<Lease<'_>, Failure> {
        let late = |_| Failure::NotExecuted(format!("no database connection in {CONNECT_LIMIT:?}"));
        tokio::time::timeout(CONNECT_LIMIT, self.take())
            .await
            .map_err(late)?
    }

    async fn take(&self) -> Result<Lease<'_>, Failure> {
        let place = self.places.acquire().await;
        let place = place.map_err(|_| Failure::NotExecuted("the bank is closing".into()))?;
        let connection = match self.idle_one() {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        Ok(Lease {
            connection: Some(connection),
            pool: self,
            _place: place,
        })
    }

    fn idle_one(&self) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        std::iter::from_fn(|| idle.pop()).find(|connection| !connection.client.is_closed())
    }

    async fn connect(&self) -> Result<Connection, Failure> {
        let stream = async {
            let socket = match self.target {
                SocketAddr::V4(_) => TcpSocket::new_v4()?,
                SocketAddr::V6(_) => TcpSocket::new_v6()?,
            };
            socket.bind(SocketAddr::new(self.source, 0))?;
            let stream = socket.connect(self.target).await?;
            stream.set_nodelay(true)?;
            Ok::<_, std::io::Error>(stream)
        };
        // Nothing was executed, and the router may be about to be there again.
        let refused = |why: String| Failure::Again(format!("database {}: {why}", self.target));
        let stream = stream.await.map_err(|e| refused(e.to_string()))?;
        let greeted = self.config.connect_raw(stream, NoTls).await;
        let (client, driver) = greeted.map_err(|e| refused(e.to_string()))?;
        let mut drivers = self.drivers.lock().unwrap_or_else(PoisonError::into_inner);
        while drivers.try_join_next().is_some() {}
        // Its end is seen by whoever uses the client next.
        drivers.spawn(async move { drop(driver.await) });
        Ok(Connection {
            client,
            statements: BTreeMap::new(),
        })
    }
}

impl Connection {
    /// The statement, prepared at its first use on this connection. Always called inside a
    /// transaction, so that the database knows whose data is meant.
    pub(crate) async fn prepared(
        &mut self,
        text: &'static str,
    ) -> Result<Statement, tokio_postgres::Error> {
        if let Some(statement) = self.statements.get(text) {
            return Ok(statement.clone());
        }
        let statement = self.client.prepare(text).await?;
        self.statements.insert(text, statement.clone());
        Ok(statement)
    }
}

impl Lease<'_> {
    /// Puts a connection that is outside any transaction back.
    pub(crate) fn give_back(mut self) {
        if let Some(connection) = self.connection.take() {
            let mut idle = self
                .pool
                .idle
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            idle.push(connection);
        }
    }

    pub(crate) fn connection(&mut self) -> Result<&mut Connection, Failure> {
        self.connection
            .as_mut()
            .ok_or_else(|| Failure::NotExecuted("connection given back".into()))
    }
}
