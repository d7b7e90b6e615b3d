//! What a simulated primary does for as long as it leads: repeats `Follow` to everybody, and looks
//! whether enough of them still confirm its term.

use std::sync::Arc;

use atoll_ownership::Call;
use atoll_runtime::Runtime;
use atoll_streams::agent::MemberRole;
use atoll_topology::{MemberId, Term};
use tokio::sync::watch;
use tokio::time::{Duration, Instant, sleep, timeout};

use super::actor::{Command, Handle};
use super::beats::{Beats, ISOLATION_LIMIT};
use super::calls::Peers;
use super::port::Port;

/// A member that has not followed yet is asked again after this.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(500);
/// How often the confirmations are looked at.
const LOOK: Duration = Duration::from_millis(100);

/// A cascade that was ordered is undone after this.
const CASCADE_LIMIT: Duration = Duration::from_secs(5);

/// Before a planned switch: the members that the quorum can spare follow the coming primary.
#[derive(Clone, Default)]
pub(crate) struct Cascade(watch::Sender<Option<(Term, MemberId, Instant)>>);

impl Cascade {
    /// Begins; only whoever leads this term heeds it.
    pub(crate) fn order(&self, term: Term, through: MemberId) {
        let until = Instant::now() + CASCADE_LIMIT;
        self.0.send_replace(Some((term, through, until)));
    }

    /// Whom `other` has to follow now: the coming primary, or `own`, who leads.
    fn upstream_of(&self, other: &MemberId, own: &MemberId, peers: &Peers, k: usize) -> MemberId {
        let Some((_, coming, until)) = self.0.borrow().clone() else {
            return own.clone();
        };
        let others = || peers.clients().map(|(id, _)| id);
        let spare = others().count().saturating_sub(k);
        let mut rest = others().filter(|id| *id != coming).take(spare);
        if Instant::now() < until && peers.peer(&coming).is_some() && rest.any(|id| id == *other) {
            coming
        } else {
            own.clone()
        }
    }

    fn is_under(&self, term: Term) -> bool {
        let ordered = self.0.borrow();
        ordered.as_ref().is_some_and(|(under, _, _)| *under == term)
    }
}

/// Repeats `Follow` to every other member while we lead.
pub(crate) fn repeat_follow(
    runtime: &Runtime,
    member: &MemberId,
    peers: &Arc<Peers>,
    actor: &Handle,
    (cascade, k): (&Cascade, usize),
) {
    for (other, _) in peers.clients() {
        let (member, peers, mut view) = (member.clone(), peers.clone(), actor.view.clone());
        let (cascade, mut ordered) = (cascade.clone(), cascade.0.subscribe());
        runtime.tasks().spawn("leading", async move {
            loop {
                let (leading, history) = match view.wait_for(|view| view.leading.is_some()).await {
                    Ok(view) => (view.leading, view.history.clone()),
                    Err(_) => return,
                };
                if let Some(term) = leading {
                    ordered.mark_unchanged();
                    let upstream = if cascade.is_under(term) {
                        cascade.upstream_of(&other, &member, &peers, k)
                    } else {
                        member.clone()
                    };
                    let call = Call::Follow {
                        term,
                        upstream,
                        history,
                        settled: true,
                    };
                    // Who does not answer is asked again.
                    drop(peers.call(&other, &call).await);
                }
                drop(timeout(FOLLOW_INTERVAL, ordered.changed()).await);
            }
        });
    }
}

/// Keeps the port's validity, and tells the member when it is isolated and when no longer.
pub(crate) fn watch_isolation(
    runtime: &Runtime,
    actor: &Handle,
    beats: &Arc<Beats>,
    port: &Arc<Port>,
    k: usize,
) {
    let (actor, beats, port) = (actor.clone(), beats.clone(), port.clone());
    runtime.tasks().spawn("isolation", async move {
        let mut opened: Option<(Term, Instant)> = None;
        loop {
            sleep(LOOK).await;
            let (role, led) = {
                let view = actor.view.borrow();
                (view.role, view.led)
            };
            let Some(term) = led else {
                opened = None;
                continue;
            };
            let now = Instant::now();
            if role == MemberRole::Serving && opened.is_none_or(|(of, _)| of != term) {
                opened = Some((term, now));
            }
            let confirmed = match k {
                0 => Some(now),
                k => beats.confirmed(term, k),
            };
            let opened_at = opened.filter(|(of, _)| *of == term).map(|(_, at)| at);
            let Some(latest) = confirmed.max(opened_at) else {
                continue;
            };
            let valid_until = latest + ISOLATION_LIMIT;
            port.valid_until(valid_until);
            let heard = match role {
                MemberRole::Serving if now >= valid_until => false,
                MemberRole::Isolated if now < valid_until => true,
                _ => continue,
            };
            if actor
                .commands
                .send(Command::Confirmed(heard))
                .await
                .is_err()
            {
                return;
            }
            if !heard {
                // The grace of the opening must not make it hear itself.
                opened = Some((term, now - ISOLATION_LIMIT));
            }
        }
    });
}
