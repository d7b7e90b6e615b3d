//! Whole worlds: three cities as real processes, real PostgreSQL, users under way.

use anyhow::Result;
use atoll_testkit::world::World;
use serde_json::Value;

fn number(report: &Value, name: &str) -> u64 {
    report.get(name).and_then(Value::as_u64).unwrap_or(u64::MAX)
}

/// Nothing acknowledged is lost or doubled, and enough was done to lose something.
fn is_sound(report: &Value) {
    for name in ["lost", "duplicated", "altered", "strangers"] {
        assert_eq!(number(report, name), 0, "{name}: {report}");
    }
    assert_eq!(
        report.get("conserved"),
        Some(&Value::Bool(true)),
        "{report}"
    );
    let acknowledged = number(report, "acknowledged");
    assert_eq!(number(report, "present"), acknowledged, "{report}");
    assert!(acknowledged > 20, "{report}");
}

fn group<'s>(status: &'s Value, name: &str) -> Option<&'s Value> {
    let groups = status.get("groups")?.as_array()?;
    groups
        .iter()
        .find(|group| group.get("name").and_then(Value::as_str) == Some(name))
}

fn primary(status: &Value, name: &str) -> Option<String> {
    let primary = group(status, name)?.pointer("/open/primary")?.as_str()?;
    Some(primary.to_owned())
}

fn quiet(status: &Value) -> bool {
    let all = status.get("groups").and_then(Value::as_array);
    all.is_some_and(|all| {
        !all.is_empty()
            && all
                .iter()
                .all(|g| g.get("open").is_some() && g.get("op").is_none())
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn users_do_not_notice_a_switch_and_lose_nothing_with_control_a_primary_or_a_city()
-> Result<()> {
    let world = World::up("lifecycle")?;
    world.until("born", quiet).await?;

    // A planned switch of a cell to another city under load: no failed request.
    let load = world.load(60).await?;
    world
        .switch(&["cell", "hz-1", "--to", "shanghai"])?
        .wait()?;
    let moved = |status: &Value| primary(status, "g1").as_deref() == Some("g1-2");
    world
        .until("g1 led in shanghai", |status| {
            moved(status) && quiet(status)
        })
        .await?;
    let report = load.stop().await?;
    is_sound(&report);
    assert_eq!(number(&report, "failed"), 0, "{report}");
    assert_eq!(number(&report, "unknown"), 0, "{report}");

    // Control dies while a switch is under way: the op ends after its return, nothing is doubled.
    let load = world.load(60).await?;
    let mut run = world.switch(&["failback"])?;
    world.dev("kill", &["control"])?;
    world.dev("start", &["control"])?;
    let back = |status: &Value| primary(status, "g1").as_deref() == Some("g1-1");
    let home = world
        .until("g1 back in hangzhou", |status| {
            back(status) && quiet(status)
        })
        .await;
    run.kill().ok();
    run.wait()?;
    // The order may have died with control before it was written: then it is given again.
    if home.is_err() {
        world.switch(&["failback"])?.wait()?;
        world
            .until("g1 back in hangzhou", |status| {
                back(status) && quiet(status)
            })
            .await?;
    }
    is_sound(&load.stop().await?);

    // A city falls silent: its shards are served elsewhere, and it comes back and re-joins.
    let load = world.load(60).await?;
    world.dev("pause", &["shanghai"])?;
    let owned = |status: &Value| {
        let owners = group(status, "g3")
            .and_then(|group| group.get("owners"))
            .cloned();
        owners.is_some_and(|owners| !owners.to_string().contains("sh-1"))
    };
    world
        .until("shanghai's shards elsewhere", |status| {
            owned(status) && quiet(status)
        })
        .await?;
    is_sound(&load.stop().await?);
    world.dev("resume", &["shanghai"])?;
    let complete = |status: &Value| {
        let warnings = status.get("warnings").and_then(Value::as_array);
        quiet(status) && warnings.is_some_and(Vec::is_empty)
    };
    world.until("complete again", complete).await?;
    Ok(())
}
