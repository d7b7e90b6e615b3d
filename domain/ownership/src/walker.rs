//! Random schedules of the very state machines that the services run, and the invariants that
//! must hold after every step.
//!
//! A walk is one group of three members, two cells, drivers, two replicas of control with stale
//! caches, one gateway, and a network that delays, repeats and drops. A seed gives the same walk
//! every time. `Mutant`s switch one protection off; a walker that no longer finds them is broken.

mod checks;
mod control;
mod node;
mod world;

pub use checks::Violation;
pub use world::World;

use crate::{gate, member};

/// One protection switched off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// Calls below the promise are obeyed.
    NoPromiseCheck,
    /// A commit is acknowledged by the primary alone.
    AcknowledgeBeforeQuorum,
    /// An op that takes another over goes on under its term.
    ResumeUnderTheSameTerm,
    /// The store takes a record whoever wrote it last.
    BlindPut,
    /// Clients enter before the opening transaction.
    SessionWritesBeforeOpen,
    /// The gateway lets held requests go as soon as a new owner is named.
    ReleaseBeforeOpen,
    /// The gateway believes an older table.
    GatewayTakesAnOlderTable,
    /// Preparing a primary leaves its clients' sessions and links.
    PrepareLeavesSessions,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::NoPromiseCheck,
        Self::AcknowledgeBeforeQuorum,
        Self::ResumeUnderTheSameTerm,
        Self::BlindPut,
        Self::SessionWritesBeforeOpen,
        Self::ReleaseBeforeOpen,
        Self::GatewayTakesAnOlderTable,
        Self::PrepareLeavesSessions,
    ];

    fn member(self) -> member::Weakened {
        member::Weakened {
            no_promise_check: self == Self::NoPromiseCheck,
            prepare_leaves_sessions: self == Self::PrepareLeavesSessions,
            opens_before_open: self == Self::SessionWritesBeforeOpen,
            ..member::Weakened::default()
        }
    }

    fn gate(self) -> gate::Weakened {
        gate::Weakened {
            takes_an_older_row: self == Self::GatewayTakesAnOlderTable,
            release_before_open: self == Self::ReleaseBeforeOpen,
        }
    }
}

/// Steps of one walk.
pub const STEPS: u32 = 1_500;

/// One walk; what went wrong, if anything did, with the whole story.
pub fn walk(seed: u64, mutant: Option<Mutant>) -> Result<Walked, Box<Counterexample>> {
    let world = steps(World::new(seed, mutant));
    if world.violation().is_none() {
        return Ok(world.walked());
    }
    // Once more, and this time the story is kept.
    let world = steps(World::new(seed, mutant).telling());
    match world.violation() {
        Some(violation) => Err(Box::new(Counterexample {
            seed,
            violation,
            story: world.story(),
        })),
        None => Ok(world.walked()),
    }
}

fn steps(mut world: World) -> World {
    for _ in 0..STEPS {
        if world.violation().is_some() {
            break;
        }
        world.act();
    }
    world
}

/// What a walk went through, so that a walker that does nothing can be told from one that finds
/// nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Walked {
    /// Writes acknowledged to clients.
    pub acknowledged: u64,
    /// Terms opened.
    pub opened: u64,
    /// Crashes of members.
    pub crashes: u64,
    /// Held requests released.
    pub released: u64,
}

/// A walk that broke an invariant.
#[derive(Debug, Clone)]
pub struct Counterexample {
    /// Gives the same walk again.
    pub seed: u64,
    /// What was broken.
    pub violation: Violation,
    /// Every step, oldest first.
    pub story: Vec<String>,
}

impl std::fmt::Display for Counterexample {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "seed {} breaks {}", self.seed, self.violation)?;
        for (number, step) in self.story.iter().enumerate() {
            writeln!(f, "{number:4}  {step}")?;
        }
        Ok(())
    }
}
