//! Heartbeats between the simulated members: a beat that echoes our number n proves that its
//! sender was there after we sent n.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use atoll_runtime::Runtime;
use atoll_streams::agent::{Beat, Heard};
use atoll_streams::proto::agent as wire;
use atoll_topology::{GroupId, MemberId, Term};
use tokio::sync::{mpsc, watch};
use tokio::time::{Duration, Instant, MissedTickBehavior, interval, sleep};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::calls::Peers;
use super::database::Database;
use super::view::View;

/// Every member beats this often.
pub(crate) const BEAT_INTERVAL: Duration = Duration::from_millis(200);
/// A primary that has not heard k standbys under its own term for so long serves nobody.
pub(crate) const ISOLATION_LIMIT: Duration = Duration::from_secs(2);
/// Numbers that we remember having sent.
const NUMBERS_KEPT: usize = 20;
/// Beats that wait for a slow connection; more are skipped.
const BEATS_WAITING_MAX: usize = 4;
/// Before a broken stream of beats is opened again.
const AGAIN: Duration = Duration::from_millis(100);

#[derive(Clone, Copy)]
struct Contact {
    proved: Instant,
    arrived: Instant,
    promise: Term,
}

/// What the beats said.
pub(crate) struct Beats {
    pub(crate) group: GroupId,
    pub(crate) member: MemberId,
    pub(crate) view: watch::Receiver<View>,
    pub(crate) database: Arc<Database>,
    contacts: Mutex<BTreeMap<MemberId, Contact>>,
}

impl Beats {
    pub(crate) fn new(
        group: GroupId,
        member: MemberId,
        view: watch::Receiver<View>,
        database: Arc<Database>,
    ) -> Arc<Self> {
        Arc::new(Self {
            group,
            member,
            view,
            database,
            contacts: Mutex::default(),
        })
    }

    /// Dials every other member and beats.
    pub(crate) fn dial(self: &Arc<Self>, runtime: &Runtime, peers: &Peers) {
        for (member, mut client) in peers.clients() {
            let (beats, at) = (self.clone(), runtime.clone());
            runtime
                .tasks()
                .spawn(format!("beats-{member}"), async move {
                    loop {
                        let (sender, beating) = mpsc::channel(BEATS_WAITING_MAX);
                        let line = Line::new(sender);
                        let ticking = beats.clone().beat(line.clone());
                        let ticking = at.tasks().spawn("beats-out", ticking).scoped();
                        if let Ok(answers) = client.beats(ReceiverStream::new(beating)).await {
                            beats.hear(answers.into_inner(), &line).await;
                        }
                        drop(ticking);
                        sleep(AGAIN).await;
                    }
                });
        }
    }

    /// The answering end of a stream that another member opened.
    pub(crate) fn answer(
        self: &Arc<Self>,
        runtime: &Runtime,
        incoming: Streaming<wire::Beat>,
    ) -> ReceiverStream<Result<wire::Beat, Status>> {
        let (sender, mut beating) = mpsc::channel(BEATS_WAITING_MAX);
        let (out, answers) = mpsc::channel(BEATS_WAITING_MAX);
        let beats = self.clone();
        let line = Line::new(sender);
        runtime.tasks().spawn("beats-in", async move {
            let pass = async {
                while let Some(beat) = beating.recv().await {
                    if out.send(Ok(beat)).await.is_err() {
                        return;
                    }
                }
            };
            tokio::select! {
                () = beats.hear(incoming, &line) => {}
                () = beats.clone().beat(line.clone()) => {}
                () = pass => {}
            }
        });
        ReceiverStream::new(answers)
    }

    async fn beat(self: Arc<Self>, line: Line) {
        let mut ticks = interval(BEAT_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut view = self.view.clone();
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                changed = view.changed() => if changed.is_err() { return },
            }
            let beat = {
                let view = view.borrow_and_update();
                let (number, heard) = line.next();
                Beat {
                    group: self.group.clone(),
                    member: self.member.clone(),
                    promise: view.promise,
                    role: view.role,
                    position: self.database.end(),
                    number,
                    heard,
                }
            };
            match line.sender.try_send(wire::Beat::from(&beat)) {
                Ok(()) | Err(mpsc::error::TrySendError::Full(_)) => {}
                Err(mpsc::error::TrySendError::Closed(_)) => return,
            }
        }
    }

    async fn hear(&self, mut incoming: Streaming<wire::Beat>, line: &Line) {
        while let Ok(Some(message)) = incoming.message().await {
            if let Ok(beat) = Beat::try_from(message) {
                self.note(&beat, line);
            }
        }
    }

    fn note(&self, beat: &Beat, line: &Line) {
        let proved = line.heard(beat);
        let arrived = Instant::now();
        let mut contacts = self.contacts.lock().unwrap_or_else(PoisonError::into_inner);
        let contact = contacts.entry(beat.member.clone()).or_insert(Contact {
            proved: proved.unwrap_or(arrived - ISOLATION_LIMIT),
            arrived,
            promise: beat.promise,
        });
        contact.arrived = arrived;
        if let Some(proved) = proved {
            contact.proved = contact.proved.max(proved);
            contact.promise = beat.promise;
        }
    }

    /// When the others were last heard.
    pub(crate) fn heard(&self) -> Vec<Heard> {
        let now = Instant::now();
        let contacts = self.contacts.lock().unwrap_or_else(PoisonError::into_inner);
        contacts
            .iter()
            .map(|(member, contact)| Heard {
                member: member.clone(),
                ago_ms: u64::try_from((now - contact.arrived).as_millis()).unwrap_or(u64::MAX),
                promise: contact.promise,
            })
            .collect()
    }

    /// The last moment at which `k` others are known to have been there under `term`.
    pub(crate) fn confirmed(&self, term: Term, k: usize) -> Option<Instant> {
        let contacts = self.contacts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut proved: Vec<Instant> = contacts
            .values()
            .filter(|contact| contact.promise == term)
            .map(|contact| contact.proved)
            .collect();
        proved.sort_unstable();
        let at = proved.len().checked_sub(k)?;
        proved.get(at).copied()
    }
}

/// One stream's numbers: what we sent when, and the last number of the other end.
#[derive(Clone)]
struct Line {
    sender: mpsc::Sender<wire::Beat>,
    numbers: Arc<Mutex<Numbers>>,
}

#[derive(Default)]
struct Numbers {
    last: u64,
    sent: VecDeque<(u64, Instant)>,
    heard: u64,
}

impl Line {
    fn new(sender: mpsc::Sender<wire::Beat>) -> Self {
        Self {
            sender,
            numbers: Arc::default(),
        }
    }

    fn next(&self) -> (u64, u64) {
        let mut numbers = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        numbers.last += 1;
        let last = numbers.last;
        numbers.sent.push_back((last, Instant::now()));
        if numbers.sent.len() > NUMBERS_KEPT {
            numbers.sent.pop_front();
        }
        (last, numbers.heard)
    }

    fn heard(&self, beat: &Beat) -> Option<Instant> {
        let mut numbers = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        numbers.heard = numbers.heard.max(beat.number);
        let mut sent = numbers.sent.iter();
        sent.find(|(number, _)| *number == beat.heard)
            .map(|(_, at)| *at)
    }
}
