//! The group detector: is the member that a data group depends on gone? That is its primary, or
//! while an op is running the op's target: an op is replaced before its deadline only when its
//! target is lost.

use std::collections::BTreeSet;

use atoll_topology::{Epoch, GroupId, MemberId, Survives, Term};

use crate::detector::{Detector, Observer, Watched};
use crate::limits::Limits;
use crate::reports::{GroupView, Home, Reports};
use crate::verdict::{FailoverVerdict, Verdict, Why};

impl Detector {
    pub(crate) fn judge_groups(
        &mut self,
        reports: &Reports,
        limits: &Limits,
        now_ms: u64,
    ) -> Vec<Verdict> {
        self.groups
            .retain(|group, _| reports.groups.contains_key(group));
        let mut verdicts = Vec::new();
        for (id, group) in &reports.groups {
            // A group that was never open is born by an order, not by a verdict.
            let Some((open, primary)) = &group.open else {
                continue;
            };
            let (member, over) = match &group.op {
                Some(op) => (&op.target, Some(op.term)),
                None => (primary, None),
            };
            self.watch(id, member, over.unwrap_or(*open), reports);
            let overdue = group.op.as_ref().is_some_and(|op| now_ms >= op.deadline_ms);
            let why = if overdue {
                Some(Why::Overdue)
            } else {
                self.lost(id, group, member, reports, limits, now_ms)
            };
            if let Some(why) = why {
                let newest = |a: Epoch, run: &crate::RunView| a.newest(run.epoch);
                verdicts.push(Verdict::Failover(FailoverVerdict {
                    group: id.clone(),
                    term: *open,
                    epoch: group.runs.iter().fold(Epoch::ZERO, newest),
                    over,
                    lost: member.clone(),
                    why,
                }));
            }
        }
        verdicts
    }

    /// Remembers since when the group has depended on this member under this term.
    fn watch(&mut self, id: &GroupId, member: &MemberId, term: Term, reports: &Reports) {
        let known = self.groups.get(id);
        if known.is_some_and(|watched| watched.member == *member && watched.term == term) {
            return;
        }
        // A judge that starts anew knows nothing about the order of things: any exit counts.
        let exit = reports.members.get(member).and_then(|report| report.exit);
        let old_exit_ms = known.and(exit).map(|exit| exit.at_ms);
        let watched = Watched {
            member: member.clone(),
            term,
            old_exit_ms,
            not_leading_since_ms: None,
        };
        self.groups.insert(id.clone(), watched);
    }

    fn lost(
        &mut self,
        id: &GroupId,
        group: &GroupView,
        member: &MemberId,
        reports: &Reports,
        limits: &Limits,
        now_ms: u64,
    ) -> Option<Why> {
        let fresh = self.is_fresh(&Observer::Member(member.clone()));
        let watched = self.groups.get_mut(id)?;
        let own = reports.members.get(member).filter(|_| fresh);
        let serves = own.is_some_and(|own| own.open == watched.term);
        if let Some(exit) = own.and_then(|own| own.exit)
            && !exit.ordered
            && !serves
            && watched.old_exit_ms != Some(exit.at_ms)
        {
            return Some(Why::Exited);
        }
        // Only of a primary that nobody is replacing: a target does not lead before it is opened.
        let idle = group.op.is_none() && own.is_some_and(|own| own.led != watched.term);
        let since_ms = idle.then(|| watched.not_leading_since_ms.unwrap_or(now_ms));
        watched.not_leading_since_ms = since_ms;
        if since_ms.is_some_and(|since| now_ms.saturating_sub(since) >= limits.heartbeat_silent_ms)
        {
            return Some(Why::Restarted);
        }
        self.silent(group, member, reports, limits, now_ms)
    }

    /// Two members in two other failure domains have missed its heartbeat.
    fn silent(
        &mut self,
        group: &GroupView,
        member: &MemberId,
        reports: &Reports,
        limits: &Limits,
        now_ms: u64,
    ) -> Option<Why> {
        let domain = |home: &Home| match group.survives {
            Survives::Zone => home.zone.to_string(),
            Survives::Region => home.region.to_string(),
        };
        let own = domain(group.members.get(member)?);
        let mut observers = Vec::new();
        let mut domains = BTreeSet::new();
        for (observer, home) in &group.members {
            if observer == member || domain(home) == own {
                continue;
            }
            if !self.has_say(&Observer::Member(observer.clone()), limits, now_ms) {
                continue;
            }
            let others: Vec<_> = group
                .members
                .keys()
                .filter(|other| *other != observer)
                .collect();
            let silent: Vec<_> = others
                .iter()
                .filter(|other| self.is_silent(observer, other, reports, limits, now_ms))
                .collect();
            // Who misses most of the others suspects itself.
            if silent.len() * 2 > others.len() || !silent.iter().any(|other| **other == member) {
                continue;
            }
            observers.push(observer.clone());
            domains.insert(domain(home));
        }
        (domains.len() >= 2).then_some(Why::Silent { observers })
    }

    fn is_silent(
        &mut self,
        observer: &MemberId,
        other: &MemberId,
        reports: &Reports,
        limits: &Limits,
        now_ms: u64,
    ) -> bool {
        let key = (observer.clone(), other.clone());
        let heard = reports
            .members
            .get(observer)
            .and_then(|own| own.heard_ms_ago.get(other));
        let ago_ms = match heard {
            Some(ago_ms) => {
                self.unheard.remove(&key);
                *ago_ms
            }
            // Never heard since the observer started: it is silent since that was first seen.
            None => now_ms.saturating_sub(*self.unheard.entry(key).or_insert(now_ms)),
        };
        ago_ms >= limits.heartbeat_silent_ms
    }
}
