//! What a primary does for as long as it leads: repeats `Follow` to everybody, and looks whether
//! enough of them still confirm its term.

use std::sync::Arc;

use atoll_ownership::Call;
use atoll_runtime::Runtime;
use atoll_streams::agent::MemberRole;
use atoll_topology::{GroupId, MemberId, Term};
use tokio::time::{Duration, Instant, sleep};
use tracing::{debug, warn};

use crate::actor::{Command, Confirmed, Handle};
use crate::beats::{Beats, ISOLATION_LIMIT};
use crate::calls::call_member;
use crate::peers::Peers;
use crate::port::Port;

/// A member that has not followed yet is asked again after this.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(500);

/// How often the confirmations are looked at; answers to clients are checked one by one.
const LOOK: Duration = Duration::from_millis(100);

/// Repeats `Follow(term, us)` to every other member while we lead.
pub(crate) fn repeat_follow(
    runtime: &Runtime,
    group: &GroupId,
    member: &MemberId,
    peers: &Arc<Peers>,
    actor: &Handle,
) {
    for other in peers.ids() {
        let other = other.clone();
        let (group, member) = (group.clone(), member.clone());
        let (peers, mut view) = (peers.clone(), actor.view.clone());
        let shutdown = runtime.shutdown();
        let work = async move {
            loop {
                let leading = match view.wait_for(|view| view.leading.is_some()).await {
                    Ok(leading) => (leading.leading, leading.history.clone()),
                    Err(_) => return,
                };
                let (term, history) = leading;
                if let Some(term) = term {
                    let upstream = member.clone();
                    let call = Call::Follow {
                        term,
                        upstream,
                        history,
                        settled: true,
                    };
                    let answer = call_member(&peers, &group, &member, &other, &call).await;
                    debug!(%other, ?answer, "follow");
                }
                sleep(FOLLOW_INTERVAL).await;
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

/// Keeps the port's validity, and tells the member when it is isolated and when no longer.
pub(crate) fn watch_isolation(
    runtime: &Runtime,
    actor: &Handle,
    beats: &Arc<Beats>,
    port: &Arc<Port>,
    k: usize,
) {
    let (actor, beats, port) = (actor.clone(), beats.clone(), port.clone());
    let shutdown = runtime.shutdown();
    let work = async move {
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
                // Just opened: its standbys have confirmed the opening transaction.
                opened = Some((term, now));
            }
            let confirmed = if k == 0 {
                Some(now)
            } else {
                beats.confirmed(term, k)
            };
            let opened_at = opened.filter(|(of, _)| *of == term).map(|(_, at)| at);
            let Some(latest) = confirmed.max(opened_at) else {
                continue;
            };
            let valid_until = latest + ISOLATION_LIMIT;
            port.valid_until(valid_until);
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
