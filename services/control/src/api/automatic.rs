//! Automation: what it may do, and orders about it.

use std::sync::Arc;

use atoll_api::{AutomaticAct, AutomaticOrder, AutomaticStatus, Code, Problem};
use atoll_detection::guard::Guard;
use axum::Json;
use axum::body::Bytes;
use axum::extract::State;

use super::Failed;
use crate::app::Control;
use crate::guard;

/// Longest name and longest reason.
const WORDS_MAX: usize = 500;

pub(crate) async fn get(
    State(control): State<Arc<Control>>,
) -> Result<Json<AutomaticStatus>, Failed> {
    let (found, _) = guard::load(control.store.as_ref()).await?;
    let orders = guard::orders(control.store.as_ref()).await?;
    Ok(Json(AutomaticStatus {
        configured: control.automatic,
        off: found.killed.clone(),
        frozen: found.frozen.clone(),
        acts: acts(&found),
        orders,
    }))
}

fn acts(guard: &Guard) -> Vec<AutomaticAct> {
    let failovers = guard.failovers.iter().map(|past| AutomaticAct {
        unix_ms: past.at_ms,
        group: Some(past.group.clone()),
        what: "failover".to_owned(),
    });
    let changes = guard.changes.iter().map(|past| {
        let shards = past
            .shards
            .iter()
            .map(|(first, last)| format!("{first}-{last}"));
        let shards: Vec<_> = shards.collect();
        AutomaticAct {
            unix_ms: past.at_ms,
            group: None,
            what: format!("{} lost, shards {} moved", past.domain, shards.join(",")),
        }
    });
    let mut acts: Vec<_> = failovers.chain(changes).collect();
    acts.sort_by_key(|act| std::cmp::Reverse(act.unix_ms));
    acts
}

pub(crate) async fn post(
    State(control): State<Arc<Control>>,
    body: Bytes,
) -> Result<Json<AutomaticStatus>, Failed> {
    let bad = |why: String| {
        let problem = Problem::new(Code::BAD_REQUEST, "not an order about automation");
        Failed::from(problem.why(why).effect("nothing was changed"))
    };
    let order: AutomaticOrder =
        serde_json::from_slice(&body).map_err(|error| bad(error.to_string()))?;
    for (what, text) in [("who gives it", &order.by), ("why", &order.reason)] {
        if text.trim().is_empty() || text.len() > WORDS_MAX {
            return Err(bad(format!("{what} takes 1 to {WORDS_MAX} characters")));
        }
    }
    guard::obey(&control, order).await?;
    get(State(control)).await
}
