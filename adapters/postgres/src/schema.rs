//! `atoll schema apply`: one file, applied shard by shard, journalled and so repeatable.

use atoll_ownership::Grant;
use atoll_topology::{CellId, Epoch, ShardId};

use crate::opening::{cell_roles, privileges};
use crate::session::Session;
use crate::sql::{OWNER, literal};
use crate::{Error, check_privileges};

/// A file of DDL; its statements name tables without a schema.
#[derive(Debug, Clone)]
pub struct SchemaFile {
    /// Its name, the key in the journal.
    pub name: String,
    /// Its statements.
    pub sql: String,
}

/// What was done for one shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// The file was applied.
    Now,
    /// The journal says that it was applied before.
    Before,
}

/// Applies the file to one shard in one transaction. The shard's row is locked first: else an
/// owner change could commit between our reading the owner and our granting him the new tables.
pub async fn apply_schema(
    session: &Session,
    shard: ShardId,
    file: &SchemaFile,
) -> Result<Applied, Error> {
    session.execute("begin the schema change", "BEGIN").await?;
    match apply(session, shard, file).await {
        Ok(applied) => {
            session
                .execute("commit the schema change", "COMMIT")
                .await?;
            Ok(applied)
        }
        Err(error) => {
            session
                .execute("roll back the schema change", "ROLLBACK")
                .await?;
            Err(error)
        }
    }
}

async fn apply(session: &Session, shard: ShardId, file: &SchemaFile) -> Result<Applied, Error> {
    let sql = format!("SELECT cell FROM atoll.shard_owner WHERE shard = {shard} FOR SHARE");
    let owner = session
        .value("lock the shard's row", &sql)
        .await?
        .ok_or_else(|| Error::Rule(format!("shard {shard} is not in this group")))?;
    let owner = CellId::parse(owner).map_err(|error| Error::Rule(error.to_string()))?;
    let (name, hash) = (literal(&file.name), format!("md5({})", literal(&file.sql)));
    let sql = format!(
        "SELECT hash = {hash} FROM atoll.schema_journal WHERE shard = {shard} AND file = {name}"
    );
    match session
        .value("read the schema journal", &sql)
        .await?
        .as_deref()
    {
        Some("t") => return Ok(Applied::Before),
        Some(_) => {
            let what = "was applied with other content; give the new content a new name";
            return Err(Error::Rule(format!("schema file {:?} {what}", file.name)));
        }
        None => {}
    }
    // Objects belong to the owner role, and unqualified names go into the shard's schema.
    let sql = format!(
        "SET LOCAL ROLE {OWNER}; SET LOCAL search_path = {}",
        shard.schema()
    );
    session.execute("become the owner", &sql).await?;
    session.execute("apply the schema file", &file.sql).await?;
    session
        .execute(
            "be ourselves again",
            "RESET ROLE; SET LOCAL search_path = ''",
        )
        .await?;
    let roles = cell_roles(session).await?;
    let owned = Grant {
        shard,
        epoch: Epoch::ZERO,
        cell: owner,
    };
    session
        .execute("grant the new tables", &privileges(&[&owned], &roles))
        .await?;
    let findings = check_privileges(session, Some(&[shard])).await?;
    if let Some(finding) = findings.first() {
        return Err(Error::Rule(format!(
            "schema file {:?}: {finding}",
            file.name
        )));
    }
    let sql = format!(
        "INSERT INTO atoll.schema_journal (shard, file, hash) VALUES ({shard}, {name}, {hash})"
    );
    session.execute("write the schema journal", &sql).await?;
    Ok(Applied::Now)
}
