//! Names inside the database, and how text gets into SQL.

use atoll_topology::CellId;

/// The one database of a data group.
pub const DATABASE: &str = "atoll";

/// The bootstrap superuser: the agent's own sessions, never a client's.
pub const SUPERUSER: &str = "atoll_agent";

/// Owns every shard's schema and objects; nobody can log in as it.
pub const OWNER: &str = "atoll_owner";

/// As whom standbys take the log.
pub const REPLICATOR: &str = "atoll_replication";

/// The role with which a cell's router connects: `cell_<cell id>`.
pub fn cell_role(cell: &CellId) -> String {
    format!("cell_{cell}")
}

/// What cell roles begin with, as a pattern for LIKE.
pub(crate) const CELL_ROLES: &str = r"cell\_%";

/// A name between double quotes.
pub(crate) fn name(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

/// A text between single quotes; backslashes are plain (standard_conforming_strings).
pub(crate) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_and_literals_cannot_be_left() {
        assert_eq!(super::name("a\"b"), "\"a\"\"b\"");
        assert_eq!(super::literal("it's"), "'it''s'");
    }
}
