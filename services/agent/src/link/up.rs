//! The end at an upstream: accepts standbys that the member's state machine accepts, and relays
//! them to our PostgreSQL. One link a standby; a newer one takes the older one's place.
//!
//! A link outlives a raised promise where both ends go on with each other. So whoever is promoted
//! first holds the links of those that are not known to have promised the same: a member carries
//! the log of a term only under that term's promise.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use atoll_runtime::{Listener, Runtime, Stream};
use atoll_topology::{GroupId, MemberId, Term};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Duration, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::greeting::{Greeting, Use};
use super::relay::{Consent, Run, Running, relay};
use super::turn::relay_up;
use crate::database::Database;
use crate::peers::Peers;

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
    /// What a standby must have promised before anything passes.
    needed: watch::Receiver<Term>,
}

/// All links of standbys to us.
pub(crate) struct Up {
    links: Mutex<BTreeMap<(MemberId, u64), CancellationToken>>,
    running: Running,
    needed: watch::Sender<Term>,
}

impl Up {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            links: Mutex::default(),
            running: Running::new(),
            needed: watch::Sender::new(Term::ZERO),
        })
    }

    /// Before a promotion: nothing passes to or from those who are not known to have promised
    /// this, until they are.
    pub(crate) fn hold_below(&self, term: Term) {
        self.needed.send_replace(term);
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
            needed: self.needed.subscribe(),
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
    peers: Arc<Peers>,
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
                    let (database, peers, asked) = (database.clone(), peers.clone(), asked.clone());
                    spawner.tasks().spawn("link-standby", async move {
                        serve(stream, &group, &member, &database, &peers, &asked).await;
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
    peers: &Peers,
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
    let (from, purpose, greeted) = (greeting.from.clone(), greeting.r#use, greeting.term);
    if asked.send(LinkAsked { greeting, answer }).await.is_err() {
        return;
    }
    let Ok(Some(Permit { cut, run, needed })) = permit.await else {
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
    let consent = Consent {
        standby: from.clone(),
        greeted,
        promised: peers.promised(),
        needed,
    };
    match purpose {
        Use::Stream => relay_up(stream, local, &cut, run, &consent).await,
        Use::Copy => relay(stream, local, &cut, run, Some(&consent)).await,
    }
    // Its entry goes with the next link.
    cut.cancel();
    info!(%from, ?purpose, "standby unlinked");
}
