//! Orders that go to the databases: schemas applied, rows compared.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use atoll_api::{
    Code, GroupRows, MemberRows, Problem, RowHashes, SchemaGroup, SchemaOrder, SchemaResult,
};
use atoll_ownership::record::GroupRecord;
use atoll_streams::agent::{Order, RowsHashed, TableHash};
use atoll_topology::{GroupId, Lsn, MemberId, ShardId, format_shards};
use axum::Json;
use axum::body::Bytes;
use axum::extract::State;

use super::Failed;
use crate::app::Control;
use crate::observe::agents::AskedRows;

/// How long a group has to apply a schema.
const SCHEMA_LIMIT: Duration = Duration::from_secs(60);
/// Tables of a group that are named as different.
const DIFFERENT_SHOWN: usize = 8;
/// How long a member has to replay and hash its rows.
const ROWS_LIMIT: Duration = Duration::from_secs(20);

pub(crate) async fn schema(
    State(control): State<Arc<Control>>,
    body: Bytes,
) -> Result<Json<SchemaResult>, Failed> {
    let order: SchemaOrder = serde_json::from_slice(&body).map_err(|error| {
        Failed::from(Problem::new(Code::BAD_REQUEST, "not a schema order").why(error.to_string()))
    })?;
    let id = crate::plans::hash_of(&order.sql);
    let groups = control.records.all();
    let each = groups
        .values()
        .map(|record| apply(&control, record, &id, &order.sql));
    let groups = futures::future::join_all(each).await;
    let result = SchemaResult { id, groups };
    if result.complete() {
        return Ok(Json(result));
    }
    let problem = Problem::new(
        Code::SCHEMA,
        format!("{} was not applied everywhere", order.name),
    );
    let failed = result.groups.iter().filter(|group| !group.error.is_empty());
    Err(Failed::from(failed.fold(problem, |problem, group| {
        problem.why(format!("group {}: {}", group.group, group.error))
    })))
}

async fn apply(control: &Control, record: &GroupRecord, id: &str, sql: &str) -> SchemaGroup {
    let group = record.group.clone();
    let failed = |error: &str| SchemaGroup {
        group: group.clone(),
        applied: String::new(),
        error: error.to_owned(),
    };
    let Some(open) = &record.open else {
        return failed("it is not born yet");
    };
    let order = Order::ApplySchema {
        id: id.to_owned(),
        sql: sql.to_owned(),
        shards: vec![],
    };
    if !control.agents.order(&open.primary, order) {
        return failed("its primary's agent is not connected");
    }
    let answer = control
        .agents
        .until(|agents| agents.schema_applied(&open.primary, id));
    let Ok(answer) = tokio::time::timeout(SCHEMA_LIMIT, answer).await else {
        return failed("no answer in time");
    };
    let mut errors: Vec<String> = answer.error.into_iter().collect();
    let mut applied = Vec::new();
    for (shard, outcome) in answer.shards {
        match outcome {
            Ok(()) => applied.push(shard),
            Err(error) => errors.push(format!("shard {shard}: {error}")),
        }
    }
    SchemaGroup {
        group,
        applied: format_shards(&applied),
        error: errors.join("; "),
    }
}

/// Hashes of all rows on all members. Each member is asked after it has replayed what the primary
/// had when it was asked, so equal rows give equal hashes on a world without load.
pub(crate) async fn rows(State(control): State<Arc<Control>>) -> Result<Json<RowHashes>, Failed> {
    let groups = control.records.all();
    let id = format!("rows-{}", control.runtime.wall_clock());
    let each = groups
        .iter()
        .map(|(group, record)| compare(&control, group, record, &id));
    let groups = futures::future::join_all(each).await;
    Ok(Json(RowHashes {
        equal: groups.iter().all(|group| group.equal),
        groups,
    }))
}

async fn compare(control: &Control, group: &GroupId, record: &GroupRecord, id: &str) -> GroupRows {
    let Some(open) = &record.open else {
        return GroupRows {
            group: group.clone(),
            equal: false,
            members: vec![],
            different: vec![],
        };
    };
    let asked = |at_least| AskedRows {
        id,
        shards: &[],
        at_least,
        limit: ROWS_LIMIT,
    };
    let primary = control.agents.ask_rows(&open.primary, asked(Lsn(0))).await;
    let at_least = primary.as_ref().map_or(Lsn(0), |rows| rows.lsn);
    let others = record
        .members
        .iter()
        .filter(|member| member.id != open.primary);
    let others = futures::future::join_all(others.map(|member| async {
        let rows = control.agents.ask_rows(&member.id, asked(at_least)).await;
        (member.id.clone(), rows)
    }));
    let mut all: BTreeMap<MemberId, Result<RowsHashed, String>> =
        others.await.into_iter().collect();
    all.insert(open.primary.clone(), primary);
    let different = different(&all);
    let members: Vec<MemberRows> = all.into_iter().map(|(id, rows)| shown(id, rows)).collect();
    let first = members.first().and_then(|member| member.hash.clone());
    let equal = first.is_some() && members.iter().all(|member| member.hash == first);
    GroupRows {
        group: group.clone(),
        equal,
        members,
        different,
    }
}

/// The tables that are not the same on all members that answered.
fn different(all: &BTreeMap<MemberId, Result<RowsHashed, String>>) -> Vec<String> {
    let answered: Vec<_> = all
        .iter()
        .filter_map(|(member, rows)| Some((member, rows.as_ref().ok()?)))
        .collect();
    let mut tables: BTreeMap<(ShardId, &str), BTreeMap<&MemberId, &TableHash>> = BTreeMap::new();
    for (member, rows) in &answered {
        for table in &rows.tables {
            let held = tables.entry((table.shard, &table.table)).or_default();
            held.insert(member, table);
        }
    }
    let differs = |held: &BTreeMap<&MemberId, &TableHash>| {
        let contents: BTreeSet<_> = held
            .values()
            .map(|table| (table.rows, table.hash))
            .collect();
        contents.len() > 1 || held.len() < answered.len()
    };
    let told = tables
        .iter()
        .filter(|(_, held)| differs(held))
        .take(DIFFERENT_SHOWN);
    told.map(|((shard, table), held)| {
        let each = answered.iter().map(|(member, _)| match held.get(member) {
            Some(table) => format!("{} rows {:016x} on {member}", table.rows, table.hash),
            None => format!("not on {member}"),
        });
        format!(
            "shard {shard}, {table}: {}",
            each.collect::<Vec<_>>().join(", ")
        )
    })
    .collect()
}

fn shown(member: MemberId, rows: Result<RowsHashed, String>) -> MemberRows {
    match rows {
        Ok(rows) => {
            let tables: Vec<_> = rows
                .tables
                .iter()
                .map(|table| {
                    format!(
                        "{} {} {} {:016x}",
                        table.shard, table.table, table.rows, table.hash
                    )
                })
                .collect();
            let hash = crate::plans::hash_of(&tables.join("\n"));
            let note = format!("at {}", rows.lsn);
            MemberRows {
                member,
                hash: Some(hash),
                note,
            }
        }
        Err(note) => MemberRows {
            member,
            hash: None,
            note,
        },
    }
}
