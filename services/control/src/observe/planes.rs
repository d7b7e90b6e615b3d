//! What the data planes say: which table each of them uses, what is in flight, what they see.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use atoll_ownership::Grant;
use atoll_ownership::record::Run;
use atoll_streams::{Report, Role};
use atoll_topology::{CellId, GroupId, ProcessId, RegionId, Term};
use tokio::sync::watch;
use tokio::time::Instant;

/// A data plane that has not reported for this long is not waited for: it will meet the fence.
pub(crate) const LIVE: Duration = Duration::from_millis(1_000);

/// A replica that has just started waits so long for the data planes that it knows of: a mesh takes
/// its time to find another source. Whoever is not heard by then will meet the fence.
pub(crate) const FOUND: Duration = Duration::from_millis(2_000);

/// Holds that are remembered of each data plane, for proofs.
const HOLDS_MAX: usize = 200;

/// One data plane's last report.
#[derive(Debug, Clone)]
pub(crate) struct Plane {
    /// What it said.
    pub(crate) report: Report,
    /// When it was heard, on our clock.
    pub(crate) heard: Instant,
}

/// All data planes.
#[derive(Debug)]
pub(crate) struct Planes {
    planes: Mutex<BTreeMap<ProcessId, Plane>>,
    meshes: Mutex<BTreeMap<ProcessId, (RegionId, Instant)>>,
    changed: watch::Sender<u64>,
    /// What each had waiting, by its own clock.
    holds: Mutex<BTreeMap<ProcessId, VecDeque<(u64, u64)>>>,
    /// Since when we have listened.
    since: Instant,
}

impl Default for Planes {
    fn default() -> Self {
        Self {
            planes: Mutex::default(),
            meshes: Mutex::default(),
            changed: watch::Sender::new(0),
            holds: Mutex::default(),
            since: Instant::now(),
        }
    }
}

impl Planes {
    /// A report has come in.
    pub(crate) fn heard(&self, report: Report) {
        let held: u64 = report.loads.iter().map(|load| load.held).sum();
        if held > 0 {
            let mut holds = self.holds.lock().unwrap_or_else(PoisonError::into_inner);
            let own = holds.entry(report.process.clone()).or_default();
            if own.len() >= HOLDS_MAX {
                own.pop_front();
            }
            own.push_back((report.unix_ms, held));
        }
        let plane = Plane {
            heard: Instant::now(),
            report,
        };
        let process = plane.report.process.clone();
        self.planes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(process, plane);
        self.changed.send_modify(|count| *count += 1);
    }

    /// Most requests that a data plane has said to hold at once since then.
    pub(crate) fn held_most(&self, process: &ProcessId, since_unix_ms: u64) -> u64 {
        let holds = self.holds.lock().unwrap_or_else(PoisonError::into_inner);
        let own = holds.get(process).into_iter().flatten();
        let since = own.filter(|(at, _)| *at >= since_unix_ms);
        since.map(|(_, held)| *held).max().unwrap_or(0)
    }

    /// A mesh is there.
    pub(crate) fn mesh(&self, process: &ProcessId, region: &RegionId) {
        let mut meshes = self.meshes.lock().unwrap_or_else(PoisonError::into_inner);
        meshes.insert(process.clone(), (region.clone(), Instant::now()));
    }

    /// All meshes that were ever heard, with where they are and when that was.
    pub(crate) fn meshes(&self) -> BTreeMap<ProcessId, (RegionId, Instant)> {
        self.meshes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Everything that was ever heard, the newest of each.
    pub(crate) fn all(&self) -> Vec<Plane> {
        self.planes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect()
    }

    /// Those that are live.
    pub(crate) fn live(&self) -> Vec<Plane> {
        let mut planes = self.all();
        planes.retain(|plane| plane.heard.elapsed() < LIVE && !plane.report.draining);
        planes
    }

    /// Waits until each of these was heard once, or has had its time to be: before that, that a data
    /// plane is not live is no fact about it.
    pub(crate) async fn found(&self, expected: &[ProcessId]) {
        let mut changed = self.changed.subscribe();
        let all = async {
            loop {
                changed.borrow_and_update();
                {
                    let heard = self.planes.lock().unwrap_or_else(PoisonError::into_inner);
                    if expected.iter().all(|process| heard.contains_key(process)) {
                        return;
                    }
                }
                // The sender lives as long as `self`.
                let _ended = changed.changed().await;
            }
        };
        let _missing = tokio::time::timeout_at(self.since + FOUND, all).await;
    }

    /// Waits until `holds` is true of the live data planes; looks again at each report, and often
    /// enough to notice one that stopped being live.
    pub(crate) async fn until(&self, holds: impl Fn(&[Plane]) -> bool) {
        let mut changed = self.changed.subscribe();
        loop {
            changed.borrow_and_update();
            if holds(&self.live()) {
                return;
            }
            // The sender lives as long as `self`, so the only other end is the time-out.
            let _ended = tokio::time::timeout(LIVE / 4, changed.changed()).await;
        }
    }
}

/// Whether every one of these uses the table of this number, or a newer one.
pub(crate) fn all_use(planes: &[Plane], number: u64) -> bool {
    planes.iter().all(|plane| uses(&plane.report, number))
}

fn uses(report: &Report, number: u64) -> bool {
    report
        .in_use
        .as_ref()
        .is_some_and(|version| version.number >= number)
}

/// Whether the data planes of one role use the table and have nothing in flight for any shard of
/// these runs.
pub(crate) fn drained(planes: &[Plane], role: Role, number: u64, runs: &[Run]) -> bool {
    let mut of_role = planes.iter().filter(|plane| plane.report.role == role);
    of_role.all(|plane| {
        uses(&plane.report, number)
            && plane.report.loads.iter().all(|load| {
                let waits = |run: &Run| load.first <= run.last && run.first <= load.last;
                load.in_flight == 0 || !runs.iter().any(waits)
            })
    })
}

/// Whether a live router of each new owner has read its epochs on the primary of `term`.
pub(crate) fn read_by_owners(
    planes: &[Plane],
    group: &GroupId,
    term: Term,
    grants: &[Grant],
) -> bool {
    grants.iter().all(|grant| {
        planes.iter().any(|plane| {
            let report = &plane.report;
            report.role == Role::SqlRouter
                && report.cell.as_ref() == Some(&grant.cell)
                && report.openings.iter().any(|opening| {
                    opening.group == *group
                        && opening.term == term
                        && opening.shards.contains(&(grant.shard, grant.epoch))
                })
        })
    })
}

/// Live routers of a cell.
pub(crate) fn has_router(planes: &[Plane], cell: &CellId) -> bool {
    planes.iter().any(|plane| {
        plane.report.role == Role::SqlRouter && plane.report.cell.as_ref() == Some(cell)
    })
}
