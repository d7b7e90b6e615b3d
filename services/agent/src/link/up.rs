//! The end at an upstream: accepts standbys that the member's state machine accepts, and relays
//! them to our PostgreSQL. One link a standby; a newer one takes the older one's place.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use atoll_runtime::{Listener, Runtime, Stream};
use atoll_topology::{GroupId, MemberId};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Duration, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::greeting::{Greeting, Use};
use super::relay::{Run, Running, relay};
use crate::database::Database;

/// A standby says who it is within this.
const GREETING_LIMIT: Duration = Duration::from_secs(2);

/// A standby asks for a link; the actor answers between two steps of the member.
pub(crate) struct LinkAsked {
    pub(crate) greeting: Greeting,
    pub(crate) answer: oneshot::Sender<Option<Permit>>,
}

/// The member's consent; ends when the link is cut.
pub(crate) struct Permit {
    cut: CancellationToken,
    run: Run,
}

/// All links of standbys to us.
pub(crate) struct Up {
    links: Mutex<BTreeMap<(MemberId, u64), CancellationToken>>,
    running: Running,
}

impl Up {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            links: Mutex::default(),
            running: Running::new(),
        })
    }

    /// Registers a link before its standby is told, so that a cut that follows cuts it.
    pub(crate) fn permit(&self, greeting: &Greeting) -> Permit {
        let cut = CancellationToken::new();
        let mut links = self.lock();
        links.retain(|(member, number), old| {
            // Copies (number 1 and up) come in pairs: a clone uses two.
            let replaced = *member == greeting.from && *number == 0;
            if replaced && greeting.r#use == Use::Stream {
                old.cancel();
            }
            !old.is_cancelled()
        });
        let number = match greeting.r#use {
            Use::Stream => 0,
            Use::Copy => {
                let of_member = links.keys().filter(|(member, _)| *member == greeting.from);
                of_member.map(|(_, number)| *number).max().unwrap_or(0) + 1
            }
        };
        links.insert((greeting.from.clone(), number), cut.clone());
        Permit {
            cut,
            run: self.running.begin(),
        }
    }

    /// Cuts all links but those of `except`; returns when no byte can pass any more.
    pub(crate) async fn cut(&self, except: Option<&MemberId>) {
        let left = {
            let mut links = self.lock();
            links.retain(|(member, _), link| {
                let stays = Some(member) == except;
                if !stays {
                    link.cancel();
                }
                stays
            });
            links.len()
        };
        // Links of `except` may end or come anew meanwhile, never more than there are entries.
        self.running.until(|count| *count <= left).await;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<(MemberId, u64), CancellationToken>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Accepts standbys until shutdown.
pub(crate) fn listen(
    runtime: &Runtime,
    listener: Listener,
    group: GroupId,
    member: MemberId,
    database: Arc<Database>,
    asked: mpsc::Sender<LinkAsked>,
) {
    let (at, spawner) = (runtime.clone(), runtime.clone());
    runtime.tasks().spawn("link-up", async move {
        let shutdown = at.shutdown();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = shutdown.requested() => return,
            };
            match accepted {
                Ok((stream, _)) => {
                    let (group, member) = (group.clone(), member.clone());
                    let (database, asked) = (database.clone(), asked.clone());
                    spawner.tasks().spawn("link-standby", async move {
                        serve(stream, &group, &member, &database, &asked).await;
                    });
                }
                Err(error) => warn!(%error, "a standby's connection was not accepted"),
            }
        }
    });
}

/// One standby's connection. Whatever is wrong with it, it is closed; the standby asks again.
async fn serve(
    mut stream: Stream,
    group: &GroupId,
    member: &MemberId,
    database: &Database,
    asked: &mpsc::Sender<LinkAsked>,
) {
    let Ok(Ok(greeting)) = timeout(GREETING_LIMIT, Greeting::hear(&mut stream)).await else {
        return;
    };
    if greeting.group != *group || greeting.to != *member {
        warn!(from = %greeting.from, group = %greeting.group, to = %greeting.to, "a link that is not meant for us");
        return;
    }
    let (answer, permit) = oneshot::channel();
    let (from, purpose) = (greeting.from.clone(), greeting.r#use);
    if asked.send(LinkAsked { greeting, answer }).await.is_err() {
        return;
    }
    let Ok(Some(Permit { cut, run })) = permit.await else {
        debug!(%from, "link not accepted");
        return;
    };
    let socket = database.options.layout.socket();
    let opened = async {
        let local = database.runtime.connect_unix(&socket).await?;
        Greeting::accept(&mut stream).await?;
        Ok::<_, std::io::Error>(local)
    };
    let local = tokio::select! {
        opened = opened => match opened {
            Ok(local) => local,
            Err(error) => {
                debug!(%from, %error, "our PostgreSQL is not up");
                return;
            }
        },
        () = cut.cancelled() => return,
    };
    info!(%from, ?purpose, "standby linked");
    relay(stream, local, &cut, run).await;
    // Its entry goes with the next link.
    cut.cancel();
    info!(%from, ?purpose, "standby unlinked");
}
