//! What the supervisor wants of every process and what it sees of it; one place, many readers.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use atoll_hosts::ProcessRef;
use atoll_topology::ProcessId;
use tokio::sync::watch;

use crate::directory::Directory;
use crate::plan::Place;
use crate::status::{Doing, ProcessStatus, WorldStatus};

/// What is wanted of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    /// It runs, and is started again when it ends.
    Run,
    /// It stays down.
    Rest,
    /// The world ends.
    End,
}

#[derive(Debug)]
struct Entry {
    status: ProcessStatus,
    wish: watch::Sender<Wish>,
}

/// All processes of the world.
#[derive(Debug)]
pub(crate) struct Board {
    directory: Directory,
    world: u8,
    supervisor: ProcessRef,
    entries: Mutex<BTreeMap<ProcessId, Entry>>,
    order: Vec<ProcessId>,
    changes: watch::Sender<u64>,
}

impl Board {
    pub(crate) fn new(
        directory: &Directory,
        world: u8,
        supervisor: ProcessRef,
        places: &[Place],
    ) -> Self {
        let entry = |place: &Place| {
            let status = ProcessStatus {
                name: place.id.clone(),
                place: place.clone(),
                process: None,
                state: Doing::Down,
                addresses: place.addresses(),
                restarts: 0,
                last_end: None,
                log: directory.log_of(place.id.as_str()),
            };
            (
                place.id.clone(),
                Entry {
                    status,
                    wish: watch::Sender::new(Wish::Rest),
                },
            )
        };
        Self {
            directory: directory.clone(),
            world,
            supervisor,
            entries: Mutex::new(places.iter().map(entry).collect()),
            order: places.iter().map(|p| p.id.clone()).collect(),
            changes: watch::Sender::new(0),
        }
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<ProcessId, Entry>> {
        // Every change is one assignment: a panic in between leaves nothing half done.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, id: &ProcessId, change: impl FnOnce(&mut ProcessStatus)) {
        if let Some(entry) = self.entries().get_mut(id) {
            change(&mut entry.status);
        }
        self.changes.send_modify(|n| *n += 1);
    }

    /// Told after every change.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Told what is wanted of one process.
    pub(crate) fn wishes(&self, id: &ProcessId) -> Option<watch::Receiver<Wish>> {
        self.entries().get(id).map(|e| e.wish.subscribe())
    }

    /// Says what is wanted of some processes.
    pub(crate) fn want(&self, ids: &[ProcessId], wish: Wish) {
        let entries = self.entries();
        for entry in ids.iter().filter_map(|id| entries.get(id)) {
            entry.wish.send_replace(wish);
        }
    }

    /// A process was started.
    pub(crate) fn started(&self, id: &ProcessId, process: ProcessRef) {
        self.change(id, |status| {
            status.process = Some(process);
            status.state = Doing::Starting;
        });
    }

    /// A process serves.
    pub(crate) fn serves(&self, id: &ProcessId) {
        self.change(id, |status| status.state = Doing::Ready);
    }

    /// A process ended, or could not be started.
    pub(crate) fn ended(&self, id: &ProcessId, how: String, next: Doing) {
        self.change(id, |status| {
            status.process = None;
            status.state = next;
            status.last_end = Some(how);
            status.restarts += u32::from(next == Doing::BackOff);
        });
    }

    /// Something changed that only the kernel knows (frozen, thawed).
    pub(crate) fn look_again(&self) {
        self.changes.send_modify(|n| *n += 1);
    }

    /// Everything as it is now.
    pub(crate) fn status(&self) -> WorldStatus {
        let entries = self.entries();
        let mut status = WorldStatus {
            directory: self.directory.root().to_path_buf(),
            world: self.world,
            supervisor: self.supervisor,
            processes: self
                .order
                .iter()
                .filter_map(|id| entries.get(id).map(|e| e.status.clone()))
                .collect(),
        };
        drop(entries);
        status.look();
        status
    }
}
