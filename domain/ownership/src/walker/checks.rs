//! The invariants, by name, and what is remembered to check them.

use std::fmt;

use atoll_topology::{Epoch, ShardId, Term};

use super::log::{Cell, Log, SHARDS};

/// A broken invariant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Its name in the design.
    pub invariant: &'static str,
    /// What was seen.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant, self.what)
    }
}

/// What clients, gateways and logs have been told of one group so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Told {
    /// The last write that was acknowledged: its number, its place, and the name of the log up to
    /// it. Acknowledged writes are all on one line, so this one stands for all before it.
    last: Option<(u32, usize, u64)>,
    /// By shard: the newest epoch under which a write was acknowledged.
    newest: [Epoch; SHARDS as usize],
    /// By shard: every epoch that was granted, and to whom.
    granted: [Vec<(Epoch, Cell)>; SHARDS as usize],
    /// By shard: the owner's epoch on an open port, and the newest term of such a port.
    served: [Vec<(Epoch, Term)>; SHARDS as usize],
    /// Terms whose row was acknowledged by its quorum.
    acknowledged: Vec<Term>,
    /// Each timeline with the name of the log that began it.
    timelines: Vec<(u32, u64)>,
}

type Checked = Result<(), Violation>;

fn broke(invariant: &'static str, what: String) -> Checked {
    Err(Violation { invariant, what })
}

fn place(shard: ShardId) -> usize {
    usize::from(shard.0 % SHARDS)
}

impl Told {
    /// ONE_WRITER: epochs under which writes are acknowledged never go back, and one epoch is one
    /// cell's. ACKED_SURVIVES: whoever acknowledges has all that was acknowledged before.
    pub(super) fn acknowledge(
        &mut self,
        (number, at): (u32, usize),
        (shard, epoch, cell): (ShardId, Epoch, Cell),
        log: &Log,
    ) -> Checked {
        let newest = &mut self.newest[place(shard)];
        if newest.supersedes(epoch) {
            return broke(
                "ONE_WRITER",
                format!(
                    "write {number} of shard {shard} is acknowledged under epoch {epoch} after \
                     one under epoch {newest}"
                ),
            );
        }
        *newest = epoch;
        let owner = self.granted[place(shard)].iter().find(|(e, _)| *e == epoch);
        if owner.is_some_and(|(_, owner)| *owner != cell) {
            return broke(
                "ONE_WRITER",
                format!(
                    "write {number} of shard {shard} is acknowledged to cell {} under epoch \
                     {epoch}, which is another cell's",
                    super::story::cell(cell)
                ),
            );
        }
        if log.led_anew_after(at) {
            return broke(
                "FENCE_FIRST",
                format!("write {number} is acknowledged after a row of a newer term was written"),
            );
        }
        self.has_all(log, "acknowledges a write")?;
        if let Some(chain) = log.chain_at(at) {
            self.last = Some((number, at, chain));
        }
        Ok(())
    }

    fn has_all(&self, log: &Log, does: &str) -> Checked {
        match self.last {
            Some((number, at, chain)) if log.chain_at(at) != Some(chain) => broke(
                "ACKED_SURVIVES",
                format!(
                    "whoever {does} in term {} lacks write {number}, which was acknowledged",
                    log.term()
                ),
            ),
            _ => Ok(()),
        }
    }

    /// EPOCH_GROWS and ONE_WRITER in one log: rows and epochs ascend, and an epoch is granted to
    /// one cell only.
    pub(super) fn granted(&mut self, shard: ShardId, epoch: Epoch, cell: Cell) -> Checked {
        let granted = &mut self.granted[place(shard)];
        match granted.iter().find(|(e, _)| *e == epoch) {
            Some((_, owner)) if *owner != cell => broke(
                "ONE_WRITER",
                format!("epoch {epoch} of shard {shard} is granted to two cells"),
            ),
            Some(_) => Ok(()),
            None => {
                granted.push((epoch, cell));
                Ok(())
            }
        }
    }

    /// A timeline is begun once: else two logs could not be told apart.
    pub(super) fn timeline(&mut self, timeline: u32, chain: u64) -> Checked {
        if self
            .timelines
            .iter()
            .any(|(t, c)| *t == timeline && *c != chain)
        {
            return broke("ONE_LOG", format!("timeline {timeline} is begun twice"));
        }
        self.timelines.push((timeline, chain));
        Ok(())
    }

    /// The row of a term is acknowledged by its quorum. ACKED_SURVIVES: who opens a term has every
    /// write that was ever acknowledged.
    pub(super) fn row(&mut self, term: Term, log: &Log) -> Checked {
        self.acknowledged.push(term);
        self.has_all(log, "opens")
    }

    /// HELD_UNTIL_OPEN: clients enter only when the row is acknowledged.
    pub(super) fn opens(&mut self, term: Term, log: &Log, shards: [ShardId; 2]) -> Checked {
        if !self.acknowledged.contains(&term) {
            return broke(
                "HELD_UNTIL_OPEN",
                format!("a port opens before the row of term {term} is acknowledged"),
            );
        }
        self.serves(term, log, shards);
        Ok(())
    }

    /// An open port has these owners.
    pub(super) fn serves(&mut self, term: Term, log: &Log, shards: [ShardId; 2]) {
        for shard in shards {
            let Some(owned) = log.owned(shard) else {
                continue;
            };
            let served = &mut self.served[place(shard)];
            match served.iter_mut().find(|(epoch, _)| *epoch == owned.epoch) {
                Some((_, newest)) => *newest = newest.newest(term),
                None => served.push((owned.epoch, term)),
            }
        }
    }

    /// HELD_UNTIL_OPEN: held requests go on only to an owner that a primary of this term, or a
    /// newer one, has served.
    pub(super) fn releases(&self, shard: ShardId, epoch: Epoch, term: Term) -> Checked {
        let served = self.served[place(shard)]
            .iter()
            .any(|(e, t)| *e == epoch && !term.supersedes(*t));
        if served {
            return Ok(());
        }
        broke(
            "HELD_UNTIL_OPEN",
            format!(
                "requests for shard {shard} are released at epoch {epoch} and term {term}, which \
                 nobody serves yet"
            ),
        )
    }
}
