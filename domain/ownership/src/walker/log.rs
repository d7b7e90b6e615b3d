//! A write-ahead log as far as the protocol can see it, and the privileges that it gives.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;

use atoll_topology::{Epoch, Lsn, Position, ShardId, Term};

use crate::messages::{Grant, LogEnd, TermRow};

/// Shards of one group.
pub(super) const SHARDS: u16 = 2;

/// A cell, by its place in `World::cells`.
pub(super) type Cell = u8;

/// One record; its place in the log is its LSN.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Entry {
    /// A promotion, by this member: from here on the log is on another timeline.
    Promotion(u8),
    /// An opening transaction: its term row, if it has one, and the grants, all or nothing.
    Opening(Rc<Opening>),
    /// The barrier of a policy change.
    Policy(u64),
    /// A client's write.
    Write(u32),
}

/// An opening transaction, as it was written.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Opening {
    pub(super) row: Option<TermRow>,
    pub(super) grants: Vec<Granted>,
    /// Written on a primary that went on serving.
    pub(super) in_place: bool,
}

/// A shard given to a cell, and the cells that lost it in the same transaction.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Granted {
    pub(super) shard: ShardId,
    pub(super) epoch: Epoch,
    pub(super) cell: Cell,
    /// Everybody else, unless a mutant is at work.
    pub(super) revoked: Vec<Cell>,
}

/// What the log says of one shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub(super) struct Owned {
    pub(super) epoch: Epoch,
    pub(super) cell: Cell,
    /// Cells that may write, one bit each.
    writers: u8,
}

impl Owned {
    pub(super) fn lets(self, cell: Cell) -> bool {
        self.writers & (1 << cell) != 0
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Logged {
    timeline: u32,
    entry: Entry,
    /// Names this entry with everything before it.
    chain: u64,
}

/// A log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Log {
    entries: Vec<Logged>,
    rows: Vec<TermRow>,
    /// The last term that was won, in place or by a promotion; not one that was only kept.
    led: Term,
    owned: [Owned; SHARDS as usize],
}

impl Hash for Log {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.entries.len(), self.chain()).hash(state);
    }
}

impl Log {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn rows(&self) -> &[TermRow] {
        &self.rows
    }

    /// The owner of a shard, none before the first grant.
    pub(super) fn owned(&self, shard: ShardId) -> Option<Owned> {
        let owned = self.owned[usize::from(shard.0 % SHARDS)];
        (owned.epoch != Epoch::ZERO).then_some(owned)
    }

    /// The last term in it for which members were recruited: whoever carries it has promised that
    /// much. A term that calls off is written in place, and carried also under the term before.
    pub(super) fn led(&self) -> Term {
        self.led
    }

    /// Timeline on which the log ends.
    pub(super) fn timeline(&self) -> u32 {
        self.entries.last().map_or(1, |last| last.timeline)
    }

    pub(super) fn term(&self) -> Term {
        self.rows.last().map_or(Term::new(1), |row| row.term)
    }

    pub(super) fn end(&self) -> LogEnd {
        LogEnd {
            position: Position {
                term: self.term(),
                lsn: Lsn(self.len() as u64),
            },
            timeline: self.timeline(),
        }
    }

    /// Names the whole log.
    pub(super) fn chain(&self) -> u64 {
        self.entries.last().map_or(0, |last| last.chain)
    }

    /// Names the log up to and with the entry at `at`.
    pub(super) fn chain_at(&self, at: usize) -> Option<u64> {
        self.entries.get(at).map(|logged| logged.chain)
    }

    /// Whether a row was written that began a primaryship after the entry at `at`.
    pub(super) fn led_anew_after(&self, at: usize) -> bool {
        self.entries.iter().skip(at + 1).any(|logged| {
            matches!(&logged.entry, Entry::Opening(opening)
                if opening.row.is_some() && !opening.in_place)
        })
    }

    pub(super) fn append(&mut self, entry: Entry) {
        let timeline = self.timeline();
        self.append_on(timeline, entry);
    }

    pub(super) fn append_on(&mut self, timeline: u32, entry: Entry) {
        let mut hasher = DefaultHasher::new();
        (self.chain(), timeline, &entry).hash(&mut hasher);
        let chain = hasher.finish();
        self.take(Logged {
            timeline,
            entry,
            chain,
        });
    }

    fn take(&mut self, logged: Logged) {
        if let Entry::Opening(opening) = &logged.entry {
            self.rows.extend(opening.row.clone());
            if let Some(row) = opening.row.as_ref().filter(|_| !opening.in_place) {
                self.led = row.term;
            }
            for granted in &opening.grants {
                let owned = &mut self.owned[usize::from(granted.shard.0 % SHARDS)];
                owned.epoch = granted.epoch;
                owned.cell = granted.cell;
                for cell in &granted.revoked {
                    owned.writers &= !(1 << cell);
                }
                owned.writers |= 1 << granted.cell;
            }
        }
        self.entries.push(logged);
    }

    /// Takes the next entries of an upstream whose log begins with this one.
    pub(super) fn stream(&mut self, upstream: &Self, entries: usize) {
        for logged in upstream.entries.iter().skip(self.len()).take(entries) {
            self.take(logged.clone());
        }
    }

    pub(super) fn begins(&self, other: &Self) -> bool {
        match self.len() {
            0 => true,
            len => other.chain_at(len - 1) == Some(self.chain()),
        }
    }

    /// Whether PostgreSQL would stream to a standby with this log: it knows the standby's timeline
    /// and had not left it before the standby's end.
    pub(super) fn would_stream_to(&self, standby: &Self) -> bool {
        let timeline = standby.timeline();
        let reach = self.entries.iter().rposition(|l| l.timeline == timeline);
        let reach = reach.map_or(0, |last| last + 1);
        let left = match self.entries.get(reach) {
            // The first promotion, or the switch to the next timeline.
            Some(_) if reach > 0 || timeline <= 1 => reach,
            Some(_) => return false,
            None => self.len(),
        };
        standby.len() <= left
    }

    /// How much of this log the other one has too.
    pub(super) fn common(&self, other: &Self) -> usize {
        let both = self.len().min(other.len());
        let same = |at: &usize| self.entries[*at].chain == other.entries[*at].chain;
        // Chains agree up to a point and never again.
        (0..both).rev().find(same).map_or(0, |last| last + 1)
    }

    pub(super) fn truncate(&mut self, len: usize) {
        let mut left = Self::default();
        left.stream(self, len);
        *self = left;
    }

    /// Where this log leaves the timeline of its last term row: at the promotion after it, or at
    /// its end.
    pub(super) fn fork(&self) -> Lsn {
        let is_row =
            |l: &Logged| matches!(&l.entry, Entry::Opening(opening) if opening.row.is_some());
        let last = self.entries.iter().rposition(is_row);
        let timeline = last.map_or(1, |at| self.entries[at].timeline);
        let after = last.map_or(0, |at| at + 1);
        let left = self.entries[after..]
            .iter()
            .position(|l| l.timeline != timeline);
        Lsn(left.map_or(self.len(), |offset| after + offset) as u64)
    }

    /// Whether an opening transaction would find itself stale here.
    pub(super) fn stale(&self, grants: &[Grant]) -> bool {
        grants.iter().any(|grant| {
            self.owned(grant.shard)
                .is_some_and(|owned| !grant.epoch.supersedes(owned.epoch))
        })
    }
}
