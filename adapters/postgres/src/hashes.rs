//! Row hashes: equal on all members after every re-join.

use atoll_topology::ShardId;

use crate::Error;
use crate::session::Session;
use crate::sql::{literal, name};

/// The content of one table of one shard, in one number.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct TableHash {
    /// Which shard.
    pub shard: ShardId,
    /// Which table.
    pub table: String,
    /// Its rows.
    pub rows: u64,
    /// Sum over the hashes of its rows, which needs no order.
    pub hash: u64,
}

/// Hashes every row of every table of these shards, in one snapshot.
pub async fn row_hashes(session: &Session, shards: &[ShardId]) -> Result<Vec<TableHash>, Error> {
    session
        .execute(
            "begin hashing",
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
        )
        .await?;
    let mut hashes = Vec::new();
    for shard in shards {
        hash_shard(session, *shard, &mut hashes).await?;
    }
    session.execute("end hashing", "COMMIT").await?;
    Ok(hashes)
}

async fn hash_shard(
    session: &Session,
    shard: ShardId,
    hashes: &mut Vec<TableHash>,
) -> Result<(), Error> {
    let sql = format!(
        "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.relkind = 'r' AND n.nspname = {} ORDER BY 1",
        literal(&shard.schema())
    );
    for row in session.rows("list the shard's tables", &sql).await? {
        let Some(table) = row.into_iter().flatten().next() else {
            continue;
        };
        let sql = format!(
            "SELECT count(*), mod(coalesce(sum(hashtextextended(t::text, 0)::numeric \
             + 9223372036854775808), 0), 18446744073709551616) FROM {}.{} t",
            shard.schema(),
            name(&table)
        );
        let found = session.rows("hash a table", &sql).await?;
        let number = |at: usize| -> Option<u64> { found.first()?.get(at)?.as_ref()?.parse().ok() };
        let (Some(rows), Some(hash)) = (number(0), number(1)) else {
            let text = format!("{found:?}");
            return Err(Error::Garbled {
                what: "a table's hash",
                text,
            });
        };
        hashes.push(TableHash {
            shard,
            table,
            rows,
            hash,
        });
    }
    Ok(())
}
