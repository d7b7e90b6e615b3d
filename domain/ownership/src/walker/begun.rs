//! What a walk begins with: groups that are born, and some that are in trouble already.

use super::checks::Violation;
use super::choice::{ALL, Choice};
use super::message::{FOLLOW, REFUSED};
use super::node::{At, Postgres};
use super::settle::{ROUNDS_MAX, failover};
use super::world::World;
use crate::member::Mark;

impl World {
    /// Every group is born, led by its first member.
    pub(super) fn born(mut self) -> Result<Self, Violation> {
        for group in 0..self.groups {
            let first = self.members().find(|at| self.node(*at).group == group);
            let Some(first) = first else {
                continue;
            };
            for choice in failover(group, first) {
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

    /// The same, and A has won again: B was rewound, acknowledged A's row, and cannot be read yet;
    /// C will have to be rewound.
    pub(super) fn rejoining(mut self) -> Result<Self, Violation> {
        let [a, b, c] = [0, 1, 2];
        self.step(Choice::Start(b))?;
        for _ in 0..ROUNDS_MAX {
            for other in [b, c] {
                self.step(Choice::Again(a, other))?;
            }
            while let Some(message) = self.messages.first() {
                let key = message.key();
                self.step(Choice::Deliver(key, ALL))?;
            }
            for at in [a, b, c] {
                while self.step(Choice::Work(at, ALL))? {}
                let was_rewound = self.node(at).disk.mark == Mark::Rebuilt;
                if !was_rewound {
                    self.step(Choice::Ready(at))?;
                }
                let choices = [
                    Choice::Link(at),
                    Choice::Stream(at, ALL),
                    Choice::Rebuilt(at),
                    Choice::Promoted(at),
                    Choice::Execute(at, 0),
                    Choice::Commit(at),
                ];
                for choice in choices {
                    self.step(choice)?;
                }
            }
            if self.node(a).port.is_some() {
                break;
            }
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
}
