//! Watches: what there is, then what changes. Level-triggered: the list is compared with what was
//! sent, so that nothing can be missed and steps that only pass through memory are shown too.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use atoll_api::{AnyObject, Kind, WatchEvent, WatchKind};
use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures::stream;

use super::order;
use crate::app::Control;

/// How often the list is compared.
const LOOK: Duration = Duration::from_millis(100);
/// A line at least this often, so that a watcher can tell silence from death.
const BOOKMARK: u32 = 20;

struct Sent {
    control: Arc<Control>,
    kind: Kind,
    known: BTreeMap<String, AnyObject>,
    quiet: u32,
}

/// Lines of events, without end.
pub(crate) fn stream(control: Arc<Control>, kind: Kind) -> Response {
    let sent = Sent {
        control,
        kind,
        known: BTreeMap::new(),
        quiet: BOOKMARK,
    };
    let lines = stream::unfold(sent, |mut sent| async move {
        loop {
            if let Some(lines) = news(&mut sent).await {
                return Some((Ok::<_, std::convert::Infallible>(Bytes::from(lines)), sent));
            }
            tokio::time::sleep(LOOK).await;
        }
    });
    (
        [(header::CONTENT_TYPE, "application/json")],
        Body::from_stream(lines),
    )
        .into_response()
}

async fn news(sent: &mut Sent) -> Option<String> {
    // A store that cannot be read now says nothing; the next look may.
    let (items, version) = order::all(&sent.control, sent.kind).await.ok()?;
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
            events.push((kind, item.clone()));
        }
        now.insert(name, item);
    }
    for (name, item) in &sent.known {
        if !now.contains_key(name) {
            events.push((WatchKind::Deleted, item.clone()));
        }
    }
    sent.known = now;
    sent.quiet += 1;
    if events.is_empty() && sent.quiet >= BOOKMARK {
        let mut mark = AnyObject::new(sent.kind, "", serde_json::Value::Null);
        mark.metadata.resource_version = version;
        events.push((WatchKind::Bookmark, mark));
    }
    if events.is_empty() {
        return None;
    }
    sent.quiet = 0;
    let line = |(kind, item): &(WatchKind, AnyObject)| {
        let object = serde_json::to_value(item).unwrap_or_default();
        let event = WatchEvent {
            kind: *kind,
            object,
        };
        serde_json::to_string(&event).unwrap_or_default() + "\n"
    };
    Some(events.iter().map(line).collect())
}
