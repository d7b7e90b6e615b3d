//! The invariants, by name, and what is remembered to check them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use atoll_topology::{CellId, Epoch, ShardId, Term};

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

/// What clients, gateways and logs have been told so far.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// Writes acknowledged to clients, by number.
    pub(super) acknowledged: BTreeSet<u64>,
    /// By shard: the newest epoch under which a write was acknowledged, and its cell.
    pub(super) newest: BTreeMap<ShardId, (Epoch, CellId)>,
    /// (shard, epoch) pairs whose owner a member has served.
    pub(super) served: BTreeSet<(ShardId, u64)>,
    pub(super) broken: Option<Violation>,
}

impl Told {
    pub(super) fn broke(&mut self, invariant: &'static str, what: String) {
        self.broken.get_or_insert(Violation { invariant, what });
    }

    /// ONE_WRITER: epochs under which writes are acknowledged never go back, and one epoch is one
    /// cell's.
    pub(super) fn acknowledge(&mut self, write: u64, shard: ShardId, epoch: Epoch, cell: &CellId) {
        if let Some((newest, owner)) = self.newest.get(&shard) {
            let older = newest.supersedes(epoch);
            if older || *newest == epoch && owner != cell {
                let what = format!(
                    "write {write} of shard {shard} acknowledged to {cell} under epoch {epoch} \
                     after {owner} under epoch {newest}"
                );
                self.broke("ONE_WRITER", what);
            }
        }
        self.newest.insert(shard, (epoch, cell.clone()));
        self.acknowledged.insert(write);
    }

    /// ACKED_SURVIVES: who opens a term has every write that was ever acknowledged.
    pub(super) fn opens(&mut self, term: Term, has: &BTreeSet<u64>) {
        if let Some(lost) = self.acknowledged.iter().find(|write| !has.contains(write)) {
            let what = format!("term {term} opens without write {lost}, which was acknowledged");
            self.broke("ACKED_SURVIVES", what);
        }
    }

    /// HELD_UNTIL_OPEN: held requests go on only to an owner that some open primary has served.
    pub(super) fn releases(&mut self, shard: ShardId, epoch: Epoch) {
        if !self.served.contains(&(shard, epoch.get())) {
            let what = format!("shard {shard} released at epoch {epoch}, which nobody serves yet");
            self.broke("HELD_UNTIL_OPEN", what);
        }
    }
}
