//! The decision, its reason, and what holds for every table and every user.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;

use atoll_routing::{
    CellRow, Closed, Decision, GroupRow, NoRoute, Phase, ShardRow, Table, TableVersion,
    by_distance, explain, find_route, home, route, route_by, shard_of,
};
use atoll_topology::{
    CellId, CellKind, Epoch, GroupId, MemberId, RegionId, RouteKind, ShardId, ShardScheme, Term,
    Topology, UserId,
};
use proptest::prelude::*;

fn table() -> Table {
    let topology = Topology::parse(include_str!(
        "../../../examples/topologies/three-cities.yaml"
    ))
    .unwrap();
    let group_of = |shard: ShardId| {
        let mut groups = topology.groups.iter();
        groups
            .find(|(_, group)| group.shards.contains(&shard))
            .unwrap()
            .0
            .clone()
    };
    let shards = topology
        .shard_map
        .owners
        .iter()
        .zip(0..)
        .map(|(cell, n)| ShardRow {
            cell: cell.clone(),
            epoch: Epoch::new(1),
            phase: Phase::Active,
            group: group_of(ShardId(n)),
        });
    let cells = topology.cells.iter().map(|(id, cell)| {
        let row = CellRow {
            kind: cell.kind,
            region: cell.region.clone(),
            gateways: Vec::new(),
            instances: Vec::new(),
            weights: BTreeMap::new(),
        };
        (id.clone(), row)
    });
    let groups = topology.groups.iter().map(|(id, group)| {
        let address = "127.0.0.1:5432".parse().unwrap();
        let row = GroupRow {
            open: Some((Term::new(2), group.members[0].id.clone())),
            coming: None,
            members: group
                .members
                .iter()
                .map(|member| (member.id.clone(), address))
                .collect(),
        };
        (id.clone(), row)
    });
    let trips = topology.regions.iter().flat_map(|(from, region)| {
        region
            .round_trip_ms
            .iter()
            .map(|(to, ms)| ((from.clone(), to.clone()), *ms))
    });
    Table {
        version: TableVersion {
            world: "w1".to_owned(),
            number: 7,
        },
        scheme: topology.shard_map.scheme,
        shards: shards.collect(),
        cells: cells.collect(),
        groups: groups.collect(),
        round_trip_ms: trips.collect(),
        routes: topology.routes.clone(),
    }
}

fn cell(id: &str) -> CellId {
    CellId::parse(id).unwrap()
}

fn user(id: &str) -> UserId {
    UserId::parse(id).unwrap()
}

fn switching(mut table: Table, shard: u16, leaving: &str, to: &str) -> Table {
    let row = &mut table.shards[usize::from(shard)];
    row.phase = Phase::Switching {
        leaving: cell(leaving),
        closed: Closed::Gateways,
    };
    row.cell = cell(to);
    row.epoch = row.epoch.next();
    table
}

#[test]
fn the_owner_serves_and_everyone_else_forwards() {
    let table = table();
    let told = |local: &str, id: &str| route(&table, &cell(local), &user(id)).unwrap().to_string();
    insta::assert_snapshot!(told("hz-1", "1001"), @"local shard=0 epoch=1");
    insta::assert_snapshot!(told("sh-1", "1001"), @"forward shard=0 epoch=1 cell=hz-1 region=hangzhou");
    insta::assert_snapshot!(told("hz-1", "1991"), @"forward shard=99 epoch=1 cell=sz-1 region=shenzhen");
}

#[test]
fn a_switching_shard_is_held_everywhere() {
    let moved = switching(table(), 30, "hz-2", "sh-1");
    for local in ["hz-1", "hz-2", "sh-1"] {
        let decision = route(&moved, &cell(local), &user("u-1300")).unwrap();
        insta::allow_duplicates! {
            insta::assert_snapshot!(decision, @"hold shard=30 epoch=2 cell=hz-2 to=sh-1");
        }
    }
    let failing = switching(table(), 30, "hz-2", "hz-2");
    let decision = route(&failing, &cell("hz-2"), &user("u-1300")).unwrap();
    insta::assert_snapshot!(decision, @"hold shard=30 epoch=2 cell=hz-2");
}

#[test]
fn errors_are_values() {
    let mut table = table();
    let no_digit = route(&table, &cell("hz-1"), &user("alice")).unwrap_err();
    assert!(matches!(no_digit, NoRoute::NoShard(_)));
    let mut global = table.routes[0].clone();
    global.kind = RouteKind::Global;
    assert_eq!(
        route_by(&table, &cell("hz-1"), &global, None),
        Err(NoRoute::NoGlobalCell)
    );
    table.shards.truncate(10);
    assert!(route(&table, &cell("hz-1"), &user("1990")).is_err());
    table.cells.remove(&cell("hz-1"));
    assert_eq!(
        route(&table, &cell("sz-1"), &user("0")),
        Err(NoRoute::UnknownCell(cell("hz-1")))
    );
    table
        .groups
        .get_mut(&GroupId::parse("g1").unwrap())
        .unwrap()
        .open = None;
    assert!(matches!(home(&table, ShardId(0)), Err(NoRoute::NotOpen(_))));
}

#[test]
fn without_a_user_the_nearest_cell_answers() {
    let mut table = table();
    let all = table.routes[0].clone();
    let decision = route_by(&table, &cell("hz-2"), &all, None).unwrap();
    insta::assert_snapshot!(decision, @"no-user cell=hz-2");
    let (hangzhou, shanghai) = ("hangzhou", "shanghai");
    let pair = |a: &str, b: &str| (RegionId::parse(a).unwrap(), RegionId::parse(b).unwrap());
    table.round_trip_ms.insert(pair(hangzhou, shanghai), 30);
    let near: Vec<_> = by_distance(&table, &cell("hz-2"))
        .iter()
        .map(|c| c.as_str())
        .collect();
    assert_eq!(near, ["hz-2", "hz-1", "sz-1", "sh-1"]);
    table.cells.get_mut(&cell("sz-1")).unwrap().kind = CellKind::Global;
    let mut global = all;
    global.kind = RouteKind::Global;
    let decision = route_by(&table, &cell("hz-2"), &global, Some(&user("1"))).unwrap();
    insta::assert_snapshot!(decision, @"global cell=sz-1");
    assert_eq!(decision.shard(), None);
}

#[test]
fn a_prefix_matches_whole_segments() {
    let mut table = table();
    let mut rates = table.routes[0].clone();
    rates.name = "rates".to_owned();
    rates.path_prefix = "/rates".to_owned();
    table.routes.insert(0, rates);
    let name = |path: &str| find_route(&table, path).map(|route| route.name.as_str());
    assert_eq!(name("/rates"), Some("rates"));
    assert_eq!(name("/rates/usd"), Some("rates"));
    assert_eq!(name("/ratesheet"), Some("all"));
    assert_eq!(name("/"), Some("all"));
    assert_eq!(name("*"), None);
}

#[test]
fn explain_fits_on_one_screen() {
    let table = switching(table(), 30, "hz-2", "sh-1");
    let told = |id: &str| explain(&table, &cell("hz-1"), &user(id)).unwrap();
    insta::assert_snapshot!(told("u-1300"));
    insta::assert_snapshot!(told("1991"));
    assert_eq!(told("1991").primary, Some(MemberId::parse("g4-1").unwrap()));
}

#[test]
fn a_table_survives_json() {
    let table = table();
    let text = serde_json::to_string(&table).unwrap();
    assert_eq!(serde_json::from_str::<Table>(&text).unwrap(), table);
}

proptest! {
    #[test]
    fn every_user_has_one_decision(id in "[0-9A-Za-z_.:@-]{1,64}", local in 0usize..4) {
        let table = table();
        let local = table.cells.keys().nth(local).unwrap();
        let user = user(&id);
        let first = route(&table, local, &user);
        prop_assert_eq!(&first, &route(&table, local, &user));
        match first {
            Ok(Decision::Local { shard, .. }) => {
                prop_assert_eq!(&table.shard(shard).unwrap().cell, local);
            }
            Ok(Decision::Forward { shard, cell, .. }) => {
                prop_assert_ne!(cell, local);
                prop_assert_eq!(&table.shard(shard).unwrap().cell, cell);
                // The receiver agrees: a request is forwarded once.
                let there = route(&table, cell, &user);
                let agrees = matches!(there, Ok(Decision::Local { .. }));
                prop_assert!(agrees);
            }
            Ok(other) => prop_assert!(false, "{other}"),
            Err(_) => prop_assert!(!id.bytes().any(|b| b.is_ascii_digit())),
        }
    }

    #[test]
    fn a_hash_shard_exists(id in "[0-9A-Za-z_.:@-]{1,64}", shards in 1u16..=16_384) {
        let shard = shard_of(ShardScheme::Hash, shards, &user(&id)).unwrap();
        prop_assert!(shard.0 < shards);
    }
}

#[test]
fn every_shard_is_reachable() {
    for (scheme, shards) in [(ShardScheme::Digits, 100), (ShardScheme::Hash, 16_384)] {
        let mut seen = vec![false; usize::from(shards)];
        for n in 0..400_000 {
            let shard = shard_of(scheme, shards, &user(&n.to_string())).unwrap();
            seen[usize::from(shard.0)] = true;
        }
        assert!(seen.iter().all(|seen| *seen), "{scheme:?}");
    }
}
