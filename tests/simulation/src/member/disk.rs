//! What a simulated member keeps over a crash: its promise and its log.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use atoll_ownership::member::Durable;
use atoll_ownership::{Grant, LogEnd, TermRow};
use atoll_topology::{CellId, Lsn, Position, ShardId, Term};
use serde::{Deserialize, Serialize};

/// A user's write: the unit that the oracles count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Write {
    /// Whose data.
    pub(crate) shard: ShardId,
    /// The user.
    pub(crate) user: String,
    /// Counts the user's writes, from 1.
    pub(crate) number: u64,
    /// With whose privilege it was written.
    pub(crate) cell: CellId,
}

/// One record of a log; its place in the log is its LSN.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Entry {
    /// A promotion: from here on the log is on another timeline.
    Promotion,
    /// An opening transaction, all or nothing.
    Opening {
        /// Its term row, if it has one.
        row: Option<TermRow>,
        /// Who owns what from here on.
        grants: Vec<Grant>,
    },
    /// A client's write.
    Write(Write),
}

/// An entry and the timeline on which it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Logged {
    /// PostgreSQL's timeline.
    pub(crate) timeline: u32,
    /// What.
    pub(crate) entry: Entry,
}

/// A member's volume.
#[derive(Debug, Default)]
pub(crate) struct Volume {
    /// The nonce that it was admitted with, and the promise file.
    pub(crate) promise: Option<(String, Durable)>,
    /// Everything that was flushed.
    pub(crate) log: Vec<Logged>,
    /// Where the opening transactions stand in the log.
    openings: Vec<usize>,
}

/// A member's disk: survives its process. A cheap handle.
#[derive(Debug, Clone, Default)]
pub(crate) struct Disk(Arc<Mutex<Volume>>);

impl Disk {
    /// Looks at it, or changes it.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Volume> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Volume {
    /// Appends.
    pub(crate) fn push(&mut self, logged: Logged) {
        if matches!(logged.entry, Entry::Opening { .. }) {
            self.openings.push(self.log.len());
        }
        self.log.push(logged);
    }

    /// Takes another member's log, after a rewind or a clone.
    pub(crate) fn replace(&mut self, log: Vec<Logged>) {
        self.log.clear();
        self.openings.clear();
        log.into_iter().for_each(|logged| self.push(logged));
    }

    /// Timeline on which the log ends.
    pub(crate) fn timeline(&self) -> u32 {
        self.log.last().map_or(1, |logged| logged.timeline)
    }

    /// The openings, oldest first, with their places.
    pub(crate) fn openings(
        &self,
    ) -> impl DoubleEndedIterator<Item = (usize, &Option<TermRow>, &[Grant])> {
        self.openings
            .iter()
            .filter_map(|at| match self.log.get(*at) {
                Some(Logged {
                    entry: Entry::Opening { row, grants },
                    ..
                }) => Some((*at, row, grants.as_slice())),
                _ => None,
            })
    }

    /// The term rows, oldest first.
    pub(crate) fn rows(&self) -> Vec<TermRow> {
        self.openings()
            .filter_map(|(_, row, _)| row.clone())
            .collect()
    }

    /// Where the log ends.
    pub(crate) fn end(&self) -> LogEnd {
        let term = self
            .openings()
            .rev()
            .find_map(|(_, row, _)| row.as_ref().map(|row| row.term));
        let position = Position {
            term: term.unwrap_or(Term::new(1)),
            lsn: Lsn(self.log.len() as u64),
        };
        LogEnd {
            position,
            timeline: self.timeline(),
        }
    }

    /// Where this log leaves the timeline of its last term row: at the promotion after it, or at
    /// its end.
    pub(crate) fn fork(&self) -> Lsn {
        let last = self
            .openings()
            .rev()
            .find(|(_, row, _)| row.is_some())
            .map(|(at, _, _)| at);
        let timeline = last
            .and_then(|at| self.log.get(at))
            .map_or(1, |logged| logged.timeline);
        let after = last.map_or(0, |at| at + 1);
        let left = self.log[after..]
            .iter()
            .position(|logged| logged.timeline != timeline);
        Lsn(left.map_or(self.log.len(), |offset| after + offset) as u64)
    }

    /// All writes, in order.
    pub(crate) fn writes(&self) -> impl Iterator<Item = &Write> {
        self.log.iter().filter_map(|logged| match &logged.entry {
            Entry::Write(write) => Some(write),
            Entry::Promotion | Entry::Opening { .. } => None,
        })
    }
}
