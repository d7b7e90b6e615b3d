//! Random schedules of the very state machines that the services run, and the invariants that
//! must hold after every step.
//!
//! A walk is one or two groups of three to five members, two cells, drivers, two replicas of
//! control with stale caches, a store whose compare-and-swaps may be late and unheard, a gateway,
//! and a network that delays, repeats and drops. A seed gives the same walk every time. A
//! [`Mutant`] switches one protection off; a walker that no longer finds them is broken.

mod agent;
mod begun;
mod checks;
mod choice;
mod control;
mod explore;
mod log;
mod message;
mod mutant;
mod node;
mod orders;
mod postgres;
mod settle;
mod shrink;
mod story;
mod swarm;
mod world;

use std::cell::RefCell;
use std::fmt;

pub use checks::Violation;
pub use choice::Choice;
pub use explore::{Bounds, Explored, explore};
pub use mutant::Mutant;
pub use world::{Walked, World};

use settle::OPENS_AGAIN;
use swarm::{Begins, Start, Swarm};

/// Choices of one walk.
pub const STEPS: usize = 200;

/// Walks, one after the other; what they begin with is made once.
#[derive(Default)]
pub struct Walker {
    mutant: Option<Mutant>,
    starts: RefCell<Vec<(Start, World)>>,
}

impl Walker {
    /// Of the healthy protocol, or of one without a protection.
    pub fn new(mutant: Option<Mutant>) -> Self {
        Self {
            mutant,
            starts: RefCell::default(),
        }
    }

    /// One walk; what went wrong, if anything did.
    pub fn walk(&self, seed: u64) -> Result<Walked, Box<Counterexample>> {
        let (mut swarm, start) = Swarm::new(seed);
        let begun = self.start(start);
        let mut world = begun.clone();
        let mut choices = Vec::with_capacity(STEPS);
        while choices.len() < STEPS {
            let Some((choice, stepped)) = swarm.advance(&mut world) else {
                break;
            };
            choices.push(choice);
            if let Err(violation) = stepped {
                return Err(Box::new(Counterexample {
                    seed,
                    violation,
                    start: begun,
                    choices,
                }));
            }
        }
        if swarm.settles && self.mutant.is_none_or(Mutant::harms_liveness_only) {
            // What breaks in the quiet can be replayed; that it stays quiet cannot.
            let before = choices.len();
            if let Err(violation) = world.opens_again(&mut choices) {
                if violation.invariant == OPENS_AGAIN {
                    choices.truncate(before);
                }
                return Err(Box::new(Counterexample {
                    seed,
                    violation,
                    start: begun,
                    choices,
                }));
            }
        }
        Ok(world.walked())
    }

    fn start(&self, start: Start) -> World {
        let mut starts = self.starts.borrow_mut();
        if let Some((_, world)) = starts.iter().find(|(known, _)| *known == start) {
            return world.clone();
        }
        let shapes = vec![start.shape; usize::from(start.groups)];
        let admitted = World::new(&shapes, self.mutant);
        // A mutant that dies at birth dies in the walk.
        let world = match start.begins {
            Begins::Admitted => None,
            Begins::Born => admitted.clone().born().ok(),
            Begins::Parted => admitted.clone().born().and_then(World::parted).ok(),
            Begins::Rejoining => {
                let parted = admitted.clone().born().and_then(World::parted);
                parted.and_then(World::rejoining).ok()
            }
        };
        let world = world.unwrap_or(admitted);
        starts.push((start, world.clone()));
        world
    }
}

/// A walk that broke an invariant.
#[derive(Debug, Clone)]
pub struct Counterexample {
    /// Gives the same walk again.
    pub seed: u64,
    /// What was broken.
    pub violation: Violation,
    start: World,
    choices: Vec<Choice>,
}

impl Counterexample {
    /// How many choices it takes.
    pub fn steps(&self) -> usize {
        self.choices.len()
    }

    /// The same with as few choices as can be found.
    #[must_use]
    pub fn minimised(self) -> Self {
        let choices = shrink::shrink(&self.start, self.choices, self.violation.invariant);
        let (_, choices, broken) = shrink::play(self.start.clone(), choices);
        Self {
            violation: broken.unwrap_or(self.violation),
            choices,
            ..self
        }
    }

    /// What happens, a line a choice.
    pub fn story(&self) -> Vec<String> {
        let telling = self.start.clone().telling();
        let (mut world, ..) = shrink::play(telling, self.choices.iter().copied());
        if self.violation.invariant == OPENS_AGAIN {
            // It ends as it did.
            drop(world.opens_again(&mut Vec::new()));
        }
        world.story()
    }
}

impl fmt::Display for Counterexample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.violation)?;
        for (number, step) in self.story().iter().enumerate() {
            writeln!(f, "{:4} {step}", number + 1)?;
        }
        write!(f, "seed {}", self.seed)
    }
}
