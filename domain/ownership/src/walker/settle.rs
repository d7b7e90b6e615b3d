//! A world in which nothing goes wrong any more: everything that is under way is done, in a fixed
//! order. So a group is born before a walk begins; and a walk that has gone through anything at all
//! must be able to open again (OPENS_AGAIN).
//!
//! That it opens is shown under a schedule that is fair and not kind: everybody who has not heard
//! what he needs asks again before the logs move on. A member that is cut off, or rewound, each
//! time it is asked never gets anywhere so.

use atoll_topology::{Quorum, Term};

use super::checks::Violation;
use super::choice::{ALL, Choice};
use super::control::{Scope, shards};
use super::log::Cell;
use super::message::{FOLLOW, REFUSED};
use super::node::{At, Commit, Node, Postgres, Waiting};
use super::world::World;
use crate::member::Mark;
use crate::messages::OpKind;

/// Liveness, in a world that has become quiet: with as many readable members as the design asks
/// for, every group opens and takes a write within so many ops and rounds.
pub(super) const OPENS_AGAIN: &str = "OPENS_AGAIN";

/// Rounds after which a quiet world must have come to rest.
const ROUNDS_MAX: usize = 200;

/// Rounds that control gives an op before it orders the next one.
const OP_ROUNDS: usize = 40;

/// Ops within which a group must open: one that is under way, one whose target finds another
/// member ahead of it, and that one; and as many again.
const OPS_MAX: usize = 6;

impl World {
    /// What is under way, member by member; whether anything happened.
    fn machines(&mut self, path: &mut Vec<Choice>) -> Result<bool, Violation> {
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
                Choice::Ready(at),
                Choice::Replayed(at),
                Choice::Rebuilt(at),
                // Its source would not have it.
                Choice::RebuildFails(at),
                Choice::Promoted(at),
                Choice::Execute(at, 0),
                Choice::Commit(at),
                Choice::Hear(at),
            ];
            for choice in choices {
                moved |= self.chosen(choice, path)?;
            }
        }
        Ok(moved)
    }

    fn members(&self) -> std::ops::Range<At> {
        0..At::try_from(self.nodes.len()).unwrap_or(At::MAX)
    }

    fn quiet(&mut self) -> Result<(), Violation> {
        for _ in 0..ROUNDS_MAX {
            if !self.machines(&mut Vec::new())? {
                break;
            }
        }
        Ok(())
    }

    /// Every group is born, led by its first member.
    pub(super) fn born(mut self) -> Result<Self, Violation> {
        for group in 0..self.groups {
            let first = self.nodes.iter().position(|node| node.group == group);
            let target = At::try_from(first.unwrap_or_default()).unwrap_or_default();
            for choice in failover(group, target) {
                self.step(choice)?;
                self.quiet()?;
            }
            self.step(Choice::Read(1, group, 0))?;
            self.step(Choice::Show(group, 0))?;
        }
        self.walked = super::Walked::default();
        Ok(self)
    }

    /// A primary that runs (A) and has the longest log but one, and two members that were promoted
    /// and lost before their opening transaction, each on a line of its own; the one that is
    /// further (B) is down. A is ordered to win again: both others will have to be rewound.
    pub(super) fn parted(mut self) -> Result<Self, Violation> {
        let [a, b, c] = [0, 1, 2];
        self.promoted_and_lost(c, &[b, c])?;
        for _ in 0..2 {
            self.step(Choice::Write(a, 0, 0))?;
        }
        self.promoted_and_lost(b, &[a, b])?;
        self.step(Choice::Start(c))?;
        for choice in failover(0, a) {
            self.step(choice)?;
            self.among(&[a, c], |_| false)?;
        }
        self.walked = super::Walked::default();
        Ok(self)
    }

    fn promoted_and_lost(&mut self, target: At, present: &[At]) -> Result<(), Violation> {
        for choice in failover(0, target) {
            self.step(choice)?;
            let promoted = |world: &Self| world.node(target).postgres == Postgres::Primary;
            self.among(present, promoted)?;
        }
        self.step(Choice::Crash(target))?;
        Ok(())
    }

    /// What happens among these, until it is enough; nobody else hears anything.
    fn among(&mut self, present: &[At], enough: impl Fn(&Self) -> bool) -> Result<(), Violation> {
        for _ in 0..ROUNDS_MAX {
            let mut moved = false;
            while let Some(message) = self.messages.first() {
                let key = message.key();
                // Nobody is told to follow whom they helped: a primary goes on running.
                let follows = key.kind == FOLLOW && key.from != key.to;
                let between = key.kind <= REFUSED;
                let heard = !between || present.contains(&key.to) && !follows;
                let choice = if heard {
                    Choice::Deliver(key, ALL)
                } else {
                    Choice::Lose(key)
                };
                moved |= self.step(choice)?;
                if enough(self) {
                    return Ok(());
                }
            }
            for at in present {
                let choices = [
                    Choice::Work(*at, ALL),
                    Choice::Link(*at),
                    Choice::Stream(*at, ALL),
                    Choice::Ready(*at),
                    Choice::Replayed(*at),
                    Choice::Promoted(*at),
                ];
                for choice in choices {
                    moved |= self.step(choice)?;
                    if enough(self) {
                        return Ok(());
                    }
                }
            }
            if !moved {
                break;
            }
        }
        Ok(())
    }

    /// OPENS_AGAIN.
    pub(super) fn opens_again(&mut self, path: &mut Vec<Choice>) -> Result<(), Violation> {
        for group in 0..self.groups {
            if !self.could_open(group) || self.open_within_bounds(group, path)? {
                continue;
            }
            // A log that is being rewound counts as lost until it is whole again: where a primary
            // fails just then, there may be too few, and the group waits for a person.
            if self.could_open(group) {
                let what = format!(
                    "group {} is not open after {OPS_MAX} ops in a world that is quiet",
                    group + 1
                );
                return Self::broke(OPENS_AGAIN, what);
            }
        }
        Ok(())
    }

    fn open_within_bounds(&mut self, group: u8, path: &mut Vec<Choice>) -> Result<bool, Violation> {
        for _ in 0..OPS_MAX {
            let mut moved = true;
            for _ in 0..OP_ROUNDS {
                moved = self.impatient(group, path)?;
                if self.serves(group) && self.takes_a_write(group, path)? {
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
                self.machines(path)?;
            }
        }
        Ok(false)
    }

    /// A round in which first of all everybody asks again.
    fn impatient(&mut self, group: u8, path: &mut Vec<Choice>) -> Result<bool, Violation> {
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
                let follows = self.node(to).link.is_some_and(|link| link.upstream == at);
                if !follows {
                    self.chosen(Choice::Lead(at, to), path)?;
                }
            }
        }
        let asked = !self.messages.is_empty();
        let moved = self.machines(path)?;
        Ok(moved || asked)
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
                // A call-off cannot bring a member back whose link broke meanwhile; control's next
                // op can.
                Commit::Opening { term, in_place, .. } => *term == op.term && !in_place,
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
    fn takes_a_write(&mut self, group: u8, path: &mut Vec<Choice>) -> Result<bool, Violation> {
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
        for _ in 0..OP_ROUNDS {
            self.impatient(group, path)?;
            if self.walked.acknowledged > before {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Ordered, written, and sent.
fn failover(group: u8, target: At) -> [Choice; 3] {
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

    #[test]
    fn where_it_names_a_promotions_timeline_they_are_rewound_for_ever() {
        let broken = opens_in_place(Some(Mutant::EveryWinIsAPromotion));
        assert_eq!(broken.unwrap_err().invariant, OPENS_AGAIN);
    }
}
