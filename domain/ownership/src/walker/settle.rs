//! A world in which nothing goes wrong any more: everything that is under way is done, in a fixed
//! order. So a group is born before a walk begins (`begun`); and a walk that has gone through
//! anything at all must be able to open again (OPENS_AGAIN). Whoever leads then leaves F logs that can
//! be read, where there were as many, and in the end everybody follows it.
//!
//! That it opens is shown under a schedule that is fair and not kind: everybody who has not heard
//! what he needs asks again before the logs move on. A member that is cut off, or rewound, each
//! time it is asked never gets anywhere so.

use atoll_topology::{Quorum, Term};

use super::checks::Violation;
use super::choice::{ALL, Choice};
use super::control::{Scope, shards};
use super::log::Cell;
use super::node::{At, Commit, Node, Postgres, Waiting};
use super::world::World;
use crate::member::Mark;
use crate::messages::{Admitted, OpKind};

/// Liveness, in a world that has become quiet: with as many readable members as the design asks
/// for, every group opens and takes a write within so many ops and rounds, a leader leaves F logs that
/// can be read, and whoever was not lost comes back.
pub(super) const OPENS_AGAIN: &str = "OPENS_AGAIN";

/// Rounds after which a quiet world must have come to rest.
pub(super) const ROUNDS_MAX: usize = 200;

/// Rounds that control gives an op before it orders the next one.
const OP_ROUNDS: usize = 60;

/// At the slow pace, PostgreSQL comes up only in one of so many rounds: whoever asks has asked
/// meanwhile.
const START_ROUNDS: usize = 3;

/// Ops within which a group must open: one that is under way, one whose target finds another
/// member ahead of it, and that one; and as many again.
const OPS_MAX: usize = 6;

/// Whether a PostgreSQL that starts has come up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Starts {
    End,
    GoOn,
}

/// How fast PostgreSQL comes up. What is rewound for ever is rewound for ever at a quick pace, and
/// who does not wait for a member does not wait for it at a slow one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    Quick,
    Slow,
}

impl Pace {
    fn starts(self, round: usize) -> Starts {
        if self == Self::Quick || round % START_ROUNDS == START_ROUNDS - 1 {
            Starts::End
        } else {
            Starts::GoOn
        }
    }
}

impl World {
    /// What is under way, member by member; whether anything happened.
    fn machines(&mut self, path: &mut Vec<Choice>, starts: Starts) -> Result<bool, Violation> {
        let mut moved = false;
        while let Some(message) = self.messages.first() {
            let key = message.key();
            moved |= self.chosen(Choice::Deliver(key, ALL), path)?;
        }
        for at in self.members() {
            moved |= self.chosen(Choice::Start(at), path)?;
            while self.chosen(Choice::Work(at, ALL), path)? {
                moved = true;
            }
            let choices = [
                Choice::Link(at),
                Choice::Stream(at, ALL),
                Choice::Replayed(at),
                Choice::Rebuilt(at),
                // Its source would not have it.
                Choice::RebuildFails(at),
                Choice::Promoted(at),
                Choice::Execute(at, 0),
                Choice::Hear(at),
            ];
            for choice in choices {
                moved |= self.chosen(choice, path)?;
            }
            match starts {
                Starts::End => moved |= self.chosen(Choice::Ready(at), path)?,
                Starts::GoOn => moved |= self.node(at).postgres == Postgres::Starting,
            }
            // All of them at once: a primary may have more than rounds are given.
            while self.chosen(Choice::Commit(at), path)? {
                moved = true;
            }
        }
        Ok(moved)
    }

    pub(super) fn members(&self) -> std::ops::Range<At> {
        0..At::try_from(self.nodes.len()).unwrap_or(At::MAX)
    }

    pub(super) fn quiet(&mut self) -> Result<(), Violation> {
        for _ in 0..ROUNDS_MAX {
            if !self.machines(&mut Vec::new(), Starts::End)? {
                break;
            }
        }
        Ok(())
    }

    /// OPENS_AGAIN, at any pace.
    pub(super) fn opens_again(&mut self, path: &mut Vec<Choice>) -> Result<(), Violation> {
        let before = (self.clone(), path.len());
        for pace in [Pace::Quick, Pace::Slow] {
            *self = before.0.clone();
            path.truncate(before.1);
            self.opens_at(pace, path)?;
        }
        Ok(())
    }

    fn opens_at(&mut self, pace: Pace, path: &mut Vec<Choice>) -> Result<(), Violation> {
        for group in 0..self.groups {
            if !self.could_open(group) || self.open_within_bounds(group, pace, path)? {
                continue;
            }
            // Before its row is acknowledged, a driver has as many rewound as its quorum needs. Where
            // its op is taken over just then, or its primary fails, there may be too few logs, and
            // the group waits for a person.
            if !self.could_open(group) {
                continue;
            }
            let what = format!(
                "group {} is not open after {OPS_MAX} ops in a world that is quiet",
                group + 1
            );
            return Self::broke(OPENS_AGAIN, what);
        }
        Ok(())
    }

    fn open_within_bounds(
        &mut self,
        group: u8,
        pace: Pace,
        path: &mut Vec<Choice>,
    ) -> Result<bool, Violation> {
        for _ in 0..OPS_MAX {
            let mut moved = true;
            for round in 0..OP_ROUNDS {
                moved = self.impatient(group, pace.starts(round), path)?;
                if self.serves(group) && self.takes_a_write(group, pace, path)? {
                    self.all_come_back(group, pace, path)?;
                    return Ok(true);
                }
                if !moved {
                    break;
                }
            }
            if moved && let Some(term) = self.waits(group) {
                let what = format!("the row of term {term} waits for its quorum for ever");
                return Self::broke(OPENS_AGAIN, what).map(|()| false);
            }
            self.chosen(Choice::Read(0, group, 0), path)?;
            for choice in failover(group, self.best(group)) {
                self.chosen(choice, path)?;
                self.machines(path, Starts::End)?;
            }
        }
        Ok(false)
    }

    /// Whoever was not lost follows the primary in the end.
    fn all_come_back(
        &mut self,
        group: u8,
        pace: Pace,
        path: &mut Vec<Choice>,
    ) -> Result<(), Violation> {
        for round in 0..OP_ROUNDS {
            if self.are_back(group) || !self.serves(group) {
                return Ok(());
            }
            self.impatient(group, pace.starts(round), path)?;
        }
        if self.are_back(group) {
            return Ok(());
        }
        let what = format!("not everybody of group {} follows its primary", group + 1);
        Self::broke(OPENS_AGAIN, what)
    }

    fn are_back(&self, group: u8) -> bool {
        let stored = &self.newest(group).stored;
        let serve = |node: &&Node| node.group == group && node.port.is_some();
        let serving = self.nodes.iter().filter(serve);
        let awaited: Vec<At> = serving
            .flat_map(|node| node.awaited.members.clone())
            .collect();
        let whole = |member: &Admitted| {
            let node = self.node(Self::index(&member.id));
            let follows = node.link.is_some_and(|link| link.established) || node.port.is_some();
            let lost = node.disk.mark == Mark::Lost || node.nonce() != member.volume;
            let came = follows && node.disk.mark == Mark::None && node.log.len() >= node.needs;
            // By a policy that an op overtook, which the primary has carried out all the same.
            let left = !awaited.contains(&Self::index(&member.id));
            lost || left || came
        };
        stored.policy.is_some() || stored.record.members.iter().all(whole)
    }

    /// A round in which first of all everybody asks again.
    fn impatient(
        &mut self,
        group: u8,
        starts: Starts,
        path: &mut Vec<Choice>,
    ) -> Result<bool, Violation> {
        self.chosen(Choice::Read(0, group, 0), path)?;
        if self.may_drive(group) {
            self.chosen(Choice::Drive(0, group), path)?;
        }
        for at in self.members() {
            for to in self.members() {
                // Its own member has heard it, and nothing is lost on the way.
                let own = at == to
                    && self
                        .messages
                        .iter()
                        .any(|m| (m.key().from, m.key().to) == (at, at));
                if !own {
                    self.chosen(Choice::Again(at, to), path)?;
                }
                let link = self.node(to).link.filter(|link| link.established);
                let follows = link.is_some_and(|link| link.upstream == at);
                let waits = self.node(at).waits_for(&self.ids[usize::from(to)]);
                if !follows || waits {
                    self.chosen(Choice::Lead(at, to), path)?;
                }
            }
        }
        let asked = !self.messages.is_empty();
        let whole = self.led(group) && self.leaves_recruits(group);
        let moved = self.machines(path, starts)?;
        if whole && self.led(group) && !self.leaves_recruits(group) {
            let what = format!("too few logs of group {} can be read", group + 1);
            return Self::broke(OPENS_AGAIN, what).map(|()| false);
        }
        Ok(moved || asked)
    }

    /// Whether somebody leads under the newest term: no driver gives logs up then, the leader does.
    fn led(&self, group: u8) -> bool {
        let term = self.newest(group).stored.record.term;
        let leads = |node: &&Node| node.alive && node.member.leading() == Some(term);
        self.nodes
            .iter()
            .filter(|node| node.group == group)
            .any(|node| leads(&node))
    }

    /// Whether F logs can be read, or some are lost for good.
    fn leaves_recruits(&self, group: u8) -> bool {
        let record = &self.newest(group).stored.record;
        let quorum = Quorum {
            members: record.members.len(),
            k: usize::from(record.k),
        };
        let lost = |member: &Admitted| {
            let node = self.node(Self::index(&member.id));
            node.disk.mark == Mark::Lost || node.nonce() != member.volume
        };
        let here = record.members.iter().filter(|member| !lost(member)).count();
        here < record.members.len() || self.readable(group).count() >= quorum.recruits()
    }

    /// As the record lists them, with the volume that they were admitted with.
    fn readable(&self, group: u8) -> impl Iterator<Item = (At, &Node)> {
        let members = &self.newest(group).stored.record.members;
        members.iter().filter_map(|member| {
            let at = Self::index(&member.id);
            let node = self.node(at);
            let whole = node.disk.mark == Mark::None && node.log.len() >= node.needs;
            (whole && node.nonce() == member.volume).then_some((at, node))
        })
    }

    /// F recruits, and enough of them to acknowledge a commit.
    fn could_open(&self, group: u8) -> bool {
        let record = &self.newest(group).stored.record;
        let quorum = Quorum {
            members: record.members.len(),
            k: usize::from(record.k),
        };
        self.readable(group).count() >= quorum.recruits().max(1 + quorum.k)
    }

    /// Whom control would take, by what members report: whoever has the most; the primary where it
    /// has as much as any.
    fn best(&self, group: u8) -> At {
        let runs = |node: &Node| node.postgres == Postgres::Primary;
        let better = |held: (At, &'_ Node), other: (At, &'_ Node)| -> bool {
            let (has, had) = (other.1.log.end().position, held.1.log.end().position);
            let as_much = !had.ahead_of(has) && runs(other.1) && !runs(held.1);
            has.ahead_of(had) || as_much
        };
        let best = self
            .readable(group)
            .reduce(|held, other| if better(held, other) { other } else { held });
        best.map_or(0, |(at, _)| at)
    }

    /// The term of the group's op, where its opening transaction is still heard of and does not get
    /// its quorum, though there are members enough.
    fn waits(&self, group: u8) -> Option<Term> {
        let stored = &self.newest(group).stored;
        let op = stored.record.op.as_ref()?;
        let node = self.node(Self::index(&op.target));
        let opens = |waiting: &Waiting| {
            let this = match &waiting.what {
                Commit::Opening { term, .. } => *term == op.term,
                Commit::Write { .. } | Commit::Owners | Commit::Policy { .. } => false,
            };
            this && waiting.heard && waiting.run == node.run
        };
        node.waiting.iter().any(opens).then_some(op.term)
    }

    fn serves(&self, group: u8) -> bool {
        let record = &self.newest(group).stored.record;
        let serves = |node: &Node| node.port.is_some() && node.member.serving().is_some();
        let primary = record.open.as_ref().map(|open| Self::index(&open.primary));
        record.op.is_none() && primary.is_some_and(|at| serves(self.node(at)))
    }

    /// Whether a write is acknowledged. While the list of those that a commit waits for changes,
    /// it may wait for one that is lost.
    fn takes_a_write(
        &mut self,
        group: u8,
        pace: Pace,
        path: &mut Vec<Choice>,
    ) -> Result<bool, Violation> {
        let stored = self.newest(group).stored.clone();
        let primary = stored
            .record
            .open
            .as_ref()
            .map(|open| Self::index(&open.primary));
        let Some(primary) = primary.filter(|_| stored.policy.is_none()) else {
            return Ok(true);
        };
        let before = self.walked.acknowledged;
        let owner: Option<Cell> = self
            .node(primary)
            .log
            .owned(shards(group)[0])
            .map(|o| o.cell);
        let writes = Choice::Write(primary, 0, owner.unwrap_or_default());
        if !self.chosen(writes, path)? {
            return Ok(true);
        }
        for round in 0..OP_ROUNDS {
            self.impatient(group, pace.starts(round), path)?;
            if self.walked.acknowledged > before {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Ordered, written, and sent.
pub(super) fn failover(group: u8, target: At) -> [Choice; 3] {
    let order = Choice::Order {
        replica: 0,
        group,
        kind: OpKind::Failover,
        target,
        cell: 0,
        scope: Scope::BothShards,
    };
    [order, Choice::Read(0, group, 0), Choice::Drive(0, group)]
}

#[cfg(test)]
mod tests {
    use super::super::world::Shape;
    use super::super::{Mutant, Violation, World};
    use super::*;

    fn opens_in_place(mutant: Option<Mutant>) -> Result<(u64, World), Violation> {
        let shape = Shape {
            members: 3,
            spare: 0,
            k: 1,
        };
        let mut world = World::new(&[shape], mutant).born()?.parted()?;
        assert!(world.node(0).postgres == Postgres::Primary, "it runs");
        world.opens_again(&mut Vec::new())?;
        Ok((world.walked().rebuilt, world))
    }

    #[test]
    fn a_primary_that_wins_in_place_opens_though_both_others_are_off_the_line() {
        let (rebuilt, world) = opens_in_place(None).unwrap();
        assert_eq!(world.node(0).log.timeline(), 2, "it kept its timeline");
        assert!(
            (1..=2).contains(&rebuilt),
            "{rebuilt} rewinds, one a member"
        );
    }

    fn rejoining(mutant: Option<Mutant>) -> World {
        let shape = Shape {
            members: 3,
            spare: 0,
            k: 1,
        };
        let born = World::new(&[shape], mutant).born().unwrap();
        let world = born.parted().and_then(World::rejoining).unwrap();
        assert!(world.node(0).port.is_some(), "A serves");
        assert_eq!(world.node(1).disk.mark, Mark::Rebuilt, "B comes up");
        assert_eq!(world.node(2).disk.mark, Mark::None, "C has its log");
        world
    }

    #[test]
    fn a_leader_has_no_log_given_up_while_another_member_comes_up() {
        let mut world = rejoining(None);
        world.opens_again(&mut Vec::new()).unwrap();
        assert!(world.are_back(0), "in the end both have come up");
    }

    #[test]
    fn where_it_does_its_own_log_is_the_only_one_that_can_be_read() {
        let mut world = rejoining(Some(Mutant::RewindsAllAtOnce));
        let broken = world.opens_again(&mut Vec::new()).unwrap_err();
        assert_eq!(broken.invariant, OPENS_AGAIN);
        assert_eq!(world.readable(0).count(), 1);
    }

    #[test]
    fn where_it_names_a_promotions_timeline_they_are_rewound_for_ever() {
        let broken = opens_in_place(Some(Mutant::EveryWinIsAPromotion));
        assert_eq!(broken.unwrap_err().invariant, OPENS_AGAIN);
    }
}
