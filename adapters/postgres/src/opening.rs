//! The opening transaction: the first of a term on its primary, and the point of no return.

use std::collections::BTreeSet;

use atoll_ownership::{Grant, TermRow};
use atoll_topology::{CellId, Term};

use crate::session::Session;
use crate::sql::{CELL_ROLES, OWNER, cell_role, literal, name};
use crate::{Error, Layout, left_at, read_timelines, timeline_of_primary};

/// One shard's new owner.
pub type ShardMove = Grant;

/// What the opening transaction writes. The timeline and the fork are read from the instance.
#[derive(Debug, Clone)]
pub struct Opening {
    /// The term row; its timeline and fork are filled in.
    pub row: TermRow,
    /// Shards that change hands.
    pub moves: Vec<ShardMove>,
    /// Every cell of the world: their roles exist in every group, so that a router may connect
    /// before its cell owns anything there.
    pub cells: Vec<CellId>,
}

/// Writes the opening transaction of a promoted (or still running) primary and waits for its
/// quorum. Returns the row as written. Nothing is written if a number is not the greatest.
pub async fn open_term(
    session: &Session,
    layout: &Layout,
    opening: Opening,
) -> Result<TermRow, Error> {
    let Opening {
        mut row,
        moves,
        cells,
    } = opening;
    row.timeline = timeline_of_primary(session).await?;
    session
        .execute("begin the opening transaction", "BEGIN")
        .await?;
    let written = async {
        let born = write_term_row(session, layout, &mut row).await?;
        move_shards(session, &moves, &cells, born).await
    };
    match written.await {
        Ok(()) => {
            session
                .execute("commit the opening transaction", "COMMIT")
                .await?;
            Ok(row)
        }
        Err(error) => {
            // Where that fails too, what went wrong first is the reason, and nothing is committed.
            drop(
                session
                    .execute("roll back the opening transaction", "ROLLBACK")
                    .await,
            );
            Err(error)
        }
    }
}

/// Whether the database had no term before: then its shards are created as they are granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Born {
    /// This is its first term.
    Now,
    /// It had one before.
    Before,
}

pub(crate) async fn write_term_row(
    session: &Session,
    layout: &Layout,
    row: &mut TermRow,
) -> Result<Born, Error> {
    // One opening at a time; the guard below would otherwise read a snapshot.
    let last = session
        .rows(
            "lock the term rows and read the last",
            "LOCK TABLE atoll.term IN SHARE ROW EXCLUSIVE MODE; \
             SELECT term, timeline, pg_current_wal_insert_lsn() FROM atoll.term \
             ORDER BY term DESC LIMIT 1",
        )
        .await?;
    let field = |at: usize| last.first().and_then(|row| row.get(at)?.clone());
    // A primary that wins again goes on where it is: its new term begins here.
    row.fork = match (field(1), field(2)) {
        (Some(timeline), Some(here)) if timeline == row.timeline.to_string() => {
            here.parse().map_err(|text| Error::Garbled {
                what: "an LSN",
                text,
            })?
        }
        (written, _) => {
            let written = written.and_then(|text| text.parse().ok()).unwrap_or(1);
            let left = left_at(&read_timelines(layout)?, written, row.timeline);
            left.unwrap_or_default()
        }
    };
    if let Some(last) = field(0).and_then(|text| text.parse().ok()).map(Term::new)
        && !row.term.supersedes(last)
    {
        return Err(Error::Stale {
            what: format!("term {}: the log has term {last}", row.term),
        });
    }
    let members: Vec<String> = row.members.iter().map(|id| literal(id.as_str())).collect();
    let sql = format!(
        "INSERT INTO atoll.term (term, timeline, fork, \"primary\", members, k, op) \
         VALUES ({}, {}, '{}', {}, ARRAY[{}]::text[], {}, {})",
        row.term,
        row.timeline,
        row.fork,
        literal(row.primary.as_str()),
        members.join(", "),
        row.k,
        literal(&row.op)
    );
    session.execute("insert the term row", &sql).await?;
    Ok(if last.is_empty() {
        Born::Now
    } else {
        Born::Before
    })
}

/// Gives shards to their new owners: epoch and owner in their rows, write privileges in the
/// catalog. A handful of statements however many shards and cells there are: users wait for this.
pub(crate) async fn move_shards(
    session: &Session,
    moves: &[ShardMove],
    cells: &[CellId],
    born: Born,
) -> Result<(), Error> {
    let mut moves: Vec<&ShardMove> = moves.iter().collect();
    moves.sort_unstable_by_key(|shard_move| shard_move.shard);
    let owners = moves.iter().map(|shard_move| &shard_move.cell);
    let roles = ensure_roles(session, cells.iter().chain(owners)).await?;
    if moves.is_empty() {
        return Ok(());
    }
    if born == Born::Now {
        create_shards(session, &moves, &roles).await?;
    }
    take_rows(session, &moves).await?;
    session
        .execute("grant the shards", &privileges(&moves, &roles))
        .await
}

/// The row locks serialise with every other change of these shards; they are taken in order.
async fn take_rows(session: &Session, moves: &[&ShardMove]) -> Result<(), Error> {
    let listed: Vec<String> = moves.iter().map(|m| m.shard.to_string()).collect();
    let lock = format!(
        "SELECT shard FROM atoll.shard_owner WHERE shard IN ({}) ORDER BY shard FOR UPDATE",
        listed.join(", ")
    );
    session.rows("lock the shards' rows", &lock).await?;
    let values: Vec<String> = moves
        .iter()
        .map(|m| format!("({}, {}, {})", m.shard, m.epoch, literal(m.cell.as_str())))
        .collect();
    let update = format!(
        "UPDATE atoll.shard_owner o SET epoch = v.epoch, cell = v.cell \
         FROM (VALUES {}) AS v (shard, epoch, cell) \
         WHERE o.shard = v.shard AND o.epoch < v.epoch RETURNING o.shard",
        values.join(", ")
    );
    let taken = session.rows("take the shards' rows", &update).await?.len();
    if taken == moves.len() {
        return Ok(());
    }
    let (taken, wanted) = (taken, moves.len());
    Err(Error::Stale {
        what: format!("{taken} of {wanted} epochs are newer than the log's"),
    })
}

/// All cell roles, in order.
pub(crate) async fn cell_roles(session: &Session) -> Result<Vec<String>, Error> {
    let sql = format!("SELECT rolname FROM pg_roles WHERE rolname LIKE '{CELL_ROLES}' ORDER BY 1");
    let rows = session.rows("list the cell roles", &sql).await?;
    Ok(rows
        .into_iter()
        .filter_map(|mut row| row.pop().flatten())
        .collect())
}

/// Everything is taken from every cell, and writing given to one. Not only from the previous
/// owner: after two changes that each saw half, a third cell could be left with it.
pub(crate) fn privileges(moves: &[&ShardMove], roles: &[String]) -> String {
    let roles = names(roles);
    let all = schemas(moves.iter().copied());
    let mut sql = format!(
        "REVOKE ALL ON ALL TABLES IN SCHEMA {all} FROM {roles};\n\
         REVOKE ALL ON ALL SEQUENCES IN SCHEMA {all} FROM {roles};\n"
    );
    let owners: BTreeSet<&CellId> = moves.iter().map(|m| &m.cell).collect();
    for cell in owners {
        let own = schemas(moves.iter().copied().filter(|m| m.cell == *cell));
        let owner = name(&cell_role(cell));
        sql.push_str(&format!(
            "GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA {own} \
             TO {owner};\nGRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA {own} TO {owner};\n"
        ));
    }
    sql
}

fn schemas<'m>(of: impl Iterator<Item = &'m ShardMove>) -> String {
    let schemas: Vec<String> = of.map(|m| m.shard.schema()).collect();
    schemas.join(", ")
}

fn names(roles: &[String]) -> String {
    let names: Vec<String> = roles.iter().map(|role| name(role)).collect();
    names.join(", ")
}

/// Creates the roles of these cells where they do not exist yet: member of nothing, owner of
/// nothing, with every shard's schema in sight. Returns all cell roles.
async fn ensure_roles(
    session: &Session,
    cells: impl Iterator<Item = &CellId>,
) -> Result<Vec<String>, Error> {
    let mut roles: BTreeSet<String> = cell_roles(session).await?.into_iter().collect();
    let mut missing: Vec<String> = cells.map(cell_role).collect();
    missing.retain(|role| roles.insert(role.clone()));
    if !missing.is_empty() {
        let mut sql = String::new();
        for role in &missing {
            let role = name(role);
            sql.push_str(&format!(
                "CREATE ROLE {role} LOGIN NOINHERIT NOSUPERUSER NOCREATEDB NOCREATEROLE \
                 NOREPLICATION NOBYPASSRLS;\n\
                 GRANT CONNECT ON DATABASE atoll TO {role};\n\
                 GRANT USAGE ON SCHEMA atoll TO {role};\n\
                 GRANT SELECT ON atoll.term, atoll.shard_owner TO {role};\n"
            ));
        }
        let present = session
            .rows(
                "list the shards",
                r"SELECT nspname FROM pg_namespace WHERE nspname ~ '^s[0-9]{5}$' ORDER BY 1",
            )
            .await?;
        let present: Vec<String> = present.into_iter().flatten().flatten().collect();
        if !present.is_empty() {
            let (present, missing) = (present.join(", "), names(&missing));
            sql.push_str(&format!("GRANT USAGE ON SCHEMA {present} TO {missing};\n"));
        }
        session.execute("create the cells' roles", &sql).await?;
    }
    Ok(roles.into_iter().collect())
}

async fn create_shards(
    session: &Session,
    moves: &[&ShardMove],
    roles: &[String],
) -> Result<(), Error> {
    let mut sql = String::new();
    let roles = names(roles);
    for Grant { shard, .. } in moves {
        let schema = shard.schema();
        sql.push_str(&format!(
            "CREATE SCHEMA {schema} AUTHORIZATION {OWNER};\n\
             GRANT USAGE ON SCHEMA {schema} TO {roles};\n\
             INSERT INTO atoll.shard_owner (shard, epoch, cell) VALUES ({shard}, 0, '');\n"
        ));
    }
    session.execute("create the shards", &sql).await
}
