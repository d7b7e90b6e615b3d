//! What every process of a world does now.

use std::collections::BTreeMap;
use std::net::SocketAddrV4;
use std::path::PathBuf;

use atoll_hosts::{ProcessRef, State};
use atoll_topology::ProcessId;
use serde::{Deserialize, Serialize};

use crate::plan::Place;

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Doing {
    /// It runs, but has not said that it serves.
    Starting,
    /// It serves.
    Ready,
    /// It is frozen by `dev pause`.
    Paused,
    /// It ended by itself and is started again shortly.
    BackOff,
    /// It was ended by `dev kill`, and stays so until `dev start`.
    Down,
    /// It does not run, and there is no supervisor that would start it.
    Gone,
}

impl Doing {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Paused => "paused",
            Self::BackOff => "back-off",
            Self::Down => "down",
            Self::Gone => "gone",
        }
    }
}

/// One process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessStatus {
    /// Its name.
    pub name: ProcessId,
    /// Its role and place.
    #[serde(flatten)]
    pub place: Place,
    /// Its pid and start time, while it lives.
    #[serde(flatten)]
    pub process: Option<ProcessRef>,
    /// What it does.
    pub state: Doing,
    /// Its addresses by protocol.
    pub addresses: BTreeMap<String, SocketAddrV4>,
    /// How often it was started again after it ended by itself.
    pub restarts: u32,
    /// How it ended last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_end: Option<String>,
    /// Its log.
    pub log: PathBuf,
}

/// A world.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorldStatus {
    /// Its directory.
    pub directory: PathBuf,
    /// W of its addresses.
    pub world: u8,
    /// The supervisor's pid and start time.
    pub supervisor: ProcessRef,
    /// All processes.
    pub processes: Vec<ProcessStatus>,
}

impl WorldStatus {
    /// Corrects what was written by what the kernel says now.
    pub fn look(&mut self) {
        let supervised = self.supervisor.is_alive();
        for each in &mut self.processes {
            let state = each.process.map_or(State::Gone, ProcessRef::state);
            each.state = match (state, each.state) {
                (State::Stopped, _) => Doing::Paused,
                (State::Running, Doing::Paused) => Doing::Ready,
                (State::Running, doing) => doing,
                (State::Gone, Doing::Down) => Doing::Down,
                (State::Gone, _) if supervised => Doing::BackOff,
                (State::Gone, _) => Doing::Gone,
            };
            if state == State::Gone {
                each.process = None;
            }
        }
    }

    /// The processes that a name means, as in `dev kill NAME`.
    pub fn meant_by<'s>(&'s self, name: &'s str) -> impl Iterator<Item = &'s ProcessStatus> {
        self.processes
            .iter()
            .filter(move |p| p.place.answers_to(name))
    }
}
