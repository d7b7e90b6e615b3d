//! Watches: what there is, then what changes. Level-triggered: at each change of the store or of
//! the timeline the list is compared with what was sent, so that nothing can be missed and steps
//! that only pass through memory are shown too.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use atoll_api::{AnyObject, Kind, WatchEvent, WatchKind};
use atoll_workflow::Watch;
use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures::{StreamExt, stream};
use tokio::sync::watch::Receiver;

use super::{Failed, order};
use crate::app::Control;
use crate::follow::All;
use crate::reconcile::execution::Stored;

/// A line at least this often, so that a watcher can tell silence from death.
const BOOKMARK: Duration = Duration::from_secs(2);

struct Sent {
    control: Arc<Control>,
    kind: Kind,
    known: BTreeMap<String, AnyObject>,
    /// Wake-ups only: what changed is found by looking.
    stored: Watch,
    marked: Receiver<u64>,
    executed: Receiver<Arc<All<Stored>>>,
}

/// Lines of events, without end; the watch ends with the store's own, and a client begins anew.
pub(crate) async fn stream(control: Arc<Control>, kind: Kind) -> Result<Response, Failed> {
    // From before the first look on, so that what comes while we look wakes us again.
    let revision = control.store.list("/execution/").await?.revision;
    let sent = Sent {
        stored: control.store.watch("/", revision).await?,
        marked: control.timeline.subscribe(),
        executed: control.executions.subscribe(),
        control,
        kind,
        known: BTreeMap::new(),
    };
    let lines = stream::unfold((sent, true), |(mut sent, mut begun)| async move {
        loop {
            let changed = begun || woken(&mut sent).await?;
            begun = false;
            // Also where nothing woke us: a wake-up may come before what it is for can be seen.
            let lines = match news(&mut sent).await {
                Some(lines) => lines,
                None if changed => continue,
                None => bookmark(&sent.control, sent.kind).await,
            };
            let lines = Ok::<_, std::convert::Infallible>(Bytes::from(lines));
            return Some((lines, (sent, false)));
        }
    });
    let body = Body::from_stream(lines);
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

/// Waits for a change, and says whether there was one in time; none: the store is not followed
/// any more.
async fn woken(sent: &mut Sent) -> Option<bool> {
    let changed = async {
        tokio::select! {
            stored = sent.stored.next() => stored?.ok().map(drop),
            marked = sent.marked.changed() => marked.ok(),
            executed = sent.executed.changed() => executed.ok(),
        }
    };
    match tokio::time::timeout(BOOKMARK, changed).await {
        Ok(changed) => changed.map(|()| true),
        Err(_) => Some(false),
    }
}

async fn bookmark(control: &Control, kind: Kind) -> String {
    let mut mark = AnyObject::new(kind, "", serde_json::Value::Null);
    if let Ok(listed) = control.store.list("/execution/").await {
        mark.metadata.resource_version = listed.revision.to_string();
    }
    line(WatchKind::Bookmark, &mark)
}

async fn news(sent: &mut Sent) -> Option<String> {
    // A store that cannot be read now says nothing; the next look may.
    let (items, _) = order::all(&sent.control, sent.kind).await.ok()?;
    let mut events = Vec::new();
    let mut now = BTreeMap::new();
    for item in items {
        let name = item.metadata.name.clone();
        let kind = match sent.known.get(&name) {
            None => Some(WatchKind::Added),
            Some(known) if *known != item => Some(WatchKind::Modified),
            Some(_) => None,
        };
        if let Some(kind) = kind {
            events.push(line(kind, &item));
        }
        now.insert(name, item);
    }
    for (name, item) in &sent.known {
        if !now.contains_key(name) {
            events.push(line(WatchKind::Deleted, item));
        }
    }
    sent.known = now;
    (!events.is_empty()).then(|| events.concat())
}

fn line(kind: WatchKind, item: &AnyObject) -> String {
    let object = serde_json::to_value(item).unwrap_or_default();
    let event = WatchEvent { kind, object };
    serde_json::to_string(&event).unwrap_or_default() + "\n"
}
