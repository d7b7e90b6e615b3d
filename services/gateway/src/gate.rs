//! Which shards wait: the ownership protocol's gates, one a shard, driven by the tables in use and
//! by who answers; and how many requests this cell's instances still have to answer.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwapOption;
use atoll_ownership::gate::{Decision, Gate, Row};
use atoll_routing::{Phase, ShardRow, Table, TableVersion};
use atoll_topology::{CellId, ShardId};
use tokio::sync::{Notify, watch};

/// The most shards that a world can have.
const SHARDS_MAX: usize = 16_384;

/// The table in use, the gates that follow it, and the requests that were let through.
///
/// The path takes no lock: it loads the table, asks `closed`, counts itself in and asks again.
/// Whoever closes a gate does so before the table counts as in use, so a request either sees the
/// closed gate, or is seen in the count.
#[derive(Debug)]
pub(crate) struct Gates {
    table: ArcSwapOption<Table>,
    closed: Box<[AtomicBool]>,
    in_flight: Box<[AtomicU32]>,
    gates: Mutex<(Option<String>, Vec<Gate>)>,
    /// A closed shard's requests have fallen to 0.
    pub(crate) drained: Notify,
    /// Grows with every table in use and every gate that a suspicion moves.
    changes: watch::Sender<u64>,
}

/// A request that an instance of this cell has to answer; ends by drop.
#[derive(Debug)]
pub(crate) struct InFlight {
    gates: Arc<Gates>,
    shard: usize,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let before = self.gates.in_flight[self.shard].fetch_sub(1, Ordering::SeqCst);
        if before == 1 && self.gates.closed[self.shard].load(Ordering::SeqCst) {
            self.gates.drained.notify_one();
        }
    }
}

impl Gates {
    pub(crate) fn new() -> Self {
        Self {
            table: ArcSwapOption::empty(),
            closed: (0..SHARDS_MAX).map(|_| AtomicBool::new(false)).collect(),
            in_flight: (0..SHARDS_MAX).map(|_| AtomicU32::new(0)).collect(),
            gates: Mutex::default(),
            drained: Notify::new(),
            changes: watch::Sender::new(0),
        }
    }

    /// Awaits tables and suspicions.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The table in use.
    pub(crate) fn table(&self) -> Option<Arc<Table>> {
        self.table.load_full()
    }

    /// Whether requests of this shard wait.
    pub(crate) fn closed(&self, shard: ShardId) -> bool {
        self.closed[usize::from(shard.0) % SHARDS_MAX].load(Ordering::SeqCst)
    }

    /// Whether the key of a queue may go on.
    pub(crate) fn is_open(&self, key: u64) -> bool {
        u16::try_from(key).is_ok_and(|shard| !self.closed(ShardId(shard)))
    }

    /// Counts a request in that was decided by `table`. None when the gate has closed or the table
    /// has changed since: it has to be decided again.
    pub(crate) fn enter(self: &Arc<Self>, shard: ShardId, table: &Arc<Table>) -> Option<InFlight> {
        let index = usize::from(shard.0) % SHARDS_MAX;
        self.in_flight[index].fetch_add(1, Ordering::SeqCst);
        let entered = InFlight {
            gates: Arc::clone(self),
            shard: index,
        };
        // Against `use_table`: it closes and swaps first, and reads the count after.
        fence(Ordering::SeqCst);
        let current = self
            .table
            .load()
            .as_ref()
            .is_some_and(|used| Arc::ptr_eq(used, table));
        (current && !self.closed(shard)).then_some(entered)
    }

    /// Requests of a shard that this cell's instances have to answer.
    pub(crate) fn in_flight(&self, shard: ShardId) -> u32 {
        self.in_flight[usize::from(shard.0) % SHARDS_MAX].load(Ordering::SeqCst)
    }

    /// Takes a table into use. When this returns, every later decision rests on it (or a newer
    /// one), and every earlier one is in the counts.
    pub(crate) fn use_table(&self, table: &Arc<Table>) {
        let mut locked = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        let (world, gates) = &mut *locked;
        if world.as_deref() != Some(&*table.version.world) {
            // Another world counts its epochs from the beginning.
            *world = Some(table.version.world.clone());
            gates.clear();
            for closed in &self.closed {
                closed.store(false, Ordering::SeqCst);
            }
        }
        gates.resize(table.shards.len().min(SHARDS_MAX), Gate::default());
        let decisions: Vec<Decision> = gates
            .iter_mut()
            .zip(&table.shards)
            .map(|(gate, row)| gate.row(say(row)))
            .collect();
        for (shard, decision) in decisions.iter().enumerate() {
            if *decision == Decision::Close {
                self.closed[shard].store(true, Ordering::SeqCst);
            }
        }
        self.table.store(Some(Arc::clone(table)));
        fence(Ordering::SeqCst);
        for (shard, decision) in decisions.iter().enumerate() {
            if *decision == Decision::Release {
                self.closed[shard].store(false, Ordering::SeqCst);
            }
        }
        self.changes.send_modify(|count| *count += 1);
    }

    /// The owner does not answer: its shards wait.
    pub(crate) fn suspect(&self, owner: &CellId) {
        self.each_of(owner, Gate::suspect);
    }

    /// The owner answers again.
    pub(crate) fn probe_passed(&self, owner: &CellId) {
        self.each_of(owner, Gate::probe_passed);
    }

    fn each_of(&self, owner: &CellId, act: impl Fn(&mut Gate) -> Decision) {
        let mut locked = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(table) = self.table() else { return };
        for (shard, (gate, row)) in locked.1.iter_mut().zip(&table.shards).enumerate() {
            if row.cell == *owner {
                match act(gate) {
                    Decision::Close => self.closed[shard].store(true, Ordering::SeqCst),
                    Decision::Release => self.closed[shard].store(false, Ordering::SeqCst),
                    Decision::Unchanged => {}
                }
            }
        }
        self.changes.send_modify(|count| *count += 1);
    }
}

fn say(row: &ShardRow) -> Row {
    match row.phase {
        Phase::Active => Row::Active(row.epoch),
        Phase::Switching { .. } => Row::Switching(row.epoch),
    }
}

/// Whether `ours` is at least as new as `theirs`; none across worlds, which have no order.
pub(crate) fn reaches(ours: &TableVersion, theirs: &TableVersion) -> Option<bool> {
    (ours.world == theirs.world).then_some(ours.number >= theirs.number)
}
