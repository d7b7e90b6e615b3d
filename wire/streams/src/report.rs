//! What data planes say about themselves and about the cells that they see.

use atoll_routing::TableVersion;
use atoll_topology::{CellId, Epoch, GroupId, MemberId, ProcessId, RegionId, ShardId, Term};

use crate::proto::table as wire;
use crate::text::{self, DecodeError, Place};

/// Why a report is not one.
pub type ReportError = DecodeError;

/// What a data plane is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// HTTP, at a cell's edge.
    Gateway,
    /// SQL, in front of data groups.
    SqlRouter,
    /// Beside an application's instance.
    Sidecar,
}

/// What one data plane says, at least every 200 ms and at once when something changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Who.
    pub process: ProcessId,
    /// As what.
    pub role: Role,
    /// Where.
    pub region: RegionId,
    /// The cell that it serves.
    pub cell: Option<CellId>,
    /// What it received last; none asks for a snapshot.
    pub held: Option<TableVersion>,
    /// What every one of its worker threads uses.
    pub in_use: Option<TableVersion>,
    /// One for each run of shards that is switching.
    pub loads: Vec<ShardLoad>,
    /// What a router has read on open primaries.
    pub openings: Vec<Opening>,
    /// How cells look from here.
    pub cells: Vec<CellHealth>,
    /// Its wall clock.
    pub unix_ms: u64,
    /// Whether it is about to end.
    pub draining: bool,
    /// Of a gateway: how its clients' requests went.
    pub requests: Option<RequestCounts>,
}

/// Clients' requests at one gateway since the process started, each counted by the gateway that the
/// client asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RequestCounts {
    /// Ended with the cell's answer, be it a refusal of a wrong request.
    pub answered: u64,
    /// Ended with an error, and surely not executed, or answered so by the application.
    pub failed: u64,
    /// Ended so that nobody can tell whether they were executed.
    pub unknown: u64,
    /// Found the gate closed, each once.
    pub held: u64,
    /// Of these, not yet ended.
    pub held_now: u64,
}

/// Requests of a run of switching shards at one data plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardLoad {
    /// The run's first shard.
    pub first: ShardId,
    /// Its last, inclusive.
    pub last: ShardId,
    /// The coming owner's epoch.
    pub epoch: Epoch,
    /// Handed to an instance of the old cell by this process and not yet answered.
    pub in_flight: u64,
    /// Waiting at this process's gate.
    pub held: u64,
}

/// What a router has read on a group's open primary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opening {
    /// The group.
    pub group: GroupId,
    /// Its term, read there.
    pub term: Term,
    /// Where it was read.
    pub member: MemberId,
    /// The epochs read there.
    pub shards: Vec<(ShardId, Epoch)>,
}

/// How a cell looks from one data plane; counts since the process started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CellHealth {
    /// The cell.
    pub cell: CellId,
    /// Canary writes that were acknowledged in time.
    pub canary_ok: u64,
    /// Canary writes that were not.
    pub canary_failed: u64,
    /// Requests answered.
    pub requests: u64,
    /// Of these, failed by the cell.
    pub errors: u64,
    /// Of the last window.
    pub latency_p99_ms: u64,
    /// When it last answered well; 0: never.
    pub last_ok_unix_ms: u64,
}

/// What a mesh says to control: itself, and those of its receivers that have said something new.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshReport {
    /// The mesh.
    pub process: ProcessId,
    /// Where.
    pub region: RegionId,
    /// What it holds; none asks for a snapshot.
    pub held: Option<TableVersion>,
    /// Of its receivers.
    pub reports: Vec<Report>,
    /// Its wall clock.
    pub unix_ms: u64,
}

impl Report {
    /// Whether this report says something that a switch may be waiting for and `previous` does not:
    /// it is passed on at once.
    pub fn is_news_after(&self, previous: &Self) -> bool {
        let drained = |report: &Self| -> Vec<(ShardId, ShardId, Epoch, u64)> {
            report
                .loads
                .iter()
                .map(|l| (l.first, l.last, l.epoch, l.in_flight))
                .collect()
        };
        self.in_use != previous.in_use
            || self.draining != previous.draining
            || self.openings != previous.openings
            || drained(self) != drained(previous)
    }
}

impl From<Role> for wire::Role {
    fn from(role: Role) -> Self {
        match role {
            Role::Gateway => Self::Gateway,
            Role::SqlRouter => Self::SqlRouter,
            Role::Sidecar => Self::Sidecar,
        }
    }
}

impl From<&Report> for wire::DataPlaneReport {
    fn from(report: &Report) -> Self {
        let load = |load: &ShardLoad| wire::ShardLoad {
            first: u32::from(load.first.0),
            last: u32::from(load.last.0),
            epoch: load.epoch.get(),
            in_flight: load.in_flight,
            held: load.held,
        };
        let opening = |opening: &Opening| wire::Opening {
            group: opening.group.to_string(),
            term: opening.term.get(),
            member: opening.member.to_string(),
            shards: opening
                .shards
                .iter()
                .map(|(shard, epoch)| wire::opening::ShardEpoch {
                    shard: u32::from(shard.0),
                    epoch: epoch.get(),
                })
                .collect(),
        };
        let health = |health: &CellHealth| wire::CellHealth {
            cell: health.cell.to_string(),
            canary_ok: health.canary_ok,
            canary_failed: health.canary_failed,
            requests: health.requests,
            errors: health.errors,
            latency_p99_ms: health.latency_p99_ms,
            last_ok_unix_ms: health.last_ok_unix_ms,
        };
        Self {
            process: report.process.to_string(),
            role: wire::Role::from(report.role).into(),
            region: report.region.to_string(),
            cell: report
                .cell
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            held: report.held.as_ref().map(text::version),
            in_use: report.in_use.as_ref().map(text::version),
            loads: report.loads.iter().map(load).collect(),
            openings: report.openings.iter().map(opening).collect(),
            cells: report.cells.iter().map(health).collect(),
            unix_ms: report.unix_ms,
            draining: report.draining,
            requests: report.requests.map(|counts| wire::RequestCounts {
                answered: counts.answered,
                failed: counts.failed,
                unknown: counts.unknown,
                held: counts.held,
                held_now: counts.held_now,
            }),
        }
    }
}

impl TryFrom<wire::DataPlaneReport> for Report {
    type Error = ReportError;

    fn try_from(report: wire::DataPlaneReport) -> Result<Self, ReportError> {
        let place = format!("report of {:?}", report.process);
        let place = Place(&place);
        let role = match report.role() {
            wire::Role::Gateway => Role::Gateway,
            wire::Role::SqlRouter => Role::SqlRouter,
            wire::Role::Sidecar => Role::Sidecar,
            wire::Role::Unspecified => return Err(place.absent("role")),
        };
        let load = |load: &wire::ShardLoad| {
            Ok(ShardLoad {
                first: place.shard("first", load.first)?,
                last: place.shard("last", load.last)?,
                epoch: Epoch::new(load.epoch),
                in_flight: load.in_flight,
                held: load.held,
            })
        };
        let opening = |opening: &wire::Opening| {
            let shards = opening
                .shards
                .iter()
                .map(|read| Ok((place.shard("shard", read.shard)?, Epoch::new(read.epoch))))
                .collect::<Result<_, DecodeError>>()?;
            Ok(Opening {
                group: place.id(&opening.group)?,
                term: Term::new(opening.term),
                member: place.id(&opening.member)?,
                shards,
            })
        };
        let health = |health: &wire::CellHealth| {
            Ok(CellHealth {
                cell: place.id(&health.cell)?,
                canary_ok: health.canary_ok,
                canary_failed: health.canary_failed,
                requests: health.requests,
                errors: health.errors,
                latency_p99_ms: health.latency_p99_ms,
                last_ok_unix_ms: health.last_ok_unix_ms,
            })
        };
        Ok(Self {
            process: place.id(&report.process)?,
            role,
            region: place.id(&report.region)?,
            cell: place.id_or_none(&report.cell)?,
            loads: report
                .loads
                .iter()
                .map(load)
                .collect::<Result<_, DecodeError>>()?,
            openings: report
                .openings
                .iter()
                .map(opening)
                .collect::<Result<_, DecodeError>>()?,
            cells: report
                .cells
                .iter()
                .map(health)
                .collect::<Result<_, DecodeError>>()?,
            held: place.version_or_none(report.held)?,
            in_use: place.version_or_none(report.in_use)?,
            unix_ms: report.unix_ms,
            draining: report.draining,
            requests: report.requests.map(|counts| RequestCounts {
                answered: counts.answered,
                failed: counts.failed,
                unknown: counts.unknown,
                held: counts.held,
                held_now: counts.held_now,
            }),
        })
    }
}

impl From<&MeshReport> for wire::MeshReport {
    fn from(report: &MeshReport) -> Self {
        Self {
            process: report.process.to_string(),
            region: report.region.to_string(),
            held: report.held.as_ref().map(text::version),
            reports: report.reports.iter().map(Into::into).collect(),
            unix_ms: report.unix_ms,
        }
    }
}

impl TryFrom<wire::MeshReport> for MeshReport {
    type Error = ReportError;

    fn try_from(report: wire::MeshReport) -> Result<Self, ReportError> {
        let place = format!("report of mesh {:?}", report.process);
        let place = Place(&place);
        Ok(Self {
            process: place.id(&report.process)?,
            region: place.id(&report.region)?,
            held: place.version_or_none(report.held)?,
            reports: report
                .reports
                .into_iter()
                .map(Report::try_from)
                .collect::<Result<_, ReportError>>()?,
            unix_ms: report.unix_ms,
        })
    }
}
