//! Orders of control that are no op: schema files and row hashes.

use std::error::Error as _;
use std::sync::Arc;

use atoll_postgres::{SchemaFile, Session, apply_schema, read_log, row_hashes};
use atoll_streams::agent::{RowsHashed, SchemaApplied, TableHash};
use atoll_topology::{Lsn, ShardId};
use tokio::time::{Duration, Instant, sleep};

use crate::database::Database;
use crate::error::Error;

/// How long a standby may take to replay what is to be hashed.
const REPLAY_LIMIT: Duration = Duration::from_secs(30);

/// PostgreSQL 15 does not announce what it has replayed.
const REPLAY_POLL: Duration = Duration::from_millis(5);

/// An error with its causes.
pub(crate) fn in_full(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

async fn all_shards(session: &Session) -> Result<Vec<ShardId>, Error> {
    let sql = "SELECT shard FROM atoll.shard_owner ORDER BY shard";
    let rows = session.rows("list the shards", sql).await?;
    let shard = |row: Vec<Option<String>>| row.into_iter().flatten().next()?.parse().ok();
    Ok(rows.into_iter().filter_map(shard).map(ShardId).collect())
}

/// Runs a schema file in each shard, on the primary.
pub(crate) async fn apply(
    database: &Arc<Database>,
    id: String,
    sql: String,
    shards: Vec<ShardId>,
) -> SchemaApplied {
    let mut applied = SchemaApplied {
        id: id.clone(),
        shards: Vec::new(),
        error: None,
    };
    let file = SchemaFile { name: id, sql };
    let work = async {
        let session = database.session().await?;
        let shards = if shards.is_empty() {
            all_shards(&session).await?
        } else {
            shards
        };
        for shard in shards {
            let result = apply_schema(&session, shard, &file).await;
            let result = result
                .map(drop)
                .map_err(|error| in_full(&Error::Postgres(error)));
            applied.shards.push((shard, result));
        }
        Ok::<_, Error>(())
    };
    if let Err(error) = work.await {
        applied.error = Some(in_full(&error));
    }
    applied
}

/// Hashes rows, once enough is replayed.
pub(crate) async fn hash(
    database: &Arc<Database>,
    id: String,
    shards: Vec<ShardId>,
    at_least: Lsn,
) -> RowsHashed {
    let mut hashed = RowsHashed {
        id,
        lsn: Lsn(0),
        tables: Vec::new(),
        error: None,
    };
    let work = async {
        let session = database.session().await?;
        hashed.lsn = replayed(&session, at_least).await?;
        let shards = if shards.is_empty() {
            all_shards(&session).await?
        } else {
            shards
        };
        let tables = row_hashes(&session, &shards).await?;
        hashed.tables = tables
            .into_iter()
            .map(|table| TableHash {
                shard: table.shard,
                table: table.table,
                rows: table.rows,
                hash: table.hash,
            })
            .collect();
        Ok::<_, Error>(())
    };
    if let Err(error) = work.await {
        hashed.error = Some(in_full(&error));
    }
    hashed
}

async fn replayed(session: &Session, at_least: Lsn) -> Result<Lsn, Error> {
    let started = Instant::now();
    loop {
        let end = read_log(session).await?.end;
        if end >= at_least {
            return Ok(end);
        }
        if started.elapsed() > REPLAY_LIMIT {
            let limit_ms = REPLAY_LIMIT.as_millis();
            return Err(Error::TooLong {
                what: "replaying what is to be hashed",
                limit_ms,
            });
        }
        sleep(REPLAY_POLL).await;
    }
}
