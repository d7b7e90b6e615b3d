//! What must hold, judged from outside: by what users were told, what primaries reported, and what
//! stands in the members' logs. Nothing here is shared with the code under test.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use atoll_ownership::Grant;
use atoll_ownership::record::GroupRecord;
use atoll_topology::{CellId, Epoch, GroupId, MemberId, ShardId, Term};
use tracing::error;

use crate::member::{Disk, Volume, Write};

/// What a user was told about a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It was done.
    Acknowledged,
    /// It was surely not done.
    Failed,
    /// Nobody knows.
    Unknown,
}

/// How much happened: a run in which nothing happened shows nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Writes that users were told are done.
    pub acknowledged: u64,
    /// Writes that users were told are surely not done.
    pub failed: u64,
    /// Writes of which nobody knows.
    pub unknown: u64,
    /// Reads that were answered.
    pub reads: u64,
    /// Terms that were opened.
    pub opened: u64,
    /// Owner changes in place.
    pub in_place: u64,
    /// Tables that were seen in use.
    pub tables: u64,
}

/// Terms that a group may go through between two looks at its record: more is a race that nobody
/// wins.
const TERMS_MAX: u64 = 6;
/// How often records are looked at.
pub(crate) const LOOK_MS: u64 = 25;

#[derive(Default)]
struct State {
    violations: Vec<String>,
    /// By user: what became of each write that was sent.
    told: BTreeMap<String, BTreeMap<u64, Option<Outcome>>>,
    /// What primaries reported as committed, by group.
    committed: BTreeMap<GroupId, Vec<(String, u64)>>,
    /// The ownership under which each shard's last commit was reported.
    last: BTreeMap<ShardId, (Epoch, CellId)>,
    /// Ownerships whose primary was open.
    served: BTreeSet<(ShardId, u64)>,
    /// The last term that was opened, and by whom.
    opened: BTreeMap<GroupId, (Term, MemberId)>,
    /// Numbers of the group records, as last seen in the store.
    records: BTreeMap<GroupId, GroupRecord>,
    /// The first of each that named an open primary.
    first_records: BTreeMap<GroupId, GroupRecord>,
    /// Version of the table that each process uses, in which of its lives.
    tables: BTreeMap<String, (u64, String, u64)>,
    /// How often each process was started again.
    lives: BTreeMap<String, u64>,
    counts: Counts,
}

/// All oracles of one run. A cheap handle.
#[derive(Clone)]
pub(crate) struct Oracle {
    groups: Arc<BTreeMap<MemberId, GroupId>>,
    shards: Arc<BTreeMap<ShardId, GroupId>>,
    state: Arc<Mutex<State>>,
}

impl Oracle {
    /// For a world with these members, and shards in these groups.
    pub(crate) fn new(
        groups: BTreeMap<MemberId, GroupId>,
        shards: BTreeMap<ShardId, GroupId>,
    ) -> Self {
        Self {
            groups: Arc::new(groups),
            shards: Arc::new(shards),
            state: Arc::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was broken; empty if all is well.
    pub(crate) fn violations(&self) -> Vec<String> {
        self.state().violations.clone()
    }

    /// How much happened.
    pub(crate) fn counts(&self) -> Counts {
        self.state().counts
    }

    /// Something was broken.
    pub(crate) fn violation(&self, name: &str, what: &str) {
        self.state().broke(name, what);
    }

    /// A user is about to send a write.
    pub(crate) fn sends(&self, user: &str, number: u64) {
        let mut state = self.state();
        state
            .told
            .entry(user.to_owned())
            .or_default()
            .insert(number, None);
    }

    /// A user was told.
    pub(crate) fn told(&self, user: &str, number: u64, outcome: Outcome) {
        let mut state = self.state();
        match outcome {
            Outcome::Acknowledged => state.counts.acknowledged += 1,
            Outcome::Failed => state.counts.failed += 1,
            Outcome::Unknown => state.counts.unknown += 1,
        }
        let told = state.told.entry(user.to_owned()).or_default();
        told.insert(number, Some(outcome));
    }

    /// Writes that a user was told are done: every later read must show them.
    pub(crate) fn acknowledged_of(&self, user: &str) -> BTreeSet<u64> {
        let state = self.state();
        let told = state.told.get(user).into_iter().flatten();
        told.filter(|(_, outcome)| **outcome == Some(Outcome::Acknowledged))
            .map(|(number, _)| *number)
            .collect()
    }

    /// A user has read; `before` was acknowledged when the read began.
    pub(crate) fn read(&self, user: &str, before: &BTreeSet<u64>, numbers: &[u64]) {
        let mut state = self.state();
        state.counts.reads += 1;
        state.judge(user, before, numbers, "a read");
    }

    /// A primary reports a commit to its client.
    pub(crate) fn acknowledged(&self, write: &Write, epoch: Epoch) {
        let mut state = self.state();
        if let Some(group) = self.shards.get(&write.shard) {
            let commit = (write.user.clone(), write.number);
            state
                .committed
                .entry(group.clone())
                .or_default()
                .push(commit);
        }
        let now = (epoch, write.cell.clone());
        let before = state.last.insert(write.shard, now);
        if let Some((last, cell)) = before
            && (last.supersedes(epoch) || last == epoch && cell != write.cell)
        {
            let what = format!(
                "shard {}: {} committed under epoch {epoch} after {cell} under epoch {last}",
                write.shard, write.cell
            );
            state.broke("ONE_WRITER", &what);
        }
    }

    /// A member opens its port: everything that was reported in its group stands in its log.
    pub(crate) fn opens(&self, member: &MemberId, term: Term, volume: &Volume) {
        let Some(group) = self.groups.get(member) else {
            return;
        };
        let mut state = self.state();
        state.counts.opened += 1;
        let before = state.opened.insert(group.clone(), (term, member.clone()));
        if let Some((last, by)) = before
            && (last.supersedes(term) || last == term && by != *member)
        {
            let what = format!("{member} opens term {term} after {by} opened term {last}");
            state.broke("ONE_WRITER", &what);
        }
        if volume.end().position.term != term {
            let what = format!("{member} opens before the row of term {term} stands in its log");
            state.broke("HELD_UNTIL_OPEN", &what);
        }
        let writes: Vec<Write> = volume.writes().cloned().collect();
        state.holds_committed(group, member, &writes);
        let grants = volume.openings().flat_map(|(_, _, grants)| grants);
        state
            .served
            .extend(grants.map(|grant| (grant.shard, grant.epoch.get())));
    }

    /// Shards changed hands on an open primary.
    pub(crate) fn serves(&self, grants: &[Grant]) {
        let mut state = self.state();
        state.counts.in_place += 1;
        let pairs = grants.iter().map(|grant| (grant.shard, grant.epoch.get()));
        state.served.extend(pairs);
    }

    /// An application instance is handed a request under this ownership.
    pub(crate) fn handed(&self, cell: &CellId, shard: ShardId, epoch: u64) {
        let mut state = self.state();
        if !state.served.contains(&(shard, epoch)) {
            let what = format!(
                "{cell} was handed a request of shard {shard} under epoch {epoch}, which is not open"
            );
            state.broke("HELD_UNTIL_OPEN", &what);
        }
    }

    /// A process was started again: it begins with the table that it had kept.
    pub(crate) fn starts(&self, process: &str) {
        *self.state().lives.entry(process.to_owned()).or_default() += 1;
    }

    /// Which life of its own a process is in.
    pub(crate) fn life(&self, process: &str) -> u64 {
        self.state().lives.get(process).copied().unwrap_or(0)
    }

    /// A process used this table, in this life.
    pub(crate) fn uses(&self, (process, life): (&str, u64), world: &str, number: u64) {
        let mut state = self.state();
        state.counts.tables = state.counts.tables.max(number);
        let now = (life, world.to_owned(), number);
        let before = state.tables.insert(process.to_owned(), now);
        if let Some((then, same, last)) = before
            && then == life
            && (same != world || last > number)
        {
            let what = format!("{process} uses table {world}.{number} after table {same}.{last}");
            state.broke("EPOCH_GROWS", &what);
        }
    }

    /// A group record, as it stands in the store.
    pub(crate) fn record(&self, record: &GroupRecord) {
        let mut state = self.state();
        let group = record.group.clone();
        if record.open.is_some() {
            let first = state.first_records.entry(group.clone());
            first.or_insert_with(|| record.clone());
        }
        let before = state.records.insert(group, record.clone());
        let Some(before) = before else { return };
        let terms = record.term.get().saturating_sub(before.term.get());
        if terms > TERMS_MAX {
            let what = format!(
                "{} went through {terms} terms within {LOOK_MS} ms",
                record.group
            );
            state.broke("PACE", &what);
        }
        let mut back = before.term.supersedes(record.term);
        for shard in self.shards.keys() {
            let epoch = |r: &GroupRecord| r.run_of(*shard).map_or(Epoch::ZERO, |run| run.epoch);
            back |= epoch(&before).supersedes(epoch(record));
        }
        if back {
            let what = format!("the record of {} went back", record.group);
            state.broke("EPOCH_GROWS", &what);
        }
    }

    /// Whether a group's members have the same writes.
    pub(crate) fn agree(&self, group: &GroupId, members: &BTreeMap<MemberId, Disk>) -> bool {
        let logs = self.logs(group, members);
        logs.windows(2).all(|pair| pair[0].1 == pair[1].1)
    }

    fn logs<'m>(
        &self,
        group: &GroupId,
        members: &'m BTreeMap<MemberId, Disk>,
    ) -> Vec<(&'m MemberId, Vec<Write>)> {
        let of_group = |id: &MemberId| self.groups.get(id) == Some(group);
        members
            .iter()
            .filter(|(id, _)| of_group(id))
            .map(|(id, disk)| (id, disk.lock().writes().cloned().collect()))
            .collect()
    }

    /// The first record of a group, and the last.
    pub(crate) fn records_of(&self, group: &GroupId) -> Option<(GroupRecord, GroupRecord)> {
        let state = self.state();
        let first = state.first_records.get(group)?.clone();
        Some((first, state.records.get(group)?.clone()))
    }

    /// At the end, when everything is well again: every member has all that was reported, users'
    /// outcomes are true of what it has, and the members agree.
    pub(crate) fn settled(&self, group: &GroupId, members: &BTreeMap<MemberId, Disk>) {
        let logs = self.logs(group, members);
        let mut state = self.state();
        for pair in logs.windows(2) {
            if let [(a, first), (b, second)] = pair
                && first != second
            {
                let (first, second) = (first.len(), second.len());
                let what =
                    format!("{a} has {first} writes, {b} has {second}, and they are not the same");
                state.broke("SAME_ROWS", &what);
            }
        }
        for (id, writes) in logs {
            state.holds_committed(group, id, &writes);
            let users: BTreeSet<&str> = writes.iter().map(|write| write.user.as_str()).collect();
            for user in users {
                let of_user = writes.iter().filter(|write| write.user == user);
                let numbers: Vec<u64> = of_user.map(|write| write.number).collect();
                let told = state.told.get(user).into_iter().flatten();
                let acknowledged: BTreeSet<u64> = told
                    .filter(|(_, outcome)| **outcome == Some(Outcome::Acknowledged))
                    .map(|(number, _)| *number)
                    .collect();
                state.judge(user, &acknowledged, &numbers, &format!("the log of {id}"));
            }
        }
    }
}

impl State {
    fn broke(&mut self, name: &str, what: &str) {
        const VIOLATIONS_MAX: usize = 20;
        let text = format!("{name}: {what}");
        error!(violation = text, "an oracle cries");
        if self.violations.len() < VIOLATIONS_MAX && !self.violations.contains(&text) {
            self.violations.push(text);
        }
    }

    /// Every reported commit stands in this log exactly once, every other write at most once.
    fn holds_committed(&mut self, group: &GroupId, member: &MemberId, writes: &[Write]) {
        let mut seen: BTreeMap<(&str, u64), u32> = BTreeMap::new();
        for write in writes {
            *seen.entry((&write.user, write.number)).or_default() += 1;
        }
        let twice = seen.iter().find(|(_, count)| **count > 1);
        let twice = twice.map(|((user, number), _)| format!("{member} has {user}/{number} twice"));
        let committed = self.committed.get(group).into_iter().flatten();
        let missing: Vec<String> = committed
            .filter(|(user, number)| !seen.contains_key(&(user.as_str(), *number)))
            .map(|(user, number)| format!("{user}/{number}"))
            .collect();
        if let Some(what) = twice {
            self.broke("EXACTLY_ONCE", &what);
        }
        if !missing.is_empty() {
            let what = format!("{member} lacks {}", missing.join(" "));
            self.broke("ACKED_SURVIVES", &what);
        }
    }

    /// What a user may see: everything acknowledged, in order, and all once; nothing that surely
    /// failed.
    fn judge(&mut self, user: &str, before: &BTreeSet<u64>, numbers: &[u64], how: &str) {
        let told = self.told.get(user).cloned().unwrap_or_default();
        let seen: BTreeSet<u64> = numbers.iter().copied().collect();
        // One of which nobody knows may come after later ones: held at a router, say.
        let late = |number: &&u64| told.get(number) == Some(&Some(Outcome::Unknown));
        let sorted = numbers.iter().filter(|number| !late(number)).is_sorted();
        if seen.len() < numbers.len() || !sorted {
            let what = format!("{how} of {user} shows writes twice or out of order: {numbers:?}");
            self.broke("EXACTLY_ONCE", &what);
        }
        let missing: Vec<&u64> = before.difference(&seen).collect();
        if !missing.is_empty() {
            let what = format!("{how} of {user} lacks the acknowledged {missing:?}");
            self.broke("ACKED_SURVIVES", &what);
        }
        let failed = |number: &&u64| told.get(number) == Some(&Some(Outcome::Failed));
        let ghosts: Vec<&u64> = seen.iter().filter(failed).collect();
        if !ghosts.is_empty() {
            let what = format!("{how} of {user} shows {ghosts:?}, which it was told had failed");
            self.broke("FAILED_MEANS_FAILED", &what);
        }
    }
}
