//! Watches: what there is, then what changes. Level-triggered: at each change of what the list is
//! made of it is compared with what was sent, so that nothing can be missed and steps that only pass
//! through memory are shown too.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use atoll_api::{AnyObject, Kind, WatchEvent, WatchKind};
use atoll_store::Watch;
use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures::{StreamExt, stream};
use tokio::sync::watch::Receiver;
use tokio::time::{Instant, timeout_at};

use super::{Failed, order, topology};
use crate::app::Control;
use crate::follow::All;
use crate::plans;
use crate::reconcile::execution::Stored;
use crate::records::Groups;

/// A line at least this often, so that a watcher can tell silence from death.
const BOOKMARK: Duration = Duration::from_secs(2);

struct Sent {
    control: Arc<Control>,
    kind: Kind,
    /// The only one that is asked for.
    only: Option<String>,
    known: BTreeMap<String, AnyObject>,
    changes: Changes,
    /// When the next line has to go out, whatever wakes us before.
    line_by: Instant,
}

/// Wake-ups only: what changed is found by looking.
enum Changes {
    Stored(Watch),
    Executions {
        executed: Receiver<Arc<All<Stored>>>,
        marked: Receiver<u64>,
        recorded: Receiver<Arc<Groups>>,
    },
}

impl Changes {
    async fn of(control: &Control, kind: Kind) -> Result<Self, Failed> {
        let prefix = match kind {
            Kind::Execution => {
                return Ok(Self::Executions {
                    executed: control.executions.subscribe(),
                    marked: control.timeline.subscribe(),
                    recorded: control.records.subscribe(),
                });
            }
            Kind::Plan => plans::PREFIX,
            _ => topology::TOPOLOGY,
        };
        let revision = order::revision(control).await?;
        Ok(Self::Stored(control.store.watch(prefix, revision).await?))
    }

    /// None: it is not followed any more.
    async fn next(&mut self) -> Option<()> {
        match self {
            Self::Stored(stored) => stored.next().await?.ok().map(drop),
            Self::Executions {
                executed,
                marked,
                recorded,
            } => tokio::select! {
                changed = executed.changed() => changed.ok(),
                changed = marked.changed() => changed.ok(),
                changed = recorded.changed() => changed.ok(),
            },
        }
    }
}

/// Lines of events, without end; the watch ends with the store's own, and a client begins anew.
pub(crate) async fn stream(
    control: Arc<Control>,
    kind: Kind,
    only: Option<String>,
) -> Result<Response, Failed> {
    let sent = Sent {
        // From before the first look on, so that what comes while we look wakes us again.
        changes: Changes::of(&control, kind).await?,
        control,
        kind,
        only,
        known: BTreeMap::new(),
        line_by: Instant::now() + BOOKMARK,
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
            sent.line_by = Instant::now() + BOOKMARK;
            let lines = Ok::<_, std::convert::Infallible>(Bytes::from(lines));
            return Some((lines, (sent, false)));
        }
    });
    let body = Body::from_stream(lines);
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

/// Waits for a change, and says whether there was one before the next line is due; none: what there
/// is is not followed any more.
async fn woken(sent: &mut Sent) -> Option<bool> {
    if Instant::now() >= sent.line_by {
        // Changes without news may come as fast as they are looked at.
        return Some(false);
    }
    match timeout_at(sent.line_by, sent.changes.next()).await {
        Ok(changed) => changed.map(|()| true),
        Err(_) => Some(false),
    }
}

async fn bookmark(control: &Control, kind: Kind) -> String {
    let mut mark = AnyObject::new(kind, "", serde_json::Value::Null);
    if let Ok(revision) = order::revision(control).await {
        mark.metadata.resource_version = revision.to_string();
    }
    line(WatchKind::Bookmark, &mark)
}

async fn news(sent: &mut Sent) -> Option<String> {
    // A store that cannot be read now says nothing; the next look may.
    let items = order::items(&sent.control, sent.kind, sent.only.as_deref());
    let items = items.await.ok()?;
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
