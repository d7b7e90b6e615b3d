//! The write canary: each second one small write to every cell, through the same stages as a
//! client's request. What it sees goes up in the reports; a canary that nobody answers is also the
//! first sign of silence where there is no traffic.

use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use atoll_proxy::Kept;
use atoll_routing::{Phase, Table, find_route, shard_of};
use atoll_topology::{CellId, Extractor, ShardId, ShardScheme, UserId};
use bytes::Bytes;
use http::request::Parts;
use http::{Request, header};
use tokio::time::MissedTickBehavior;

use crate::accept::Flow;
use crate::admit::Origin;
use crate::config::Canary;
use crate::error::Problem;
use crate::record::Record;

/// Runs until shutdown, on one worker.
pub(crate) async fn run(flow: Rc<Flow>, canary: Canary) {
    let shutdown = flow.shared.runtime.shutdown();
    let mut tick = tokio::time::interval(Duration::from_millis(canary.every_ms));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let canary = Rc::new(canary);
    let mut round = 0_usize;
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = shutdown.requested() => return,
        }
        let Some(table) = flow.shared.gates.table() else {
            continue;
        };
        for (cell, shard) in targets(&table, round) {
            let Some(request) = request(&table, &canary, shard) else {
                continue;
            };
            let (flow, canary) = (Rc::clone(&flow), Rc::clone(&canary));
            // Ends by its own limit, before the next round.
            tokio::task::spawn_local(async move { one(&flow, &cell, request, &canary).await });
        }
        round = round.wrapping_add(1);
    }
}

/// One shard of each cell, another one each round. Shards that are switching say nothing about
/// their cell.
fn targets(table: &Table, round: usize) -> Vec<(CellId, ShardId)> {
    let mut targets = Vec::new();
    for cell in table.cells.keys() {
        let owned: Vec<ShardId> = (0..)
            .zip(&table.shards)
            .filter(|(_, row)| row.cell == *cell && row.phase == Phase::Active)
            .map(|(shard, _)| ShardId(shard))
            .collect();
        if !owned.is_empty() {
            targets.push((cell.clone(), owned[round % owned.len()]));
        }
    }
    targets
}

/// The request as a client would send it for a user of that shard.
fn request(table: &Table, canary: &Canary, shard: ShardId) -> Option<Parts> {
    let user = user_of(table, shard)?;
    let path = canary.path.split('?').next().unwrap_or_default();
    let place = find_route(table, path)?.user.first()?;
    let mut builder = Request::builder()
        .method(canary.method.as_str())
        .header(header::HOST, "canary")
        .header(header::CONTENT_LENGTH, "0");
    let mut uri = canary.path.clone();
    match place {
        Extractor::Header(name) => builder = builder.header(name, user.as_str()),
        Extractor::Cookie(name) => {
            builder = builder.header(header::COOKIE, format!("{name}={user}"));
        }
        Extractor::Query(name) => {
            let joint = if uri.contains('?') { '&' } else { '?' };
            uri = format!("{uri}{joint}{name}={user}");
        }
    }
    builder
        .uri(uri)
        .body(())
        .ok()
        .map(|request| request.into_parts().0)
}

/// A user id that belongs to this shard and to nobody: `canary-0170` for shard 17 by digits.
fn user_of(table: &Table, shard: ShardId) -> Option<UserId> {
    /// Far more than it takes to hit one of 16,384 shards.
    const TRIES: u32 = 1_000_000;
    let count = u16::try_from(table.shards.len()).ok()?;
    let named = |text: String| UserId::parse(text).ok();
    match table.scheme {
        ShardScheme::Digits => named(format!("canary-{:02}0", shard.0)),
        ShardScheme::Hash => (0..TRIES)
            .filter_map(|n| named(format!("canary-{n}")))
            .find(|user| shard_of(table.scheme, count, user) == Ok(shard)),
    }
}

async fn one(flow: &Flow, cell: &CellId, request: Parts, canary: &Canary) {
    let nowhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let mut record: Record = flow.begin(&request, nowhere);
    record.origin(&Origin::Canary, None);
    let body = Kept::whole(Bytes::new());
    let limit = Duration::from_millis(canary.limit_ms);
    let routed = flow.route(&request, &body, &Origin::Canary, &mut record);
    let routed = tokio::time::timeout(limit, routed).await;
    // A canary is not a client's request.
    record.cell = None;
    let stats = flow.stats(cell);
    let result = match routed {
        Err(_) => {
            flow.shared.health.doubt(cell);
            Err(Problem::Silent)
        }
        Ok(result) => result,
    };
    match &result {
        Ok(response) if response.status().is_success() => {
            stats.canary(Ok(flow.shared.runtime.wall_clock().0));
        }
        Ok(response) => {
            let status = response.status().as_u16();
            tracing::debug!(%cell, status, "canary was not answered well");
            stats.canary(Err(()));
        }
        // The gate closed, or is closed by a suspicion: only the latter is the cell's fault.
        Err(Problem::Unreachable) if !flow.shared.health.is_suspected(cell) => {}
        Err(problem) => {
            tracing::debug!(%cell, %problem, "canary failed");
            stats.canary(Err(()));
        }
    }
    drop(flow.finish(result, record));
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use atoll_routing::{ShardRow, TableVersion};
    use atoll_topology::{Epoch, GroupId};

    use super::*;

    #[test]
    fn every_shard_has_a_canary_of_its_own() {
        for (scheme, shards) in [(ShardScheme::Digits, 100), (ShardScheme::Hash, 300)] {
            let row = ShardRow {
                cell: CellId::parse("a").unwrap(),
                epoch: Epoch::new(1),
                phase: Phase::Active,
                group: GroupId::parse("g").unwrap(),
            };
            let table = Table {
                version: TableVersion {
                    world: "w".into(),
                    number: 1,
                },
                scheme,
                shards: vec![row; usize::from(shards)],
                cells: BTreeMap::new(),
                groups: BTreeMap::new(),
                round_trip_ms: BTreeMap::new(),
                routes: vec![],
            };
            for shard in (0..shards).map(ShardId) {
                let user = user_of(&table, shard).unwrap();
                assert_eq!(shard_of(scheme, shards, &user), Ok(shard), "{user}");
            }
        }
    }
}
