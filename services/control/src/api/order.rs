//! Resources: list, get and create, by kind.

use std::str::FromStr;
use std::sync::Arc;

use atoll_api::{AnyObject, Code, Kind, List, Problem};
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use super::{Failed, executions, topology, watch};
use crate::app::Control;
use crate::plans;

#[derive(Debug, Deserialize)]
pub(crate) struct ListQuery {
    #[serde(default)]
    watch: bool,
}

pub(crate) async fn list(
    State(control): State<Arc<Control>>,
    Path(plural): Path<String>,
    Query(query): Query<ListQuery>,
) -> Result<Response, Failed> {
    let kind = parse(&plural)?;
    if query.watch {
        return watch::stream(control, kind).await;
    }
    let (items, version) = all(&control, kind).await?;
    Ok(Json(List::new(kind, version, items)).into_response())
}

pub(crate) async fn get(
    State(control): State<Arc<Control>>,
    Path((plural, name)): Path<(String, String)>,
) -> Result<Json<AnyObject>, Failed> {
    let kind = parse(&plural)?;
    let (items, _) = all(&control, kind).await?;
    let found = items.into_iter().find(|item| item.metadata.name == name);
    found.map(Json).ok_or_else(|| {
        let what = format!("there is no {} {name}", kind.singular());
        let next = format!("atoll get {}", kind.plural());
        Failed::from(
            Problem::new(Code::NOT_FOUND, what)
                .about(kind, name)
                .next(next),
        )
    })
}

pub(crate) async fn create(
    State(control): State<Arc<Control>>,
    Path(plural): Path<String>,
    body: Bytes,
) -> Result<Json<AnyObject>, Failed> {
    match parse(&plural)? {
        Kind::Plan => Ok(Json(plans::create(&control, &body).await?)),
        Kind::Execution => Ok(Json(executions::create(&control, &body).await?)),
        kind => {
            let what = format!(
                "a {} of a running world cannot be made or changed",
                kind.singular()
            );
            Err(Failed::from(Problem::new(Code::METHOD, what)))
        }
    }
}

/// All resources of a kind, by name, and the version of the list.
pub(crate) async fn all(
    control: &Arc<Control>,
    kind: Kind,
) -> Result<(Vec<AnyObject>, String), Failed> {
    let items = match kind {
        Kind::Plan => plans::list(control).await?,
        Kind::Execution => executions::list(control),
        kind => topology::list(control.store.as_ref(), kind).await?,
    };
    let revision = control.store.list("/execution/").await?.revision;
    Ok((items, revision.to_string()))
}

fn parse(plural: &str) -> Result<Kind, Failed> {
    Kind::from_str(plural).map_err(|why| Failed::from(Problem::new(Code::NOT_FOUND, why)))
}

/// A body as a typed object; a slip of the pen does not become an order.
pub(crate) fn object<S: serde::de::DeserializeOwned>(
    kind: Kind,
    body: &[u8],
) -> Result<(String, S), Failed> {
    let bad = |why: String| {
        Failed::from(Problem::new(Code::BAD_REQUEST, "the body is not a resource").why(why))
    };
    let object: AnyObject = serde_json::from_slice(body).map_err(|error| bad(error.to_string()))?;
    if object.kind != kind {
        return Err(bad(format!(
            "kind is {}, the path says {kind}",
            object.kind
        )));
    }
    let name = object.metadata.name.clone();
    let spec = serde_json::from_value(object.spec).map_err(|error| bad(error.to_string()))?;
    Ok((name, spec))
}
