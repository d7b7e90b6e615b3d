//! Where one user or one shard is, and why.

use std::sync::Arc;

use atoll_api::{Code, Explain, Located, Problem};
use atoll_routing::{Phase, Table, explain as explain_user, shard_of};
use atoll_topology::{ShardId, UserId};
use axum::Json;
use axum::extract::{Query, State};
use serde::Deserialize;

use super::Failed;
use crate::app::Control;

#[derive(Debug, Deserialize)]
pub(crate) struct Asked {
    user: Option<String>,
    shard: Option<u16>,
}

fn table(control: &Control) -> Result<Arc<Table>, Failed> {
    let none = || {
        Failed::from(Problem::new(
            Code::NOT_BORN,
            "no table has been published yet",
        ))
    };
    control.publisher.current().ok_or_else(none)
}

fn bad(what: String) -> Failed {
    Failed::from(Problem::new(Code::BAD_REQUEST, what))
}

pub(crate) async fn explain(
    State(control): State<Arc<Control>>,
    Query(asked): Query<Asked>,
) -> Result<Json<Explain>, Failed> {
    let table = table(&control)?;
    let text = asked
        .user
        .ok_or_else(|| bad("say which user: ?user=ID".to_owned()))?;
    let user = UserId::parse(text).map_err(|error| bad(error.to_string()))?;
    let Some(local) = table.cells.keys().next() else {
        return Err(bad("there is no cell".to_owned()));
    };
    let explained = explain_user(&table, local, &user).map_err(|error| bad(error.to_string()))?;
    Ok(Json(Explain::from(&explained)))
}

pub(crate) async fn locate(
    State(control): State<Arc<Control>>,
    Query(asked): Query<Asked>,
) -> Result<Json<Located>, Failed> {
    let table = table(&control)?;
    let count = u16::try_from(table.shards.len()).unwrap_or(u16::MAX);
    let shard = match (&asked.user, asked.shard) {
        (Some(user), None) => {
            let user = UserId::parse(user.clone()).map_err(|error| bad(error.to_string()))?;
            shard_of(table.scheme, count, &user).map_err(|error| bad(error.to_string()))?
        }
        (None, Some(shard)) => ShardId(shard),
        _ => return Err(bad("say which: ?user=ID or ?shard=N".to_owned())),
    };
    let row = table.shard(shard).ok_or_else(|| {
        let what = format!("there is no shard {shard}; shards are 0 to {}", count - 1);
        Failed::from(Problem::new(Code::NOT_FOUND, what))
    })?;
    let home = atoll_routing::home(&table, shard).ok();
    let region = table
        .cells
        .get(&row.cell)
        .map(|cell| cell.region.to_string());
    Ok(Json(Located {
        user: asked.user,
        shard: shard.0,
        schema: shard.schema(),
        cell: row.cell.to_string(),
        region: region.unwrap_or_default(),
        epoch: row.epoch.get(),
        switching: row.phase != Phase::Active,
        group: row.group.to_string(),
        term: home.map(|home| home.term.get()),
        primary: home.map(|home| home.primary.to_string()),
    }))
}
