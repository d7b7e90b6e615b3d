//! The proof that nothing goes round the owner's privilege; run before each op and after each
//! schema file.

use std::fmt;

use atoll_topology::ShardId;

use crate::Error;
use crate::session::Session;
use crate::sql::{CELL_ROLES, OWNER, literal};

/// Something that could write, or be written, without the owner's privilege.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The rule that it breaks.
    pub rule: &'static str,
    /// What breaks it.
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.what)
    }
}

/// Looks at these shards, or at all, and at the roles.
pub async fn check_privileges(
    session: &Session,
    shards: Option<&[ShardId]>,
) -> Result<Vec<Finding>, Error> {
    let scope = match shards {
        None => r"n.nspname ~ '^s[0-9]{5}$'".to_owned(),
        Some(shards) => {
            let names: Vec<String> = shards
                .iter()
                .map(|shard| literal(&shard.schema()))
                .collect();
            format!("n.nspname IN ({})", names.join(", "))
        }
    };
    let mut findings = Vec::new();
    for (rule, sql) in rules(&scope) {
        for row in session.rows("check the privileges", &sql).await? {
            let what = row.into_iter().flatten().next().unwrap_or_default();
            findings.push(Finding { rule, what });
        }
    }
    Ok(findings)
}

/// Each query names the objects that break its rule.
fn rules(scope: &str) -> Vec<(&'static str, String)> {
    let cells = format!("r.rolname LIKE '{CELL_ROLES}'");
    vec![
        (
            "a SECURITY DEFINER function writes with its owner's privilege",
            "SELECT p.oid::regprocedure::text FROM pg_proc p JOIN pg_namespace n \
             ON n.oid = p.pronamespace WHERE p.prosecdef \
             AND n.nspname NOT IN ('pg_catalog', 'information_schema')"
                .into(),
        ),
        (
            "a grant to PUBLIC",
            format!(
                "SELECT c.oid::regclass::text FROM pg_class c \
                 JOIN pg_namespace n ON n.oid = c.relnamespace, aclexplode(c.relacl) a \
                 WHERE {scope} AND a.grantee = 0 \
                 UNION ALL SELECT n.nspname FROM pg_namespace n, aclexplode(n.nspacl) a \
                 WHERE {scope} AND a.grantee = 0"
            ),
        ),
        (
            "an object that does not belong to the owner role",
            format!(
                "SELECT c.oid::regclass::text FROM pg_class c \
                 JOIN pg_namespace n ON n.oid = c.relnamespace WHERE {scope} \
                 AND c.relowner <> '{OWNER}'::regrole"
            ),
        ),
        (
            "more than one cell may write",
            format!(
                "SELECT c.oid::regclass::text FROM pg_class c \
                 JOIN pg_namespace n ON n.oid = c.relnamespace, aclexplode(c.relacl) a \
                 JOIN pg_roles r ON r.oid = a.grantee WHERE {scope} AND {cells} \
                 AND a.privilege_type IN ('INSERT', 'UPDATE', 'DELETE', 'TRUNCATE') \
                 GROUP BY c.oid HAVING count(DISTINCT r.oid) > 1"
            ),
        ),
        (
            "a cell that does not own the shard may write",
            format!(
                "SELECT c.oid::regclass::text || ' by ' || r.rolname FROM pg_class c \
                 JOIN pg_namespace n ON n.oid = c.relnamespace \
                 JOIN atoll.shard_owner o ON n.nspname = 's' || lpad(o.shard::text, 5, '0'), \
                 aclexplode(c.relacl) a JOIN pg_roles r ON r.oid = a.grantee \
                 WHERE {scope} AND {cells} AND r.rolname <> 'cell_' || o.cell \
                 AND a.privilege_type IN ('INSERT', 'UPDATE', 'DELETE', 'TRUNCATE')"
            ),
        ),
        (
            "a view, rule, foreign key, trigger or parent that reaches out of its schema",
            format!(
                "SELECT v.oid::regclass::text FROM pg_class v \
                 JOIN pg_namespace n ON n.oid = v.relnamespace \
                 JOIN pg_rewrite w ON w.ev_class = v.oid \
                 JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid \
                 AND d.refclassid = 'pg_class'::regclass \
                 JOIN pg_class t ON t.oid = d.refobjid \
                 WHERE {scope} AND t.relnamespace <> v.relnamespace \
                 UNION ALL SELECT k.conname::text FROM pg_constraint k \
                 JOIN pg_namespace n ON n.oid = k.connamespace \
                 JOIN pg_class t ON t.oid = k.confrelid \
                 WHERE {scope} AND k.contype = 'f' AND t.relnamespace <> k.connamespace \
                 UNION ALL SELECT g.tgname::text FROM pg_trigger g \
                 JOIN pg_class c ON c.oid = g.tgrelid \
                 JOIN pg_namespace n ON n.oid = c.relnamespace \
                 JOIN pg_proc p ON p.oid = g.tgfoid WHERE {scope} AND NOT g.tgisinternal \
                 AND p.pronamespace NOT IN (c.relnamespace, 'pg_catalog'::regnamespace) \
                 UNION ALL SELECT c.oid::regclass::text FROM pg_inherits i \
                 JOIN pg_class c ON c.oid = i.inhrelid \
                 JOIN pg_namespace n ON n.oid = c.relnamespace \
                 JOIN pg_class t ON t.oid = i.inhparent \
                 WHERE {scope} AND t.relnamespace <> c.relnamespace"
            ),
        ),
        (
            "default privileges",
            "SELECT coalesce(defaclnamespace::regnamespace::text, 'all schemas') \
             FROM pg_default_acl"
                .into(),
        ),
        (
            "a cell role that may do more than write its shards",
            format!(
                "SELECT r.rolname FROM pg_roles r WHERE {cells} AND (r.rolsuper OR r.rolinherit \
                 OR r.rolcreaterole OR r.rolcreatedb OR r.rolreplication OR r.rolbypassrls \
                 OR r.rolconfig IS NOT NULL \
                 OR EXISTS (SELECT 1 FROM pg_auth_members m WHERE m.member = r.oid) \
                 OR EXISTS (SELECT 1 FROM pg_class c WHERE c.relowner = r.oid))"
            ),
        ),
        (
            "a cell role that may create",
            format!(
                "SELECT r.rolname || ' in ' || n.nspname FROM pg_roles r, pg_namespace n \
                 WHERE {cells} AND has_schema_privilege(r.oid, n.oid, 'CREATE')"
            ),
        ),
    ]
}
