//! Replication between simulated members: the log of an upstream, entry by entry, over the
//! simulated network. A link carries nothing unless both ends have promised the same term.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use atoll_agent::simulation::Command;
use atoll_agent::{Config, Peer};
use atoll_runtime::{Listener, Runtime, ScopedTask, Stream};
use atoll_topology::{MemberId, Term};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Duration, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::database::Database;
use super::disk::Logged;

/// An upstream that does not accept us yet is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(25);
/// Connecting and greeting over the longest link.
const GREET_LIMIT: Duration = Duration::from_secs(2);
/// The upstream says so often that it is there.
const PING: Duration = Duration::from_millis(500);
/// An end that has heard nothing for so long gives the link up.
const SILENCE_LIMIT: Duration = Duration::from_secs(2);
/// Entries of one message.
const BATCH_MAX: usize = 256;
/// Largest message.
const MESSAGE_BYTES_MAX: u32 = 4 << 20;

/// The first message of a standby.
#[derive(Debug, Serialize, Deserialize)]
struct Greeting {
    from: MemberId,
    term: u64,
    /// Where its log ends; none for a copy, which gets all.
    end: Option<(usize, u32)>,
}

#[derive(Debug, Serialize, Deserialize)]
enum FromUpstream {
    Refused,
    Entries { from: usize, entries: Vec<Logged> },
}

#[derive(Debug, Serialize, Deserialize)]
struct Flushed(usize);

/// A standby asks for a link; the actor answers between two steps of the member.
pub(crate) struct LinkAsked {
    pub(crate) from: MemberId,
    pub(crate) term: Term,
    pub(crate) answer: oneshot::Sender<Option<CancellationToken>>,
}

/// All links of standbys to us.
pub(crate) struct Up {
    database: Arc<Database>,
    links: Mutex<BTreeMap<MemberId, CancellationToken>>,
}

impl Up {
    pub(crate) fn new(database: Arc<Database>) -> Arc<Self> {
        let links = Mutex::default();
        Arc::new(Self { database, links })
    }

    /// Registers a link before its standby is told; a newer one takes the older one's place.
    pub(crate) fn permit(&self, from: &MemberId) -> CancellationToken {
        let cut = CancellationToken::new();
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = links.insert(from.clone(), cut.clone()) {
            old.cancel();
            self.database.unlinked(from);
        }
        cut
    }

    /// Cuts all links but that of `except`.
    pub(crate) fn cut(&self, except: Option<&MemberId>) {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.retain(|member, link| {
            let stays = Some(member) == except;
            if !stays {
                link.cancel();
                self.database.unlinked(member);
            }
            stays
        });
    }

    /// Serves standbys for ever.
    pub(crate) fn listen(
        self: &Arc<Self>,
        runtime: &Runtime,
        listener: Listener,
        asked: mpsc::Sender<LinkAsked>,
    ) {
        let (up, at) = (self.clone(), runtime.clone());
        runtime.tasks().spawn("link-up", async move {
            loop {
                if let Ok((stream, _)) = listener.accept().await {
                    let (up, asked) = (up.clone(), asked.clone());
                    at.tasks().spawn("link-standby", async move {
                        // Whatever is wrong with it, it is closed; the standby asks again.
                        drop(up.serve(stream, asked).await);
                    });
                }
            }
        });
    }

    async fn serve(&self, stream: Stream, asked: mpsc::Sender<LinkAsked>) -> io::Result<()> {
        let (mut input, mut output) = tokio::io::split(stream);
        let greeting: Greeting = timeout(GREET_LIMIT, read(&mut input)).await??;
        let (answer, permit) = oneshot::channel();
        let (from, term) = (greeting.from.clone(), Term::new(greeting.term));
        let question = LinkAsked {
            from: from.clone(),
            term,
            answer,
        };
        asked.send(question).await.map_err(io::Error::other)?;
        let permit = permit.await.map_err(io::Error::other)?;
        let fits = greeting.end.is_none_or(|end| self.continues(end));
        let (Some(cut), true) = (permit, fits) else {
            return write(&mut output, &FromUpstream::Refused).await;
        };
        let begin = greeting.end.map_or(0, |(length, _)| length);
        let feed = self.feed(&mut output, begin);
        let hear = async {
            loop {
                let Flushed(flushed) = timeout(SILENCE_LIMIT, read(&mut input)).await??;
                if greeting.end.is_some() {
                    self.database.acknowledged(&from, flushed);
                }
            }
        };
        let ended = tokio::select! {
            // First: what comes after a cut counts for nothing.
            biased;
            () = cut.cancelled() => Ok(()),
            fed = feed => fed,
            heard = hear => heard,
        };
        if !cut.is_cancelled() {
            cut.cancel();
            self.database.unlinked(&from);
        }
        ended
    }

    /// Whether a log that ends like this is the beginning of ours, as far as timelines tell.
    fn continues(&self, (length, timeline): (usize, u32)) -> bool {
        let volume = self.database.disk.lock();
        match length.checked_sub(1) {
            None => true,
            Some(last) => volume
                .log
                .get(last)
                .is_some_and(|logged| logged.timeline == timeline),
        }
    }

    async fn feed(&self, output: &mut (impl AsyncWrite + Unpin), begin: usize) -> io::Result<()> {
        let mut changes = self.database.changes();
        let mut from = begin;
        loop {
            changes.borrow_and_update();
            let entries: Vec<Logged> = {
                let volume = self.database.disk.lock();
                let rest = volume.log.get(from..).unwrap_or_default();
                rest.iter().take(BATCH_MAX).cloned().collect()
            };
            let sent = entries.len();
            write(output, &FromUpstream::Entries { from, entries }).await?;
            from += sent;
            if sent == 0 {
                // A ping is an empty batch.
                drop(timeout(PING, changes.changed()).await);
            }
        }
    }
}

/// A link that is wanted, whether it stands or not.
struct Linked {
    upstream: MemberId,
    /// What the next greeting carries.
    promised: Arc<Mutex<Term>>,
    _task: ScopedTask<()>,
}

/// Our link to an upstream.
pub(crate) struct Down {
    runtime: Runtime,
    member: MemberId,
    /// All members, and where each gives its log.
    members: BTreeMap<MemberId, Peer>,
    database: Arc<Database>,
    link: Mutex<Option<Linked>>,
}

impl Down {
    pub(crate) fn new(runtime: &Runtime, config: &Config, database: Arc<Database>) -> Arc<Self> {
        Arc::new(Self {
            runtime: runtime.clone(),
            member: config.member.clone(),
            members: config.members.clone(),
            database,
            link: Mutex::default(),
        })
    }

    /// Takes this upstream's log under this promise; a link that is up stays.
    pub(crate) fn link(self: &Arc<Self>, upstream: &MemberId, term: Term) {
        let mut link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(linked) = link.as_ref().filter(|linked| linked.upstream == *upstream) {
            let promised = linked.promised.lock();
            *promised.unwrap_or_else(PoisonError::into_inner) = term;
            return;
        }
        let promised = Arc::new(Mutex::new(term));
        let (down, from, under) = (self.clone(), upstream.clone(), promised.clone());
        let task = async move {
            loop {
                let term = *under.lock().unwrap_or_else(PoisonError::into_inner);
                drop(down.stream(&from, term).await);
                sleep(ASK_AGAIN).await;
            }
        };
        let task = self.runtime.tasks().spawn("link-down", task).scoped();
        *link = Some(Linked {
            upstream: upstream.clone(),
            promised,
            _task: task,
        });
    }

    /// Cuts: nothing is received from here on.
    pub(crate) fn seal(&self) {
        let link = self.link.lock();
        drop(link.unwrap_or_else(PoisonError::into_inner).take());
    }

    async fn greet(
        &self,
        upstream: &MemberId,
        term: Term,
        end: Option<(usize, u32)>,
    ) -> io::Result<Stream> {
        let unknown = || io::Error::other("no such member");
        let peer = self.members.get(upstream).ok_or_else(unknown)?;
        let greeting = Greeting {
            from: self.member.clone(),
            term: term.get(),
            end,
        };
        let greet = async {
            let mut stream = self.runtime.connect(peer.replication).await?;
            write(&mut stream, &greeting).await?;
            Ok(stream)
        };
        timeout(GREET_LIMIT, greet).await?
    }

    async fn stream(&self, upstream: &MemberId, term: Term) -> io::Result<()> {
        let end = {
            let volume = self.database.disk.lock();
            (volume.log.len(), volume.timeline())
        };
        let mut stream = self.greet(upstream, term, Some(end)).await?;
        loop {
            let message = timeout(SILENCE_LIMIT, read(&mut stream)).await??;
            let FromUpstream::Entries { from, entries } = message else {
                return Ok(());
            };
            if !self.database.receive(from, entries) {
                return Ok(());
            }
            let flushed = self.database.disk.lock().log.len();
            write(&mut stream, &Flushed(flushed)).await?;
        }
    }

    /// Takes the whole log of the leader; `Command::Rebuilt` tells the end.
    pub(crate) fn rebuild(
        self: &Arc<Self>,
        upstream: &MemberId,
        term: Term,
        rebuild: u64,
        commands: mpsc::Sender<Command>,
    ) {
        let (down, upstream) = (self.clone(), upstream.clone());
        self.runtime.tasks().spawn("rebuild", async move {
            let copied = down.copy(&upstream, term).await;
            let result = copied.map_err(|error| error.to_string()).map(|log| {
                down.database.disk.lock().replace(log);
            });
            drop(commands.send(Command::Rebuilt { rebuild, result }).await);
        });
    }

    async fn copy(&self, upstream: &MemberId, term: Term) -> io::Result<Vec<Logged>> {
        let mut stream = self.greet(upstream, term, None).await?;
        let mut log = Vec::new();
        loop {
            let message = timeout(SILENCE_LIMIT, read(&mut stream)).await??;
            let FromUpstream::Entries { from, entries } = message else {
                return Err(io::Error::other("the leader does not accept us"));
            };
            if entries.is_empty() && from == log.len() {
                return Ok(log);
            }
            log.extend(entries);
        }
    }
}

async fn write<T: Serialize>(
    output: &mut (impl AsyncWrite + Unpin),
    message: &T,
) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend_from_slice(&body);
    output.write_all(&bytes).await
}

async fn read<T: DeserializeOwned>(input: &mut (impl AsyncRead + Unpin)) -> io::Result<T> {
    let length = input.read_u32().await?;
    if length > MESSAGE_BYTES_MAX {
        return Err(io::Error::other("a message that is none"));
    }
    let mut body = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    input.read_exact(&mut body).await?;
    Ok(serde_json::from_slice(&body)?)
}
