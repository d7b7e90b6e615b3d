//! `explain user`: the same decision as the data planes take, told on one screen.

use std::fmt;

use atoll_topology::{
    CellId, Epoch, GroupId, MemberId, RegionId, ShardId, ShardScheme, Term, UserId,
};
use serde::Serialize;

use crate::route::{NoRoute, home, route};
use crate::shard::shard_of;
use crate::table::{Phase, Table, TableVersion};

/// Where a user's requests and data go, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// Whose.
    pub user: UserId,
    /// The table that says so.
    pub table: TableVersion,
    /// How the shard was found.
    pub scheme: ShardScheme,
    /// The user's shard.
    pub shard: ShardId,
    /// Its owner; the coming one while switching.
    pub cell: CellId,
    /// The owner's city.
    pub region: RegionId,
    /// Names this ownership.
    pub epoch: Epoch,
    /// Whether the owner serves.
    pub phase: Phase,
    /// Where the data is.
    pub group: GroupId,
    /// The open term; none before birth.
    pub term: Option<Term>,
    /// Its primary; none before birth.
    pub primary: Option<MemberId>,
    /// All members that hold a copy.
    pub members: Vec<MemberId>,
    /// The reason, as in the access log, seen from the cell that was asked.
    pub reason: String,
    /// The cell that was asked.
    pub local: CellId,
}

/// Explains where a user goes, seen from `local`.
pub fn explain(table: &Table, local: &CellId, user: &UserId) -> Result<Explanation, NoRoute> {
    let reason = route(table, local, user)?.to_string();
    let count = u16::try_from(table.shards.len()).unwrap_or(u16::MAX);
    let shard = shard_of(table.scheme, count, user)?;
    let row = table.shard(shard).ok_or(NoRoute::UnknownShard(shard))?;
    let cell = table
        .cells
        .get(&row.cell)
        .ok_or_else(|| NoRoute::UnknownCell(row.cell.clone()))?;
    let group = table
        .groups
        .get(&row.group)
        .ok_or_else(|| NoRoute::UnknownGroup(row.group.clone()))?;
    let open = home(table, shard).ok();
    Ok(Explanation {
        user: user.clone(),
        table: table.version.clone(),
        scheme: table.scheme,
        shard,
        cell: row.cell.clone(),
        region: cell.region.clone(),
        epoch: row.epoch,
        phase: row.phase.clone(),
        group: row.group.clone(),
        term: open.map(|home| home.term),
        primary: open.map(|home| home.primary.clone()),
        members: group.members.keys().cloned().collect(),
        reason,
        local: local.clone(),
    })
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = match self.scheme {
            ShardScheme::Digits => "third- and second-last digit of the id",
            ShardScheme::Hash => "XXH64 of the id, modulo the number of shards",
        };
        writeln!(f, "user     {}", self.user)?;
        writeln!(f, "shard    {} ({how})", self.shard)?;
        writeln!(
            f,
            "cell     {} in {}, epoch {}",
            self.cell, self.region, self.epoch
        )?;
        match &self.phase {
            Phase::Active => writeln!(f, "phase    active")?,
            Phase::Switching { leaving, .. } if *leaving == self.cell => {
                writeln!(
                    f,
                    "phase    switching: its data group is changing its primary"
                )?;
            }
            Phase::Switching { leaving, .. } => {
                writeln!(f, "phase    switching from {leaving}; requests wait")?;
            }
        }
        let members: Vec<_> = self.members.iter().map(MemberId::as_str).collect();
        writeln!(
            f,
            "data     group {}, copies in {}",
            self.group,
            members.join(", ")
        )?;
        match (&self.term, &self.primary) {
            (Some(term), Some(primary)) => writeln!(f, "primary  {primary}, term {term}")?,
            _ => writeln!(f, "primary  none yet")?,
        }
        writeln!(f, "from {}: {}", self.local, self.reason)?;
        write!(f, "by table {}", self.table)
    }
}
