//! A world in which nothing goes wrong any more: everything that is under way is done, in a fixed
//! order. So a group is born before a walk begins; and a walk that has gone through anything at all
//! must be able to open again.

use super::checks::Violation;
use super::choice::{ALL, Choice};
use super::control::Scope;
use super::node::At;
use super::world::World;
use crate::messages::OpKind;

/// Rounds after which a quiet world must have come to rest.
const ROUNDS_MAX: usize = 200;

impl World {
    /// One round of everything that is under way; whether anything happened.
    fn round(&mut self) -> Result<bool, Violation> {
        let mut moved = false;
        while let Some(message) = self.messages.first() {
            moved |= self.step(Choice::Deliver(message.key(), ALL))?;
        }
        #[expect(clippy::cast_possible_truncation, reason = "a handful of members")]
        let members = self.nodes.len() as At;
        for at in 0..members {
            let choices = [
                Choice::Start(at),
                Choice::Work(at, ALL),
                Choice::Link(at),
                Choice::Stream(at, ALL),
                Choice::Ready(at),
                Choice::Replayed(at),
                Choice::Rebuilt(at),
                Choice::Promoted(at),
                Choice::Execute(at, 0),
                Choice::Commit(at),
                Choice::Hear(at),
            ];
            for choice in choices {
                moved |= self.step(choice)?;
            }
        }
        Ok(moved)
    }

    fn quiet(&mut self) -> Result<(), Violation> {
        for _ in 0..ROUNDS_MAX {
            if !self.round()? {
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
            let order = Choice::Order {
                replica: 0,
                group,
                kind: OpKind::Failover,
                target,
                cell: 0,
                scope: Scope::BothShards,
            };
            for choice in [order, Choice::Read(0, group, 0), Choice::Drive(0, group)] {
                self.step(choice)?;
                self.quiet()?;
            }
            self.step(Choice::Read(1, group, 0))?;
            self.step(Choice::Show(group, 0))?;
        }
        self.walked = super::Walked::default();
        Ok(self)
    }
}
