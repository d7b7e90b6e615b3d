//! What a primary does for as long as it leads: repeats `Follow` to everybody, and looks whether
//! enough of them still confirm its term.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use atoll_ownership::rejoin::Rejoin;
use atoll_ownership::{Answer, Call};
use atoll_runtime::Runtime;
use atoll_streams::agent::MemberRole;
use atoll_topology::{MemberId, Term};
use tokio::sync::watch;
use tokio::time::{Duration, Instant, sleep, timeout};
use tracing::{debug, warn};

use crate::actor::{Command, Confirmed, Handle};
use crate::beats::{Beats, ISOLATION_LIMIT};
use crate::calls::call_member;
use crate::config::Config;
use crate::gate::Gate;
use crate::peers::Peers;
use crate::rejoin::REBUILD_LIMIT;

/// A member that has not followed yet is asked again after this.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(500);

/// A member that does not keep the term of a call-off is asked again after this.
const KEEP_AGAIN: Duration = Duration::from_millis(100);

/// A member that has not answered for this long is not waited for: the next one's log may be given
/// up meanwhile.
const LOST_LIMIT: Duration = Duration::from_secs(5);

/// A member that has not come up for this long is not waited for where the quorum needs the next
/// one's log. A clone of a large group takes longer, but so long nobody can write. Where somebody can,
/// it is waited for as long as a clone may take; one that was never admitted does not come up at all.
const COMING_UP_LIMIT: Duration = Duration::from_secs(60);

/// How often the confirmations are looked at; answers to clients are checked one by one.
const LOOK: Duration = Duration::from_millis(100);

/// A cascade that was ordered is undone after this: meanwhile the quorum hangs on the rest.
const CASCADE_LIMIT: Duration = Duration::from_secs(5);

/// Before a planned switch: the members that the quorum can spare follow the coming primary, and
/// so are there when it is promoted.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cascade(watch::Sender<Option<Through>>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Through {
    term: Term,
    member: MemberId,
    until: Instant,
}

impl Cascade {
    /// Undone at once: the switch that it was for is called off.
    pub(crate) fn end(&self) {
        self.0.send_replace(None);
    }

    /// Begins, or begins anew; only whoever leads this term heeds it.
    pub(crate) fn order(&self, term: Term, through: MemberId) {
        self.0.send_replace(Some(Through {
            term,
            member: through,
            until: Instant::now() + CASCADE_LIMIT,
        }));
    }
}

/// Whom `other` has to follow now: us, or the coming primary.
fn upstream_of(
    other: &MemberId,
    config: &Config,
    through: Option<&Through>,
    term: Term,
) -> MemberId {
    let own = config.member.clone();
    let Some(through) = through.filter(|through| through.term == term) else {
        return own;
    };
    let coming = &through.member;
    let spare = config
        .members
        .len()
        .saturating_sub(1 + usize::from(config.k));
    let rest = config
        .members
        .keys()
        .filter(|id| **id != own && *id != coming);
    let in_time = Instant::now() < through.until;
    if in_time && config.members.contains_key(coming) && rest.take(spare).any(|id| id == other) {
        coming.clone()
    } else {
        own
    }
}

/// Whose log is given up; the tasks that call the members share it.
#[derive(Clone, Default)]
struct Turns(Arc<Mutex<Rejoin>>);

impl Turns {
    fn lock(&self) -> MutexGuard<'_, Rejoin> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long one member has been heard and up, as whoever calls it sees it.
struct Patience {
    term: Term,
    answered: Instant,
    up: Instant,
}

impl Patience {
    fn begins(term: Term) -> Self {
        let now = Instant::now();
        let (answered, up) = (now, now);
        Self { term, answered, up }
    }

    /// What a call that has ended tells of its member.
    fn tell(&mut self, rejoin: &mut Rejoin, other: &MemberId, answer: Option<&Answer>) {
        if rejoin.term() != self.term {
            return;
        }
        let now = Instant::now();
        match answer {
            Some(answer) => {
                self.answered = now;
                rejoin.heard(other, answer);
            }
            None if now - self.answered >= LOST_LIMIT => rejoin.lost(other),
            None => {}
        }
        if !rejoin.comes_up(other) {
            self.up = now;
        } else if now - self.up >= REBUILD_LIMIT {
            rejoin.lost(other);
        } else if now - self.up >= COMING_UP_LIMIT {
            rejoin.late(other);
        }
    }
}

/// Repeats `Follow` to every other member while we lead.
pub(crate) fn repeat_follow(
    runtime: &Runtime,
    config: &Config,
    peers: &Arc<Peers>,
    actor: &Handle,
    cascade: &Cascade,
) {
    let config = Arc::new(config.clone());
    let turns = Turns::default();
    for other in peers.ids() {
        let (other, config) = (other.clone(), config.clone());
        let (peers, mut view) = (peers.clone(), actor.view.clone());
        let (mut cascade, turns) = (cascade.0.subscribe(), turns.clone());
        let shutdown = runtime.shutdown();
        let work = async move {
            let mut patience = Patience::begins(Term::ZERO);
            loop {
                let leading = match view.wait_for(|view| view.leading.is_some()).await {
                    Ok(view) => (view.leading.zip(view.calling), view.history.clone()),
                    Err(_) => return,
                };
                let (terms, history) = leading;
                if let Some((term, calling)) = terms {
                    if patience.term != term {
                        patience = Patience::begins(term);
                    }
                    let through = cascade.borrow_and_update().clone();
                    let upstream = upstream_of(&other, &config, through.as_ref(), term);
                    // Nobody gives a log up for one that may have less than ours, nor under a term whose
                    // row is not written.
                    let ours = upstream == config.member && calling == term;
                    let settled = {
                        let mut rejoin = turns.lock();
                        rejoin.lead(term, usize::from(config.k), peers.ids());
                        ours && rejoin.settled(&other)
                    };
                    if calling != term {
                        let call = Call::Keep {
                            term: calling,
                            open: term,
                        };
                        let (group, member) = (&config.group, &config.member);
                        let kept = call_member(&peers, group, member, &other, &call).await;
                        if !matches!(kept, Ok(Answer::Kept { .. })) {
                            debug!(%other, ?kept, "keep");
                            sleep(KEEP_AGAIN).await;
                            continue;
                        }
                    }
                    let call = Call::Follow {
                        term: calling,
                        upstream,
                        history,
                        settled,
                    };
                    let (group, member) = (&config.group, &config.member);
                    let answer = call_member(&peers, group, member, &other, &call).await;
                    debug!(%other, settled, ?answer, "follow");
                    let mut rejoin = turns.lock();
                    if calling == term {
                        patience.tell(&mut rejoin, &other, answer.as_ref().ok());
                    }
                    if ours && !settled && rejoin.may_settle(&other) {
                        // It has said how it is, and it is its turn.
                        continue;
                    }
                }
                // An error: no more orders come.
                let called = terms.map(|(_, calling)| calling);
                tokio::select! {
                    _ = timeout(FOLLOW_INTERVAL, cascade.changed()) => {}
                    _ = view.wait_for(|view| view.calling != called) => {}
                }
            }
        };
        runtime.tasks().spawn("leading", async move {
            tokio::select! {
                () = work => {}
                () = shutdown.requested() => {}
            }
        });
    }
}

/// Keeps the gate's validity, and tells the member when it is isolated and when no longer.
pub(crate) fn watch_isolation(
    runtime: &Runtime,
    actor: &Handle,
    beats: &Arc<Beats>,
    gate: &Arc<Gate>,
    k: usize,
) {
    let (actor, beats, gate) = (actor.clone(), beats.clone(), gate.clone());
    let shutdown = runtime.shutdown();
    let work = async move {
        let mut opened: Option<(Term, Instant)> = None;
        loop {
            sleep(LOOK).await;
            let (role, led, calling) = {
                let view = actor.view.borrow();
                (view.role, view.led, view.calling)
            };
            let Some(term) = led else {
                opened = None;
                continue;
            };
            let now = Instant::now();
            if role == MemberRole::Serving && opened.is_none_or(|(of, _)| of != term) {
                // Just opened: its standbys have confirmed the opening transaction.
                opened = Some((term, now));
            }
            let confirmed = if k == 0 {
                Some(now)
            } else {
                beats.confirmed(term, calling.unwrap_or(term), k)
            };
            let opened_at = opened.filter(|(of, _)| *of == term).map(|(_, at)| at);
            let Some(latest) = confirmed.max(opened_at) else {
                continue;
            };
            let valid_until = latest + ISOLATION_LIMIT;
            gate.valid_until(valid_until);
            let told = match role {
                MemberRole::Serving if now >= valid_until => Confirmed::Not,
                MemberRole::Isolated if now < valid_until => Confirmed::Lately,
                _ => continue,
            };
            warn!(%term, ?told, "confirmation of the term");
            if actor.send(Command::Confirmed(told)).await.is_err() {
                return;
            }
            if told == Confirmed::Not {
                // The grace of the opening must not make it hear itself.
                opened = Some((term, now - ISOLATION_LIMIT));
            }
        }
    };
    runtime.tasks().spawn("isolation", async move {
        tokio::select! {
            () = work => {}
            () = shutdown.requested() => {}
        }
    });
}
