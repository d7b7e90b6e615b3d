//! What detection concludes. Every verdict names the terms and epochs that it judged, so that an
//! op that it leads to is refused where the world has moved on.

use std::fmt;

use atoll_topology::{CellId, Epoch, GroupId, MemberId, RegionId, Term, ZoneId};

use crate::reports::RunView;

/// What is concluded at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// A data group needs a new primary.
    Failover(FailoverVerdict),
    /// A cell, zone or city is gone: its shards need other owners.
    Lost(LostVerdict),
    /// Too much is suspect at once to act: automatic owner changes stop, a person is paged.
    Frozen(FrozenVerdict),
}

/// A data group needs a new primary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailoverVerdict {
    /// Which group.
    pub group: GroupId,
    /// The open term that was judged.
    pub term: Term,
    /// The newest epoch of its shards.
    pub epoch: Epoch,
    /// The running op that is to be taken over.
    pub over: Option<Term>,
    /// Who is lost: the primary, or the target of `over`.
    pub lost: MemberId,
    /// What it rests on.
    pub why: Why,
}

/// What a group verdict rests on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// Its agent saw PostgreSQL end without having ordered it.
    Exited,
    /// Its agent is alive and does not lead the open term: it was restarted, and a primary never
    /// restarts as one.
    Restarted,
    /// Members in different failure domains have missed its heartbeat.
    Silent {
        /// Who.
        observers: Vec<MemberId>,
    },
    /// The running op is past its deadline.
    Overdue,
}

/// A place.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// One cell.
    Cell {
        /// Which.
        cell: CellId,
        /// Where it was.
        region: RegionId,
        /// Its zones' only one; none where it has two.
        zone: Option<ZoneId>,
    },
    /// A data centre.
    Zone {
        /// Which.
        zone: ZoneId,
        /// Its city.
        region: RegionId,
    },
    /// A city.
    Region {
        /// Which.
        region: RegionId,
    },
}

/// A place is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostVerdict {
    /// What is gone.
    pub scope: Scope,
    /// Its cells that own shards.
    pub cells: Vec<CellId>,
    /// The groups that store those shards, as they were judged.
    pub judged: Vec<Judged>,
    /// What it rests on.
    pub signals: Vec<Signal>,
}

/// One group of a verdict on a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    /// Which group.
    pub group: GroupId,
    /// Its open term.
    pub term: Term,
    /// The runs of shards that the lost cells own.
    pub runs: Vec<RunView>,
}

/// One of the three kinds of signals about a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SignalKind {
    /// Canary writes through the real path fail.
    Canary,
    /// Errors or latency of real requests.
    Errors,
    /// The cell itself says nothing any more.
    Silent,
}

/// A signal as seen from one region.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Signal {
    /// Which.
    pub kind: SignalKind,
    /// Seen from where.
    pub from: RegionId,
    /// Since when.
    pub since_ms: u64,
}

/// Too much is suspect at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrozenVerdict {
    /// The regions that are suspect.
    pub regions: Vec<RegionId>,
}

impl Verdict {
    /// Whether a person must look, whatever else happens.
    pub fn pages(&self) -> bool {
        matches!(self, Self::Frozen(_))
    }
}

impl LostVerdict {
    /// Whether the place says nothing itself any more, or only others speak against it.
    pub fn is_silent(&self) -> bool {
        self.signals
            .iter()
            .any(|signal| signal.kind == SignalKind::Silent)
    }
}

impl Scope {
    /// The city that it lies in.
    pub fn region(&self) -> &RegionId {
        match self {
            Self::Cell { region, .. } | Self::Zone { region, .. } | Self::Region { region } => {
                region
            }
        }
    }

    /// The zone that it is or lies in, where it is not more than one.
    pub fn zone(&self) -> Option<&ZoneId> {
        match self {
            Self::Cell { zone, .. } => zone.as_ref(),
            Self::Zone { zone, .. } => Some(zone),
            Self::Region { .. } => None,
        }
    }
}

fn join<T: fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<_> = items.into_iter().map(|item| item.to_string()).collect();
    items.join(", ")
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failover(verdict) => verdict.fmt(f),
            Self::Lost(verdict) => verdict.fmt(f),
            Self::Frozen(verdict) => verdict.fmt(f),
        }
    }
}

impl fmt::Display for FailoverVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            group,
            term,
            epoch,
            lost,
            why,
            ..
        } = self;
        write!(
            f,
            "group {group} at term {term}, epoch {epoch}: {lost} {why}"
        )?;
        match self.over {
            Some(over) => write!(f, " (takes over the op of term {over})"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited => write!(f, "exited, its agent says"),
            Self::Restarted => write!(f, "was restarted and does not lead"),
            Self::Silent { observers } => write!(f, "is silent to {}", join(observers)),
            Self::Overdue => write!(f, "has not finished by the deadline"),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cell { cell, region, .. } => write!(f, "cell {cell} in {region}"),
            Self::Zone { zone, region } => write!(f, "zone {zone} in {region}"),
            Self::Region { region } => write!(f, "region {region}"),
        }
    }
}

impl fmt::Display for LostVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is lost: {}", self.scope, join(&self.signals))?;
        for judged in &self.judged {
            let runs = judged.runs.iter().map(|run| {
                format!(
                    "{}-{} of {} at epoch {}",
                    run.first, run.last, run.cell, run.epoch
                )
            });
            write!(
                f,
                "\n  group {} at term {}: {}",
                judged.group,
                judged.term,
                join(runs)
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            SignalKind::Canary => "canary",
            SignalKind::Errors => "errors",
            SignalKind::Silent => "no report",
        };
        write!(f, "{kind} from {}", self.from)
    }
}

impl fmt::Display for FrozenVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "frozen: {} are suspect at once", join(&self.regions))
    }
}
