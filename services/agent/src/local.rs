//! The PostgreSQL of this machine, as the protocol sees it.

use std::sync::Arc;

use atoll_ownership::{Grant, TermRow};
use atoll_postgres::{InPlace, Moved, change_owner};
use atoll_streams::agent::{RowsHashed, SchemaApplied};
use atoll_topology::{Lsn, ShardId};
use tokio::sync::watch;
use tokio::time::{Duration, sleep};

use crate::database::Database;
use crate::error::Error;
use crate::gate::Gate;
use crate::hindrances::Hindrances;
use crate::orders::{self, in_full};
use crate::postgres::{Postgres, Reading};

/// PostgreSQL does not announce what it has replayed.
const REPLAY_POLL: Duration = Duration::from_millis(1);

/// Our PostgreSQL, and the gate before it.
pub(crate) struct Local {
    pub(crate) database: Arc<Database>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) hindrances: watch::Receiver<Hindrances>,
}

#[tonic::async_trait]
impl Postgres for Local {
    async fn end(&self) -> Option<Reading> {
        let (log, end) = self.database.end().await.ok()?;
        let received = log.received.map_or(0, |received| received.0);
        let replay_lag_bytes = received.saturating_sub(log.end.0);
        Some(Reading {
            end,
            replay_lag_bytes,
        })
    }

    async fn replayed(&self, lsn: Lsn) -> Result<(), String> {
        loop {
            let log = self.database.log().await.map_err(|error| in_full(&error))?;
            if log.end >= lsn {
                return Ok(());
            }
            sleep(REPLAY_POLL).await;
        }
    }

    async fn change_owners(
        &self,
        grants: Vec<Grant>,
        row: Option<TermRow>,
    ) -> Result<Option<TermRow>, String> {
        let text = |error: Error| in_full(&error);
        // A newer promise cuts this session, and with it the change.
        let session = self.database.session().await.map_err(text)?;
        let change = InPlace { moves: grants, row };
        let layout = &self.database.options.layout;
        let changed = change_owner(&session, layout, &change, |idle| {
            let backends: Vec<i32> = idle.iter().map(|session| session.pid).collect();
            self.gate.cut_clients_of(&backends);
        });
        if changed.await.map_err(|error| text(error.into()))? == Moved::Busy {
            return Err("the shards' tables stayed in use".into());
        }
        if change.row.is_none() {
            return Ok(None);
        }
        let line = self.database.line().await.map_err(text)?;
        Ok(line.history.last().cloned())
    }

    fn hindrances(&self) -> Hindrances {
        self.hindrances.borrow().clone()
    }

    async fn apply_schema(&self, id: String, sql: String, shards: Vec<ShardId>) -> SchemaApplied {
        orders::apply(&self.database, id, sql, shards).await
    }

    async fn hash_rows(&self, id: String, shards: Vec<ShardId>, at_least: Lsn) -> RowsHashed {
        orders::hash(&self.database, id, shards, at_least).await
    }
}
