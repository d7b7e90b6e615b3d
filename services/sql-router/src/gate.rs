//! Where new transactions of a switching shard wait, and who is counted while one closes.
//!
//! Each decision is `domain/ownership`'s [`Gate`]; this file keeps one a shard, the table they
//! were told, and the counts, all under one lock: a transaction is counted or it waits, and a table
//! is in use when every gate has seen it. So a count of 0 reported with a table's version means
//! that none will follow.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use atoll_ownership::gate::{Gate, Row};
use atoll_routing::{Closed, Phase, ShardRow, Table, TableVersion};
use atoll_streams::ShardLoad;
use atoll_topology::{CellId, Epoch, GroupId, ShardId};
use tokio::sync::watch;
use tokio::time::Instant;

/// The gates of all shards.
pub(crate) struct Gates {
    cell: CellId,
    state: Mutex<State>,
    /// Bumped when a gate may have opened or closed; whoever waits looks again.
    changed: watch::Sender<u64>,
    /// Bumped, beside that, when a count of a switching shard has changed.
    counted: watch::Sender<u64>,
}

struct State {
    table: Arc<Table>,
    gates: BTreeMap<ShardId, Gate>,
    closed_at: BTreeMap<ShardId, Instant>,
    /// The epoch that the database named while the table did not know it yet.
    awaited: BTreeMap<ShardId, Epoch>,
    in_flight: BTreeMap<ShardId, u64>,
    held: BTreeMap<ShardId, u64>,
}

/// What a new transaction may do.
pub(crate) enum Entry {
    /// Go on, by this table; the pass counts it until dropped.
    Go(Arc<Table>, Pass),
    /// Wait for a change.
    Wait,
    /// Another cell owns the shard, as far as this table knows.
    Foreign(CellId),
    /// No table names such a shard.
    Unplaced,
}

/// Counts one transaction of one shard.
pub(crate) struct Pass {
    gates: Arc<Gates>,
    shard: ShardId,
    waiting: bool,
}

impl Drop for Pass {
    fn drop(&mut self) {
        let switching = {
            let mut state = self.gates.lock();
            let counts = if self.waiting {
                &mut state.held
            } else {
                &mut state.in_flight
            };
            if let Some(count) = counts.get_mut(&self.shard) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(&self.shard);
                }
            }
            is_switching(&state, self.shard)
        };
        if switching {
            self.gates.count();
        }
    }
}

impl Gates {
    pub(crate) fn new(cell: CellId, table: Arc<Table>) -> Arc<Self> {
        let gates = Self {
            cell,
            state: Mutex::new(State {
                table: Arc::clone(&table),
                gates: BTreeMap::new(),
                closed_at: BTreeMap::new(),
                awaited: BTreeMap::new(),
                in_flight: BTreeMap::new(),
                held: BTreeMap::new(),
            }),
            changed: watch::Sender::new(0),
            counted: watch::Sender::new(0),
        };
        gates.take(table);
        Arc::new(gates)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        self.changed
            .send_modify(|count| *count = count.wrapping_add(1));
        self.count();
    }

    fn count(&self) {
        self.counted
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Wakes whenever a wait may be over.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Wakes whenever there may be something to report.
    pub(crate) fn counts(&self) -> watch::Receiver<u64> {
        self.counted.subscribe()
    }

    /// The table in use; one without shards until the first has arrived.
    pub(crate) fn table(&self) -> Arc<Table> {
        Arc::clone(&self.lock().table)
    }

    /// How a row looks from this cell: while only gateways hold, the old owner's router lets the
    /// requests in flight begin their transactions.
    fn row(&self, row: &ShardRow) -> Option<Row> {
        match &row.phase {
            Phase::Active => Some(Row::Active(row.epoch)),
            Phase::Switching {
                leaving,
                closed: Closed::Gateways,
            } if *leaving == self.cell => None,
            Phase::Switching { .. } => Some(Row::Switching(row.epoch)),
        }
    }

    /// A newer table: from the return on it is in use.
    pub(crate) fn take(&self, table: Arc<Table>) {
        {
            let mut state = self.lock();
            let older = !table.version.supersedes(&state.table.version);
            if older && !Arc::ptr_eq(&state.table, &table) {
                return;
            }
            let now = Instant::now();
            for (number, row) in (0..).zip(&table.shards) {
                let (shard, seen) = (ShardId(number), self.row(row));
                let known = state
                    .awaited
                    .get(&shard)
                    .is_none_or(|e| !e.supersedes(row.epoch));
                if known {
                    state.awaited.remove(&shard);
                }
                let gate = state.gates.entry(shard).or_default();
                if let Some(seen) = seen {
                    gate.row(seen);
                }
                if gate.holds() {
                    state.closed_at.entry(shard).or_insert(now);
                } else {
                    state.closed_at.remove(&shard);
                }
            }
            state.table = table;
        }
        self.wake();
    }

    /// A new transaction of `shard` asks to begin.
    pub(crate) fn enter(self: &Arc<Self>, shard: ShardId) -> Entry {
        let mut state = self.lock();
        let Some(row) = state.table.shard(shard) else {
            return Entry::Unplaced;
        };
        let holds = state.gates.get(&shard).is_some_and(Gate::holds);
        let leaving = match &row.phase {
            Phase::Switching {
                leaving,
                closed: Closed::Gateways,
            } => Some(leaving),
            _ => None,
        };
        let owner = leaving.unwrap_or(&row.cell);
        if holds || state.awaited.contains_key(&shard) {
            return Entry::Wait;
        }
        if *owner != self.cell {
            return Entry::Foreign(owner.clone());
        }
        let table = Arc::clone(&state.table);
        *state.in_flight.entry(shard).or_default() += 1;
        let switching = is_switching(&state, shard);
        drop(state);
        if switching {
            self.count();
        }
        Entry::Go(
            table,
            Pass {
                gates: Arc::clone(self),
                shard,
                waiting: false,
            },
        )
    }

    /// Counts one that waits; `None` above the limit.
    pub(crate) fn hold(self: &Arc<Self>, shard: ShardId, limit: usize) -> Option<Pass> {
        let mut state = self.lock();
        let all: u64 = state.held.values().sum();
        if all >= u64::try_from(limit).unwrap_or(u64::MAX) {
            return None;
        }
        *state.held.entry(shard).or_default() += 1;
        let switching = is_switching(&state, shard);
        drop(state);
        if switching {
            self.count();
        }
        Some(Pass {
            gates: Arc::clone(self),
            shard,
            waiting: true,
        })
    }

    /// Since when new transactions of a shard wait because it is switching.
    pub(crate) fn closed_since(&self, shard: ShardId) -> Option<Instant> {
        let state = self.lock();
        is_switching(&state, shard)
            .then(|| state.closed_at.get(&shard).copied())
            .flatten()
    }

    /// The shard's primary refused a connection or was silent, before anything was sent.
    pub(crate) fn suspect(&self, shard: ShardId) {
        let mut state = self.lock();
        state.gates.entry(shard).or_default().suspect();
        let now = Instant::now();
        state.closed_at.entry(shard).or_insert(now);
    }

    /// Shards of a group that wait for a primary to answer, not for a table.
    pub(crate) fn has_suspects(&self, group: &GroupId) -> bool {
        let state = self.lock();
        state.gates.iter().any(|(shard, gate)| {
            let row = state.table.shard(*shard);
            gate.holds() && row.is_some_and(|row| row.group == *group && row.phase == Phase::Active)
        })
    }

    /// The open primary of a group has answered.
    pub(crate) fn probe_passed(&self, group: &GroupId) {
        {
            let mut state = self.lock();
            let table = Arc::clone(&state.table);
            let State {
                gates, closed_at, ..
            } = &mut *state;
            for (shard, gate) in gates {
                if table.shard(*shard).is_some_and(|row| row.group == *group) {
                    gate.probe_passed();
                    if !gate.holds() {
                        closed_at.remove(shard);
                    }
                }
            }
        }
        self.wake();
    }

    /// The database names a newer owner than the table: nobody begins before the table knows it.
    pub(crate) fn await_epoch(&self, shard: ShardId, epoch: Epoch) {
        let mut state = self.lock();
        if state
            .table
            .shard(shard)
            .is_some_and(|row| epoch.supersedes(row.epoch))
        {
            let awaited = state.awaited.entry(shard).or_insert(epoch);
            *awaited = awaited.newest(epoch);
        }
    }

    /// The version in use, and the counts of every run of switching shards under it.
    pub(crate) fn loads(&self) -> (TableVersion, Vec<ShardLoad>) {
        let state = self.lock();
        let mut loads: Vec<ShardLoad> = Vec::new();
        for (number, row) in (0..).zip(&state.table.shards) {
            if row.phase == Phase::Active {
                continue;
            }
            let shard = ShardId(number);
            let in_flight = state.in_flight.get(&shard).copied().unwrap_or(0);
            let held = state.held.get(&shard).copied().unwrap_or(0);
            match loads.last_mut() {
                Some(run)
                    if run.last.0.checked_add(1) == Some(number) && run.epoch == row.epoch =>
                {
                    run.last = shard;
                    run.in_flight += in_flight;
                    run.held += held;
                }
                _ => loads.push(ShardLoad {
                    first: shard,
                    last: shard,
                    epoch: row.epoch,
                    in_flight,
                    held,
                }),
            }
        }
        (state.table.version.clone(), loads)
    }

    /// Transactions in progress, over all shards.
    pub(crate) fn in_flight(&self) -> u64 {
        self.lock().in_flight.values().sum()
    }
}

fn is_switching(state: &State, shard: ShardId) -> bool {
    let row = state.table.shard(shard);
    row.is_some_and(|row| row.phase != Phase::Active)
}
