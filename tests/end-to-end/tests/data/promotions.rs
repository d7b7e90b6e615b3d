//! Negative controls of promotions; the list of all is in `controls`.

use anyhow::{Result, ensure};
use atoll_ownership::{OpKind, Progress};
use atoll_testkit::data::{Group, GroupOptions, SUPERUSER, Tally, rewind_by_hand};

use crate::controls::a_long_log_alone;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_promotions_without_placeholders_are_one_timeline_to_a_rewind() -> Result<()> {
    let mut group = Group::born(GroupOptions::default()).await?;
    group.members_are_joined().await?;
    group.agents[0].kill()?;
    for (at, id) in [(1, 1), (2, 2)] {
        let session = group.inside(at, SUPERUSER).await?;
        session.value("promote", "SELECT pg_promote()").await?;
        let write = format!("SET synchronous_commit = local; INSERT INTO s00000.t VALUES ({id})");
        session.execute("write", &write).await?;
        session.execute("checkpoint", "CHECKPOINT").await?;
    }
    let (second, third) = (group.ids(1).await?, group.ids(2).await?);
    ensure!(second != third, "they cannot differ");
    group.agents[2].kill()?;
    group.agents[2].postgres_gone().await?;
    let said = rewind_by_hand(&group.agents[2], &group.agents[1])?;
    ensure!(
        said.contains("no rewind required"),
        "the control is none: the rewind saw the difference: {said}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_is_used_before_open_is_told_of_a_write_that_is_lost() -> Result<()> {
    let mut group = Group::born(GroupOptions::default()).await?;
    group.members_are_joined().await?;
    let _long = a_long_log_alone(&group).await?;
    // The opening transaction of the next primary waits for this one.
    let holder = group.inside(1, SUPERUSER).await?;
    let hold = "BEGIN; LOCK TABLE atoll.term IN ROW EXCLUSIVE MODE";
    holder.execute("hold P6", hold).await?;
    // Opened ahead, past the port.
    let warm = group.inside(1, "cell_a").await?;
    let order = group.begin(OpKind::Failover, 1, &[], None).await?;
    group.drive(&order).await?;
    let opening = |step| matches!(step, Progress::Opening).then_some(());
    group.until_step(&order, "promoted", opening).await?;
    warm.execute("write", "INSERT INTO s00000.t VALUES (42)")
        .await?;
    let mut tally = Tally::default();
    tally.acknowledged.insert(42);
    // Its primary is lost before the term row is written: nothing in the log says that it was
    // newer than the long one.
    group.agents[1].kill()?;
    group.control.forget(&group.member(1));
    group.heal()?;
    let next = group
        .begin(OpKind::Failover, 0, &[], Some(order.term))
        .await?;
    group.drive(&next).await?;
    group.until_step(&next, "promoted", opening).await?;
    let lost = group.missing_on(0, &tally).await?;
    ensure!(
        lost == 1,
        "the checker is blind: a write before Open was not lost"
    );
    Ok(())
}
