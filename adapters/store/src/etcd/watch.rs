//! A watch: one stream at one node, taken up at another where the first falls silent, from the
//! revision that was told last.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Streaming};
use tracing::debug;

use super::endpoints::{AGAIN, ATTEMPT_LIMIT, Endpoints};
use super::proto::event::EventType;
use super::proto::watch_request::RequestUnion;
use super::proto::{
    WatchCreateRequest, WatchProgressRequest, WatchRequest as WireRequest, WatchResponse,
};
use super::{range_of, signed, text, unsigned};
use crate::{Change, Changes, Revision, StoreError, Watch};

/// A quiet node is asked this often whether it is there: a cut is silent, and etcd takes frequent
/// HTTP/2 pings for an attack.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_millis(300);
/// Requests that wait for one stream.
const REQUESTS_MAX: usize = 8;

/// One watch.
pub(super) struct Watching {
    endpoints: Arc<Endpoints>,
    prefix: String,
    seen: Revision,
    ready: VecDeque<Changes>,
    open: Option<Open>,
}

/// A stream that is under way.
struct Open {
    at: usize,
    requests: mpsc::Sender<WireRequest>,
    responses: Streaming<WatchResponse>,
    ticks: Interval,
    /// Since when an answer is due.
    asked: Option<Instant>,
}

impl Watching {
    pub(super) fn new(endpoints: Arc<Endpoints>, prefix: &str, after: Revision) -> Self {
        Self {
            endpoints,
            prefix: prefix.to_owned(),
            seen: after,
            ready: VecDeque::new(),
            open: None,
        }
    }

    /// Begins at the first node that takes it.
    pub(super) async fn open(&mut self) -> Result<(), StoreError> {
        let mut last = "no node is configured".to_owned();
        for _ in 0..self.endpoints.count() {
            let at = self.endpoints.current();
            let begun = timeout(ATTEMPT_LIMIT, self.open_at(at)).await;
            match begun.unwrap_or_else(|_| Err("no answer in time".to_owned())) {
                Ok(open) => {
                    self.open = Some(open);
                    return Ok(());
                }
                Err(why) => {
                    self.endpoints.leave(at, &why);
                    last = why;
                }
            }
        }
        Err(StoreError::Unavailable { reason: last })
    }

    /// Why a watch of changes that are gone is refused.
    pub(super) async fn refused(mut self) -> StoreError {
        let told = timeout(ATTEMPT_LIMIT * 3, async {
            self.open().await?;
            loop {
                self.next().await?;
            }
        });
        let silent = || StoreError::Unavailable {
            reason: "the watch was neither begun nor refused".to_owned(),
        };
        match told.await {
            Ok(Err(error)) => error,
            Ok(Ok(())) | Err(_) => silent(),
        }
    }

    /// The changes, without end.
    pub(super) fn stream(self) -> Watch {
        Box::pin(futures::stream::unfold(Some(self), |watching| async move {
            let mut watching = watching?;
            match watching.next().await {
                Ok(changes) => Some((Ok(changes), Some(watching))),
                Err(error) => Some((Err(error), None)),
            }
        }))
    }

    async fn open_at(&self, at: usize) -> Result<Open, String> {
        let start = signed(self.seen).map_err(|error| error.to_string())?;
        let (key, range_end) = range_of(&self.prefix);
        let create = WatchCreateRequest {
            key,
            range_end,
            start_revision: start + 1,
        };
        let (requests, outbound) = mpsc::channel(REQUESTS_MAX);
        let first = WireRequest {
            request_union: Some(RequestUnion::CreateRequest(create)),
        };
        requests
            .try_send(first)
            .map_err(|error| error.to_string())?;
        let mut client = self.endpoints.watches(at).ok_or("there is no such node")?;
        let responses = client
            .watch(Request::new(ReceiverStream::new(outbound)))
            .await
            .map_err(|status| status.message().to_owned())?;
        let mut responses = responses.into_inner();
        let created = responses
            .message()
            .await
            .map_err(|status| status.message().to_owned())?
            .ok_or("it ended the watch")?;
        if !created.created || created.canceled {
            return Err(created.cancel_reason);
        }
        let mut ticks = interval(KEEP_ALIVE_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Open {
            at,
            requests,
            responses,
            ticks,
            asked: None,
        })
    }

    async fn next(&mut self) -> Result<Changes, StoreError> {
        loop {
            if let Some(changes) = self.ready.pop_front() {
                return Ok(changes);
            }
            let Some(open) = &mut self.open else {
                if let Err(error) = self.open().await {
                    debug!(%error, "watch not taken up; again");
                    sleep(AGAIN).await;
                }
                continue;
            };
            let lost = tokio::select! {
                biased;
                message = open.responses.message() => match message {
                    Ok(Some(response)) => {
                        open.asked = None;
                        if response.canceled && response.compact_revision == 0 {
                            Some(response.cancel_reason)
                        } else {
                            self.take(response)?;
                            None
                        }
                    }
                    Ok(None) => Some("it ended the watch".to_owned()),
                    Err(status) => Some(status.message().to_owned()),
                },
                _ = open.ticks.tick() => open.ask(),
            };
            let Some(why) = lost else { continue };
            if let Some(open) = self.open.take() {
                debug!(why, after = %self.seen, "watch lost; taken up elsewhere");
                self.endpoints.leave(open.at, &why);
            }
        }
    }

    fn take(&mut self, response: WatchResponse) -> Result<(), StoreError> {
        if response.canceled {
            // Everything before the revision that etcd names is gone.
            let kept = unsigned(response.compact_revision)?;
            return Err(StoreError::Compacted {
                compacted: Revision(kept.0.saturating_sub(1)),
            });
        }
        for event in response.events {
            let kind = event.r#type();
            let Some(pair) = event.kv else { continue };
            let revision = unsigned(pair.mod_revision)?;
            if revision <= self.seen {
                continue;
            }
            let change = Change {
                key: text(&pair.key)?,
                value: (kind == EventType::Put).then(|| Bytes::clone(&pair.value)),
            };
            match self.ready.back_mut() {
                Some(last) if last.revision == revision => last.changes.push(change),
                _ => self.ready.push_back(Changes {
                    revision,
                    changes: vec![change],
                }),
            }
        }
        // A response holds whole transactions, so what follows is later.
        for changes in &mut self.ready {
            changes.changes.sort_by(|a, b| a.key.cmp(&b.key));
        }
        if let Some(last) = self.ready.back() {
            self.seen = last.revision;
        }
        Ok(())
    }
}

impl Open {
    /// Asks whether the node is there; why it is not, if it owes an answer for too long.
    fn ask(&mut self) -> Option<String> {
        match self.asked {
            Some(since) if since.elapsed() > ATTEMPT_LIMIT => {
                return Some("it does not answer".to_owned());
            }
            Some(_) => {}
            None => self.asked = Some(Instant::now()),
        }
        let question = WireRequest {
            request_union: Some(RequestUnion::ProgressRequest(WatchProgressRequest {})),
        };
        // A full line is a silent node, which is noticed above.
        drop(self.requests.try_send(question));
        None
    }
}
