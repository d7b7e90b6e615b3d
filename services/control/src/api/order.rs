//! Resources: list, get and create, by kind.

use std::str::FromStr;
use std::sync::Arc;

use atoll_api::{AnyObject, Code, Kind, List, Problem};
use atoll_store::{Revision, StoreError};
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use super::{Failed, executions, topology, watch};
use crate::app::Control;
use crate::plans;
use crate::publish::WORLD;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ListQuery {
    #[serde(default)]
    watch: bool,
    #[serde(default)]
    field_selector: Option<String>,
}

impl ListQuery {
    /// The one name that is asked for, if one is; nothing else can be selected.
    fn only(self) -> Result<Option<String>, Failed> {
        let Some(selector) = self.field_selector else {
            return Ok(None);
        };
        match selector.split_once('=') {
            Some(("metadata.name", name)) => Ok(Some(name.to_owned())),
            _ => Err(Failed::from(
                Problem::new(Code::BAD_REQUEST, "fieldSelector takes metadata.name=NAME")
                    .why(format!("it is {selector:?}")),
            )),
        }
    }
}

pub(crate) async fn list(
    State(control): State<Arc<Control>>,
    Path(plural): Path<String>,
    Query(query): Query<ListQuery>,
) -> Result<Response, Failed> {
    let kind = parse(&plural)?;
    let watch = query.watch;
    let only = query.only()?;
    if watch {
        return watch::stream(control, kind, only).await;
    }
    // The list is at least as new as the version that it is said to be of.
    let version = revision(&control).await?.to_string();
    let items = items(&control, kind, only.as_deref()).await?;
    Ok(Json(List::new(kind, version, items)).into_response())
}

pub(crate) async fn get(
    State(control): State<Arc<Control>>,
    Path((plural, name)): Path<(String, String)>,
) -> Result<Json<AnyObject>, Failed> {
    let kind = parse(&plural)?;
    let found = items(&control, kind, Some(&name)).await?.pop();
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

/// The resources of a kind, by name: all, or only the one of this name.
pub(crate) async fn items(
    control: &Arc<Control>,
    kind: Kind,
    only: Option<&str>,
) -> Result<Vec<AnyObject>, Failed> {
    let mut items = match kind {
        Kind::Plan => plans::list(control).await?,
        Kind::Execution => return Ok(executions::list(control, only)),
        kind => topology::list(control.store.as_ref(), kind).await?,
    };
    items.retain(|item| only.is_none_or(|only| item.metadata.name == only));
    Ok(items)
}

/// The store's revision.
pub(crate) async fn revision(control: &Control) -> Result<Revision, StoreError> {
    // A list says it, and this one is of a single small value.
    Ok(control.store.list(WORLD).await?.revision)
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
