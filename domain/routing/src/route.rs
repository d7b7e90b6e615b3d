//! The one routing function: where does this request go, and why.

use std::fmt;
use std::net::SocketAddr;

use atoll_topology::{
    CellId, CellKind, Epoch, GroupId, MemberId, RegionId, Route, RouteKind, ShardId, Term, UserId,
};
use thiserror::Error;

use crate::shard::{NoShard, shard_of};
use crate::table::{Closed, Phase, Table};

/// Where a request goes. `Display` is its reason, one short text for the access log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision<'t> {
    /// This cell owns the user's shard.
    Local {
        /// The user's shard.
        shard: ShardId,
        /// The ownership that the decision rests on.
        epoch: Epoch,
    },
    /// Another cell owns it.
    Forward {
        /// The user's shard.
        shard: ShardId,
        /// The ownership that the decision rests on.
        epoch: Epoch,
        /// The owner.
        cell: &'t CellId,
        /// The owner's city.
        region: &'t RegionId,
    },
    /// The shard is switching: wait at the gate until `to` is Active at `epoch` or newer.
    Hold {
        /// The user's shard.
        shard: ShardId,
        /// The coming ownership.
        epoch: Epoch,
        /// The cell that it leaves; the same as `to` while its group fails over.
        leaving: &'t CellId,
        /// The coming owner.
        to: &'t CellId,
        /// Who waits.
        closed: Closed,
    },
    /// The route belongs to the global cell.
    Global {
        /// The global cell.
        cell: &'t CellId,
        /// Its city.
        region: &'t RegionId,
    },
    /// No owner is asked for: the nearest cell answers.
    Nearest {
        /// The nearest cell.
        cell: &'t CellId,
        /// Its city.
        region: &'t RegionId,
        /// Whether the route says so; else no user id was found.
        by_route: bool,
    },
}

impl Decision<'_> {
    /// The shard, where the user decided.
    pub fn shard(&self) -> Option<ShardId> {
        match self {
            Self::Local { shard, .. } | Self::Forward { shard, .. } | Self::Hold { shard, .. } => {
                Some(*shard)
            }
            Self::Global { .. } | Self::Nearest { .. } => None,
        }
    }

    /// The epoch that the decision rests on, where the user decided.
    pub fn epoch(&self) -> Option<Epoch> {
        match self {
            Self::Local { epoch, .. } | Self::Forward { epoch, .. } | Self::Hold { epoch, .. } => {
                Some(*epoch)
            }
            Self::Global { .. } | Self::Nearest { .. } => None,
        }
    }
}

impl fmt::Display for Decision<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local { shard, epoch } => write!(f, "local shard={shard} epoch={epoch}"),
            Self::Forward {
                shard,
                epoch,
                cell,
                region,
            } => {
                write!(
                    f,
                    "forward shard={shard} epoch={epoch} cell={cell} region={region}"
                )
            }
            Self::Hold {
                shard,
                epoch,
                leaving,
                to,
                ..
            } if leaving == to => {
                write!(f, "hold shard={shard} epoch={epoch} cell={to}")
            }
            Self::Hold {
                shard,
                epoch,
                leaving,
                to,
                ..
            } => {
                write!(f, "hold shard={shard} epoch={epoch} cell={leaving} to={to}")
            }
            Self::Global { cell, .. } => write!(f, "global cell={cell}"),
            Self::Nearest {
                cell,
                by_route: true,
                ..
            } => write!(f, "nearest cell={cell}"),
            Self::Nearest {
                cell,
                by_route: false,
                ..
            } => write!(f, "no-user cell={cell}"),
        }
    }
}

/// Why a request goes nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NoRoute {
    /// No route has this path.
    #[error("no route matches this path")]
    NoMatch,
    /// The user has no shard.
    #[error("the user has no shard")]
    NoShard(#[from] NoShard),
    /// The table has no row for this shard.
    #[error("the table has no shard {0}")]
    UnknownShard(ShardId),
    /// The table names a cell that it does not describe.
    #[error("the table does not describe cell {0}")]
    UnknownCell(CellId),
    /// The table names a data group that it does not describe.
    #[error("the table does not describe data group {0}")]
    UnknownGroup(GroupId),
    /// The data group has never been opened.
    #[error("data group {0} has no open primary yet")]
    NotOpen(GroupId),
    /// The route asks for the global cell and there is none.
    #[error("there is no global cell")]
    NoGlobalCell,
    /// There is no cell that could answer.
    #[error("there is no cell")]
    NoCell,
}

/// The route of a path (without its query): the first whose prefix is the path or a whole number
/// of its segments. The table lists the longest prefix first.
pub fn find_route<'t>(table: &'t Table, path: &str) -> Option<&'t Route> {
    table.routes.iter().find(|route| {
        let prefix = route.path_prefix.trim_end_matches('/');
        path.strip_prefix(prefix)
            .is_some_and(|rest| rest.starts_with('/') || rest.is_empty() && !prefix.is_empty())
    })
}

/// Where a user's request goes, seen from a gateway, sidecar or router of `local`.
pub fn route<'t>(table: &'t Table, local: &CellId, user: &UserId) -> Result<Decision<'t>, NoRoute> {
    let count = u16::try_from(table.shards.len()).unwrap_or(u16::MAX);
    let shard = shard_of(table.scheme, count, user)?;
    let row = table.shard(shard).ok_or(NoRoute::UnknownShard(shard))?;
    let epoch = row.epoch;
    match &row.phase {
        Phase::Switching { leaving, closed } => Ok(Decision::Hold {
            shard,
            epoch,
            leaving,
            to: &row.cell,
            closed: *closed,
        }),
        Phase::Active if row.cell == *local => Ok(Decision::Local { shard, epoch }),
        Phase::Active => {
            let region = region_of(table, &row.cell)?;
            Ok(Decision::Forward {
                shard,
                epoch,
                cell: &row.cell,
                region,
            })
        }
    }
}

/// Where a request of this route goes; `user` is what the route's extractors found.
pub fn route_by<'t>(
    table: &'t Table,
    local: &CellId,
    by: &Route,
    user: Option<&UserId>,
) -> Result<Decision<'t>, NoRoute> {
    match (by.kind, user) {
        (RouteKind::Sharded, Some(user)) => route(table, local, user),
        (RouteKind::Sharded, None) => nearest(table, local, false),
        (RouteKind::Nearest, _) => nearest(table, local, true),
        (RouteKind::Global, _) => {
            let mut cells = table.cells.iter();
            let global = cells.find(|(_, row)| row.kind == CellKind::Global);
            let (cell, row) = global.ok_or(NoRoute::NoGlobalCell)?;
            Ok(Decision::Global {
                cell,
                region: &row.region,
            })
        }
    }
}

fn nearest<'t>(table: &'t Table, local: &CellId, by_route: bool) -> Result<Decision<'t>, NoRoute> {
    let cell = by_distance(table, local)
        .into_iter()
        .next()
        .ok_or(NoRoute::NoCell)?;
    Ok(Decision::Nearest {
        cell,
        region: region_of(table, cell)?,
        by_route,
    })
}

/// The sharded cells, the nearest to `local` first: itself, its city, then by round-trip time
/// (unknown ones last), then by name. A data plane that knows who is healthy takes the first that
/// is.
pub fn by_distance<'t>(table: &'t Table, local: &CellId) -> Vec<&'t CellId> {
    let here = table.cells.get(local).map(|row| &row.region);
    let distance = |region: &RegionId| match here {
        Some(here) if here == region => 0,
        Some(here) => {
            let there = (here.clone(), region.clone());
            table.round_trip_ms.get(&there).copied().unwrap_or(u32::MAX)
        }
        None => u32::MAX,
    };
    let mut cells: Vec<_> = table
        .cells
        .iter()
        .filter(|(_, row)| row.kind == CellKind::Sharded)
        .map(|(cell, row)| (cell != local, distance(&row.region), cell))
        .collect();
    cells.sort_unstable();
    cells.into_iter().map(|(_, _, cell)| cell).collect()
}

fn region_of<'t>(table: &'t Table, cell: &CellId) -> Result<&'t RegionId, NoRoute> {
    let row = table
        .cells
        .get(cell)
        .ok_or_else(|| NoRoute::UnknownCell(cell.clone()))?;
    Ok(&row.region)
}

/// Where a shard's data is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Home<'t> {
    /// The data group.
    pub group: &'t GroupId,
    /// The open term.
    pub term: Term,
    /// Its primary.
    pub primary: &'t MemberId,
    /// The primary's SQL port.
    pub address: SocketAddr,
}

/// Where a shard's data is written: the primary that is open.
pub fn home(table: &Table, shard: ShardId) -> Result<Home<'_>, NoRoute> {
    let row = table.shard(shard).ok_or(NoRoute::UnknownShard(shard))?;
    let group = &row.group;
    let unknown = || NoRoute::UnknownGroup(group.clone());
    let found = table.groups.get(group).ok_or_else(unknown)?;
    let (term, primary) = found
        .open
        .as_ref()
        .ok_or_else(|| NoRoute::NotOpen(group.clone()))?;
    let address = *found.members.get(primary).ok_or_else(unknown)?;
    Ok(Home {
        group,
        term: *term,
        primary,
        address,
    })
}
