//! The simulated PostgreSQL, as the agent's own protocol code sees it.

use std::sync::Arc;

use atoll_agent::simulation::{Hindrances, Postgres, Reading};
use atoll_ownership::{Grant, TermRow};
use atoll_runtime::Runtime;
use atoll_streams::agent::{RowsHashed, SchemaApplied};
use atoll_topology::{Lsn, ShardId};

use super::database::Database;
use crate::oracle::Oracle;

/// What the protocol of a simulated member stands on.
pub(crate) struct Simulated {
    pub(crate) runtime: Runtime,
    pub(crate) database: Arc<Database>,
    pub(crate) oracle: Oracle,
}

#[tonic::async_trait]
impl Postgres for Simulated {
    async fn end(&self) -> Option<Reading> {
        let end = self.database.end()?;
        // What arrives is replayed.
        let replay_lag_bytes = 0;
        Some(Reading {
            end,
            replay_lag_bytes,
        })
    }

    async fn replayed(&self, lsn: Lsn) -> Result<(), String> {
        let mut changes = self.database.changes();
        loop {
            changes.borrow_and_update();
            let end = self.database.end().ok_or("its PostgreSQL is not up")?;
            if end.position.lsn >= lsn {
                return Ok(());
            }
            changes.changed().await.map_err(|error| error.to_string())?;
        }
    }

    async fn change_owners(
        &self,
        grants: Vec<Grant>,
        row: Option<TermRow>,
    ) -> Result<Option<TermRow>, String> {
        let cut = self.database.session();
        // A backend goes on when its session is cut, and keeps its locks until it ends.
        let (database, oracle) = (self.database.clone(), self.oracle.clone());
        let backend = async move {
            let changed = database.change_owners(row, grants.clone()).await;
            if changed.is_ok() {
                oracle.serves(&grants);
            }
            changed
        };
        let mut backend = self.runtime.tasks().spawn("owner-change", backend);
        tokio::select! {
            changed = backend.join() => {
                let changed = changed.map_err(|end| end.to_string())?;
                changed.map_err(|failed| format!("{failed:?}"))
            }
            () = cut.cancelled() => Err("the session was cut".to_owned()),
        }
    }

    fn hindrances(&self) -> Hindrances {
        Hindrances::default()
    }

    async fn apply_schema(&self, id: String, _: String, _: Vec<ShardId>) -> SchemaApplied {
        SchemaApplied {
            id,
            shards: vec![],
            error: Some("there is no schema in a simulation".to_owned()),
        }
    }

    async fn hash_rows(&self, id: String, _: Vec<ShardId>, _: Lsn) -> RowsHashed {
        RowsHashed {
            id,
            lsn: Lsn(0),
            tables: vec![],
            error: Some("there are no tables in a simulation".to_owned()),
        }
    }
}
