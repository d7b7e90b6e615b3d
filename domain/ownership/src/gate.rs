//! The gate of one shard in a gateway or a router: when requests wait, and when they may go on.
//!
//! HELD_UNTIL_OPEN: a held request is released only to an owner whose primary is open. Control
//! publishes `Active` only after the owner's router has read the epoch on the open primary, so a
//! table row is enough to release.

use atoll_topology::Epoch;

/// What a table row says of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Row {
    /// The owner of this epoch serves.
    Active(Epoch),
    /// The owner of this epoch will serve; requests wait.
    Switching(Epoch),
}

/// What the gate asks of its holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Decision {
    /// Leave things as they are.
    Unchanged,
    /// From now on requests wait.
    Close,
    /// Let those that wait go on, oldest first.
    Release,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum State {
    Passing,
    /// The table says that the shard is switching.
    Switching,
    /// The owner did not answer; the table has not said anything yet.
    Suspected,
}

/// The gate of one shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Gate {
    epoch: Epoch,
    state: State,
    weakened: Weakened,
}

/// Which protections are switched off in a test build; see `member::Weakened`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Weakened {
    #[cfg(feature = "mutants")]
    /// An older row is believed.
    pub takes_an_older_row: bool,
    #[cfg(feature = "mutants")]
    /// Held requests go on as soon as the new owner is named.
    pub release_before_open: bool,
}

macro_rules! weakened {
    ($gate:expr, $switch:ident) => {{
        #[cfg(feature = "mutants")]
        {
            $gate.weakened.$switch
        }
        #[cfg(not(feature = "mutants"))]
        {
            false
        }
    }};
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            epoch: Epoch::ZERO,
            state: State::Passing,
            weakened: Weakened::default(),
        }
    }
}

impl Gate {
    /// A gate with protections switched off.
    #[cfg(feature = "mutants")]
    pub fn weakened(weakened: Weakened) -> Self {
        Self {
            weakened,
            ..Self::default()
        }
    }

    /// The newest epoch that it has seen.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Whether a request waits.
    pub fn holds(&self) -> bool {
        self.state != State::Passing
    }

    /// A table row in use. An older epoch than one already seen says nothing.
    pub fn row(&mut self, row: Row) -> Decision {
        let (Row::Active(epoch) | Row::Switching(epoch)) = row;
        if self.epoch.supersedes(epoch) && !weakened!(self, takes_an_older_row) {
            return Decision::Unchanged;
        }
        let newer = epoch.supersedes(self.epoch);
        self.epoch = epoch;
        let early = weakened!(self, release_before_open);
        match (self.state, row) {
            (State::Passing, Row::Switching(_)) => {
                self.state = State::Switching;
                Decision::Close
            }
            (State::Suspected, Row::Switching(_)) => {
                self.state = State::Switching;
                Decision::Unchanged
            }
            (State::Switching, Row::Switching(_)) if early => {
                self.state = State::Passing;
                Decision::Release
            }
            (State::Switching, Row::Active(_)) => {
                self.state = State::Passing;
                Decision::Release
            }
            (State::Suspected, Row::Active(_)) if newer => {
                self.state = State::Passing;
                Decision::Release
            }
            _ => Decision::Unchanged,
        }
    }

    /// The owner refused a connection, or is silent beyond the limit, before anything was sent.
    pub fn suspect(&mut self) -> Decision {
        if self.state != State::Passing {
            return Decision::Unchanged;
        }
        self.state = State::Suspected;
        Decision::Close
    }

    /// A probe of the suspected owner passed: it serves under the epoch that the table names, so
    /// there was no switch at all.
    pub fn probe_passed(&mut self) -> Decision {
        if self.state != State::Suspected {
            return Decision::Unchanged;
        }
        self.state = State::Passing;
        Decision::Release
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_switching_shard_waits_and_goes_on_only_when_it_is_active_again() {
        let mut gate = Gate::default();
        assert_eq!(gate.row(Row::Active(Epoch::new(1))), Decision::Unchanged);
        assert_eq!(gate.row(Row::Switching(Epoch::new(2))), Decision::Close);
        assert_eq!(gate.row(Row::Switching(Epoch::new(3))), Decision::Unchanged);
        assert!(gate.holds());
        assert_eq!(
            gate.row(Row::Active(Epoch::new(2))),
            Decision::Unchanged,
            "an older row"
        );
        assert_eq!(gate.row(Row::Active(Epoch::new(3))), Decision::Release);
        assert!(!gate.holds());
    }

    #[test]
    fn a_suspected_owner_is_tried_again_after_a_probe_or_under_a_newer_epoch() {
        let mut gate = Gate::default();
        gate.row(Row::Active(Epoch::new(1)));
        assert_eq!(gate.suspect(), Decision::Close);
        assert_eq!(gate.suspect(), Decision::Unchanged);
        assert_eq!(gate.row(Row::Active(Epoch::new(1))), Decision::Unchanged);
        assert_eq!(gate.probe_passed(), Decision::Release);
        gate.suspect();
        assert_eq!(gate.row(Row::Switching(Epoch::new(2))), Decision::Unchanged);
        assert_eq!(
            gate.probe_passed(),
            Decision::Unchanged,
            "a probe never ends a switch"
        );
        assert_eq!(gate.row(Row::Active(Epoch::new(2))), Decision::Release);
    }
}
