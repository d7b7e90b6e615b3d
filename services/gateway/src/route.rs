//! Where a request goes: decided by one table until it is gated or forwarded, and again after each
//! wait. The rules are `domain/routing`'s; here they meet where the request came in from.

use std::sync::Arc;

use atoll_proxy::{Answer, Kept};
use atoll_routing::{Decision, NoRoute, Table, by_distance, find_route, route_by};
use atoll_topology::{CellId, Epoch, ShardId};
use http::Response;
use http::request::Parts;

use crate::accept::Flow;
use crate::admit::Origin;
use crate::error::Problem;
use crate::forward::Tried;
use crate::gate::reaches;
use crate::identify::identify;
use crate::record::Record;

/// A shard under the epoch that a decision rests on.
pub(crate) type Owned = Option<(ShardId, Epoch)>;

/// What to do with a request.
#[derive(Debug, PartialEq, Eq)]
enum Target<'t> {
    /// An instance of this cell answers.
    Here(Owned),
    /// A gateway of that cell answers.
    There(&'t CellId, Owned),
    /// It waits until its shard is open.
    Wait(ShardId),
    /// Another gateway sent it, and it does not belong here.
    NotOurs,
}

impl Flow {
    /// Routes an admitted request until it is answered or has no answer.
    pub(crate) async fn route(
        &self,
        request: &Parts,
        body: &Kept,
        origin: &Origin,
        record: &mut Record,
    ) -> Result<Response<Answer>, Problem> {
        let mut ticket = None;
        let mut caught_up = false;
        let mut unreachable = Vec::new();
        loop {
            let table = self.table()?;
            let (decision, target) = self.decide(&table, request, origin, &unreachable)?;
            if let Some(line) = record.line() {
                line.reason = decision.to_string();
                (line.shard, line.epoch) = (decision.shard(), decision.epoch());
            }
            let shard = decision.shard().filter(|_| target != Target::NotOurs);
            if let Some(shard) = shard {
                let closed = self.shared.gates.closed(shard);
                let canary = *origin == Origin::Canary;
                // A canary asks whether the owner answers, not how many wait for their turn.
                let behind =
                    !canary && ticket.is_none() && self.shared.hold.has_queue(shard.0.into());
                if closed || behind {
                    if canary {
                        return Err(Problem::Unreachable);
                    }
                    self.wait(shard, &mut ticket, body, record).await?;
                    continue;
                }
            }
            let tried = match target {
                Target::Here(owned) => {
                    self.to_instance(&table, owned, request, body, record)
                        .await?
                }
                Target::There(cell, owned) => {
                    self.to_gateway(&table, cell, owned, request, body, record)
                        .await?
                }
                // The gate is open, so a newer table is in use already.
                Target::Wait(_) => Tried::DecideAgain,
                Target::NotOurs => {
                    let (cell, table) = (self.shared.cell.to_string(), table.version.to_string());
                    return Err(Problem::NotOwner { cell, table });
                }
            };
            match tried {
                Tried::Answered(response) => return Ok(response),
                Tried::DecideAgain => tokio::task::yield_now().await,
                Tried::Unreached(cell) if shard.is_some() => self.shared.health.suspect(&cell),
                Tried::Unreached(cell) => unreachable.push(cell),
                Tried::NotTaken(theirs) => {
                    // Obeyed only from one who knows at least as much, and once.
                    if caught_up || reaches(&theirs, &table.version) != Some(true) {
                        return Err(Problem::OwnerUnclear);
                    }
                    if body.outgoing().is_none() {
                        return Err(Problem::BodyNotKept);
                    }
                    caught_up = true;
                    self.catch_up(&theirs).await?;
                }
            }
        }
    }

    pub(crate) fn table(&self) -> Result<Arc<Table>, Problem> {
        let none = || Problem::Unroutable("this gateway has no table yet".to_owned());
        self.shared.gates.table().ok_or_else(none)
    }

    fn decide<'t>(
        &self,
        table: &'t Table,
        request: &Parts,
        origin: &Origin,
        unreachable: &[CellId],
    ) -> Result<(Decision<'t>, Target<'t>), Problem> {
        let route = find_route(table, request.uri.path()).ok_or(Problem::NoRoute)?;
        let user = identify(route, request)?;
        let local = &self.shared.cell;
        let decision = route_by(table, local, route, user.as_ref()).map_err(no_route)?;
        let from_peer = matches!(origin, Origin::Peer(..));
        let target = match &decision {
            Decision::Local { shard, epoch } => Target::Here(Some((*shard, *epoch))),
            Decision::Hold { to, .. } if from_peer && *to != local => Target::NotOurs,
            Decision::Hold { shard, .. } => Target::Wait(*shard),
            Decision::Forward { .. } if from_peer => Target::NotOurs,
            Decision::Forward {
                shard, epoch, cell, ..
            } => Target::There(cell, Some((*shard, *epoch))),
            Decision::Global { cell, .. } if *cell == local => Target::Here(None),
            Decision::Global { .. } if from_peer => Target::NotOurs,
            Decision::Global { cell, .. } if unreachable.contains(cell) => {
                return Err(Problem::Unreachable);
            }
            Decision::Global { cell, .. } => Target::There(cell, None),
            Decision::Nearest { .. } if from_peer => match unreachable.is_empty() {
                true => Target::Here(None),
                false => return Err(Problem::Unreachable),
            },
            Decision::Nearest { .. } => {
                let answers = |cell: &&CellId| {
                    !unreachable.contains(cell) && !self.shared.health.is_suspected(cell)
                };
                match by_distance(table, local).into_iter().find(answers) {
                    Some(cell) if cell == local => Target::Here(None),
                    Some(cell) => Target::There(cell, None),
                    None => return Err(Problem::Unreachable),
                }
            }
        };
        Ok((decision, target))
    }
}

fn no_route(error: NoRoute) -> Problem {
    match error {
        NoRoute::NoMatch => Problem::NoRoute,
        NoRoute::NoShard(reason) => Problem::NoShard(reason.to_string()),
        other => Problem::Unroutable(other.to_string()),
    }
}
