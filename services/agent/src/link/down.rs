//! The end at a standby: a socket in the file system to which our PostgreSQL's receiver connects,
//! and behind it the upstream's agent, or nobody.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use atoll_runtime::{Runtime, Stream};
use atoll_topology::{GroupId, MemberId, Term};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::time::{Duration, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::greeting::{Greeting, Use};
use super::relay::{Running, relay};
use super::turn::relay_down;
use crate::error::Error;
use crate::peers::Peers;

/// An upstream that does not accept us yet is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(25);

/// Connecting and greeting over the longest link that we support.
const GREET_LIMIT: Duration = Duration::from_secs(2);

/// What connects to the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// PostgreSQL's receiver.
    Receiver,
    /// pg_rewind or pg_basebackup.
    Copy,
}

/// Whose log is taken, until it is cut.
#[derive(Debug, Clone)]
struct Target {
    upstream: MemberId,
    cut: CancellationToken,
}

/// One local socket and what is behind it.
pub(crate) struct Down {
    runtime: Runtime,
    peers: Arc<Peers>,
    group: GroupId,
    member: MemberId,
    purpose: Purpose,
    target: watch::Sender<Option<Target>>,
    /// The promise that the next greeting carries.
    term: Mutex<Term>,
    relays: Running,
    /// Local connections that wait for a target: the receiver found no more log of its own.
    held: Running,
}

impl Down {
    /// Listens on `path`, sealed.
    pub(crate) fn listen(
        runtime: &Runtime,
        peers: Arc<Peers>,
        group: GroupId,
        member: MemberId,
        path: PathBuf,
        purpose: Purpose,
    ) -> Result<Arc<Self>, Error> {
        let down = Arc::new(Self {
            runtime: runtime.clone(),
            peers,
            group,
            member,
            purpose,
            target: watch::Sender::new(None),
            term: Mutex::new(Term::ZERO),
            relays: Running::new(),
            held: Running::new(),
        });
        let failed = |source| Error::ListenUnix {
            at: path.clone(),
            source,
        };
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(failed(error));
            }
            _ => {}
        }
        let listener = UnixListener::bind(&path).map_err(failed)?;
        // The folder lets in nobody but PostgreSQL's account.
        atoll_postgres::mode(&path, 0o666)?;
        let (serving, shutdown) = (down.clone(), runtime.shutdown());
        runtime.tasks().spawn("link-down", async move {
            tokio::select! {
                () = serving.accept(listener) => {}
                () = shutdown.requested() => {}
            }
        });
        Ok(down)
    }

    /// Takes this upstream's log under this promise; a link that is up stays.
    pub(crate) fn link(&self, upstream: &MemberId, term: Term) {
        *self.term.lock().unwrap_or_else(PoisonError::into_inner) = term;
        self.target.send_if_modified(|target| {
            if target.as_ref().is_some_and(|now| now.upstream == *upstream) {
                return false;
            }
            if let Some(old) = target.take() {
                old.cut.cancel();
            }
            let cut = CancellationToken::new();
            *target = Some(Target {
                upstream: upstream.clone(),
                cut,
            });
            true
        });
    }

    /// Whose log is taken.
    pub(crate) fn upstream(&self) -> Option<MemberId> {
        self.target
            .borrow()
            .as_ref()
            .map(|target| target.upstream.clone())
    }

    /// Cuts and holds: returns when no byte can pass any more.
    pub(crate) async fn seal(&self) {
        self.target.send_modify(|target| {
            if let Some(old) = target.take() {
                old.cut.cancel();
            }
        });
        self.relays.until(|count| *count == 0).await;
    }

    /// Waits until a receiver is held: it connects only when its PostgreSQL has replayed all that
    /// it has.
    pub(crate) async fn receiver_held(&self) {
        self.held.until(|count| *count > 0).await;
    }

    async fn accept(self: Arc<Self>, listener: UnixListener) {
        loop {
            match listener.accept().await {
                Ok((local, _)) => {
                    let down = self.clone();
                    let name = format!("link-{:?}", self.purpose);
                    self.runtime
                        .tasks()
                        .spawn(name, async move { down.carry(local).await });
                }
                Err(error) => {
                    warn!(%error, "a receiver's connection was not accepted");
                    sleep(ASK_AGAIN).await;
                }
            }
        }
    }

    /// One local connection: waits for a target, then for the target's consent, then relays.
    async fn carry(self: Arc<Self>, local: UnixStream) {
        let mut targets = self.target.subscribe();
        let shutdown = self.runtime.shutdown();
        let held = self.held.begin();
        let (target, remote, run) = loop {
            // A tool whose rebuild was given up must end, and not wait for the next one's source.
            if self.purpose == Purpose::Copy && targets.borrow().is_none() {
                return;
            }
            let target = tokio::select! {
                target = targets.wait_for(Option::is_some) => {
                    match target.ok().and_then(|target| target.clone()) {
                        Some(target) => target,
                        None => return,
                    }
                }
                () = gone(&local) => return,
                () = shutdown.requested() => return,
            };
            // Counted before the greeting, so that a seal waits for it too.
            let run = self.relays.begin();
            tokio::select! {
                remote = self.greet(&target) => match remote {
                    Some(remote) => break (target, remote, run),
                    None => {
                        drop(run);
                        tokio::select! {
                            () = sleep(ASK_AGAIN) => {}
                            () = gone(&local) => return,
                        }
                    }
                },
                () = target.cut.cancelled() => {}
                () = gone(&local) => return,
            }
        };
        drop(held);
        info!(upstream = %target.upstream, purpose = ?self.purpose, "link up");
        match self.purpose {
            Purpose::Receiver => relay_down(local, remote, &target.cut, run).await,
            Purpose::Copy => relay(local, remote, &target.cut, run, None).await,
        }
        info!(upstream = %target.upstream, purpose = ?self.purpose, "link down");
    }

    async fn greet(&self, target: &Target) -> Option<Stream> {
        let peer = self.peers.peer(&target.upstream)?;
        let term = *self.term.lock().unwrap_or_else(PoisonError::into_inner);
        let greeting = Greeting {
            group: self.group.clone(),
            from: self.member.clone(),
            to: target.upstream.clone(),
            term,
            r#use: match self.purpose {
                Purpose::Receiver => Use::Stream,
                Purpose::Copy => Use::Copy,
            },
        };
        let greeted = timeout(GREET_LIMIT, async {
            let mut stream = self.runtime.connect(peer.replication).await?;
            let accepted = greeting.say(&mut stream).await?;
            Ok::<_, std::io::Error>(accepted.then_some(stream))
        });
        match greeted.await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                debug!(upstream = %target.upstream, %error, "the upstream cannot be reached");
                None
            }
            Err(_) => None,
        }
    }
}

/// Returns when the local end has closed. It must not send anything that it expects to be
/// answered before it is linked; its start-up packet waits in the socket.
async fn gone(local: &UnixStream) {
    loop {
        let ready = local.ready(tokio::io::Interest::READABLE).await;
        match ready {
            Ok(ready) if !ready.is_read_closed() => {
                // Data waits; a close can only be seen by looking again.
                sleep(ASK_AGAIN).await;
            }
            _ => return,
        }
    }
}
