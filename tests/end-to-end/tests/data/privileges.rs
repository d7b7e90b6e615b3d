//! What goes round the owner's privilege, and the two controls of it; the list of all controls is
//! in `controls`.

use anyhow::{Result, ensure};
use atoll_ownership::OpKind;
use atoll_postgres::check_privileges;
use atoll_streams::agent::SchemaApplied;
use atoll_testkit::data::{Group, GroupOptions, SUPERUSER};

/// Whether a role may write a table on the first member, which is the primary.
async fn may_write(group: &Group, role: &str, statement: &str) -> Result<bool> {
    let client = group.client(0, role).await?;
    match client.batch_execute(statement).await {
        Ok(()) => Ok(true),
        Err(error) if error.code().is_some_and(|code| code.code() == "42501") => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// What the check before each op finds.
async fn findings(group: &Group) -> Result<Vec<String>> {
    let session = group.inside(0, SUPERUSER).await?;
    let found = check_privileges(&session, None).await?;
    Ok(found.iter().map(ToString::to_string).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_with_its_owners_privilege_writes_for_a_cell_that_owns_nothing() -> Result<()> {
    let mut group = Group::born(GroupOptions::default()).await?;
    let left = "CREATE FUNCTION s00000.f() RETURNS void LANGUAGE sql SECURITY DEFINER \
                AS 'INSERT INTO s00000.t VALUES (42)'; \
                ALTER FUNCTION s00000.f() OWNER TO atoll_owner";
    let session = group.inside(0, SUPERUSER).await?;
    session.execute("leave a function", left).await?;
    group.op(OpKind::OwnerChange, 0, &[(0, 0, "b")]).await?;
    let direct = "INSERT INTO s00000.t VALUES (41)";
    ensure!(
        !may_write(&group, "cell_a", direct).await?,
        "two cells may write"
    );
    ensure!(
        may_write(&group, "cell_a", "SELECT s00000.f()").await?,
        "the control is none: the function did not write"
    );
    let found = findings(&group).await?;
    ensure!(
        found.len() == 1 && found[0].contains("SECURITY DEFINER"),
        "{found:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_change_that_does_not_lock_its_shard_grants_to_the_old_owner() -> Result<()> {
    let mut group = Group::born(GroupOptions::default()).await?;
    let by_hand = group.inside(0, SUPERUSER).await?;
    // It looks who owns the shard, makes its table, and grants: the owner changes in between.
    let begun = "BEGIN; SET LOCAL ROLE atoll_owner; CREATE TABLE s00000.u (id bigint PRIMARY KEY)";
    by_hand.execute("begin", begun).await?;
    group.op(OpKind::OwnerChange, 0, &[(0, 0, "b")]).await?;
    let granted = "GRANT SELECT, INSERT ON s00000.u TO cell_a; COMMIT";
    by_hand.execute("commit", granted).await?;
    let write = "INSERT INTO s00000.u VALUES (1)";
    ensure!(
        may_write(&group, "cell_a", write).await?,
        "the control is none: the old owner may not write"
    );
    ensure!(!findings(&group).await?.is_empty(), "the check is blind");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_change_and_an_owner_change_at_once_leave_one_writer() -> Result<()> {
    let mut group = Group::born(GroupOptions::default()).await?;
    // Holds the file where it has made its table in shard 0 and granted nothing.
    let holder = group.inside(0, SUPERUSER).await?;
    holder.value("hold", "SELECT pg_advisory_lock(7)").await?;
    let sql = "CREATE TABLE u (id bigint PRIMARY KEY); SELECT pg_advisory_xact_lock_shared(7)";
    let control = group.control.clone();
    let primary = group.member(0);
    let apply = async move { control.apply(&primary, "2-more", sql).await };
    let change = async {
        let waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
        group.until_inside(0, waits, |value| value == "1").await?;
        let order = group
            .begin(OpKind::OwnerChange, 0, &[(0, 0, "b")], None)
            .await?;
        group.drive(&order).await?;
        // It waits for the shard's row.
        let waits = "SELECT count(*) FROM pg_locks WHERE locktype <> 'advisory' AND NOT granted";
        group.until_inside(0, waits, |value| value != "0").await?;
        holder
            .execute("let go", "SELECT pg_advisory_unlock(7)")
            .await?;
        group.opens(&order).await
    };
    let (applied, changed): (Result<SchemaApplied>, Result<()>) = tokio::join!(apply, change);
    changed?;
    let applied = applied?;
    ensure!(
        applied.shards.iter().all(|(_, result)| result.is_ok()),
        "{applied:?}"
    );
    let write = "INSERT INTO s00000.u VALUES (1)";
    ensure!(
        !may_write(&group, "cell_a", write).await?,
        "the old owner writes the new table"
    );
    ensure!(
        may_write(&group, "cell_b", write).await?,
        "the new owner does not"
    );
    let found = findings(&group).await?;
    ensure!(found.is_empty(), "{found:?}");
    group.members_are_equal().await?;
    Ok(())
}
