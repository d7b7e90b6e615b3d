//! A table must arrive as it was sent, by whatever path; and whatever else arrives must be refused.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

use atoll_routing::{CellRow, Closed, GroupRow, Instance, Phase, ShardRow, Table, TableVersion};
use atoll_streams::{
    CellHealth, EncodedTable, MeshReport, Opening, Report, RequestCounts, Role, ShardLoad,
    UpdateError, decode, encode, proto::table as wire,
};
use atoll_topology::{
    CellId, CellKind, Epoch, Extractor, GroupId, MemberId, ProcessId, RegionId, Route, RouteKind,
    ShardId, ShardScheme, SlotName, Term,
};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use prost::Message;

fn cell_id(n: u8) -> CellId {
    CellId::parse(format!("cell-{n}")).unwrap()
}

fn group_id(n: u8) -> GroupId {
    GroupId::parse(format!("g{n}")).unwrap()
}

fn member(n: u8) -> MemberId {
    MemberId::parse(format!("g-{n}")).unwrap()
}

fn region(n: u8) -> RegionId {
    RegionId::parse(format!("r{n}")).unwrap()
}

fn address() -> impl Strategy<Value = SocketAddr> {
    (any::<u8>(), any::<u16>())
        .prop_map(|(n, port)| SocketAddr::from((Ipv4Addr::new(127, 1, 16, n), port)))
}

fn slot() -> impl Strategy<Value = SlotName> {
    prop_oneof![Just(SlotName::Blue), Just(SlotName::Green)]
}

fn cell_row() -> impl Strategy<Value = CellRow> {
    let kind = prop_oneof![
        Just(CellKind::Sharded),
        Just(CellKind::Global),
        Just(CellKind::City)
    ];
    let instances = vec(
        (address(), slot()).prop_map(|(address, slot)| Instance { address, slot }),
        0..3,
    );
    (
        kind,
        0..3u8,
        vec(address(), 0..3),
        instances,
        btree_map(slot(), 0..=100u8, 0..=2),
    )
        .prop_map(
            |(kind, region_number, gateways, instances, weights)| CellRow {
                kind,
                region: region(region_number),
                gateways,
                instances,
                weights,
            },
        )
}

fn group_row() -> impl Strategy<Value = GroupRow> {
    let primary = || option::of((0..5u64, 1..=3u8).prop_map(|(t, n)| (Term::new(t), member(n))));
    (primary(), primary(), vec(address(), 3)).prop_map(|(open, coming, addresses)| GroupRow {
        open,
        coming,
        members: (1..).map(member).zip(addresses).collect(),
    })
}

fn phase() -> impl Strategy<Value = Phase> {
    let closed = prop_oneof![Just(Closed::Gateways), Just(Closed::All)];
    prop_oneof![
        3 => Just(Phase::Active),
        1 => (0..4u8, closed).prop_map(|(n, closed)| Phase::Switching { leaving: cell_id(n), closed }),
    ]
}

fn shard_rows() -> impl Strategy<Value = Vec<ShardRow>> {
    let row = (0..4u8, 0..4u64, phase(), 0..3u8).prop_map(|(cell, epoch, phase, group)| ShardRow {
        cell: cell_id(cell),
        epoch: Epoch::new(epoch),
        phase,
        group: group_id(group),
    });
    vec((row, 1..12usize), 0..12).prop_map(|runs| {
        runs.into_iter()
            .flat_map(|(row, n)| std::iter::repeat_n(row, n))
            .collect()
    })
}

fn route() -> impl Strategy<Value = Route> {
    let kind = prop_oneof![
        Just(RouteKind::Sharded),
        Just(RouteKind::Global),
        Just(RouteKind::Nearest)
    ];
    let user = prop_oneof![
        "[a-z-]{0,8}".prop_map(Extractor::Header),
        "[a-z]{0,8}".prop_map(Extractor::Cookie),
        "[a-z]{0,8}".prop_map(Extractor::Query),
    ];
    ("[a-z]{0,5}", "/[a-z/]{0,8}", kind, vec(user, 0..3)).prop_map(
        |(name, path_prefix, kind, user)| Route {
            name,
            path_prefix,
            kind,
            user,
        },
    )
}

prop_compose! {
    fn table()(
        number in 0..100u64,
        digits in any::<bool>(),
        shards in shard_rows(),
        cells in vec(cell_row(), 4),
        groups in vec(group_row(), 3),
        round_trips in btree_map((0..3u8, 0..3u8), any::<u32>(), 0..4),
        routes in vec(route(), 0..12),
    ) -> Table {
        Table {
            version: TableVersion { world: "w1".into(), number },
            scheme: if digits { ShardScheme::Digits } else { ShardScheme::Hash },
            shards,
            cells: (0..).map(cell_id).zip(cells).collect(),
            groups: (0..).map(group_id).zip(groups).collect(),
            round_trip_ms: round_trips
                .into_iter()
                .map(|((a, b), ms)| ((region(a), region(b)), ms))
                .collect(),
            routes,
        }
    }
}

prop_compose! {
    fn report()(
        numbers in vec(any::<u64>(), 8),
        shards in vec((any::<u16>(), any::<u64>()), 0..4),
        versions in vec(option::of(0..9u64), 2),
        with_cell in any::<bool>(),
        draining in any::<bool>(),
    ) -> Report {
        let version = |n: Option<u64>| n.map(|number| TableVersion { world: "w1".into(), number });
        Report {
            process: ProcessId::parse("hz-1-gateway").unwrap(),
            role: Role::SqlRouter,
            region: region(1),
            cell: with_cell.then(|| cell_id(1)),
            held: version(versions[0]),
            in_use: version(versions[1]),
            loads: shards
                .iter()
                .map(|&(shard, n)| ShardLoad {
                    first: ShardId(shard),
                    last: ShardId(shard),
                    epoch: Epoch::new(n),
                    in_flight: n,
                    held: numbers[0],
                })
                .collect(),
            openings: vec![Opening {
                group: group_id(1),
                term: Term::new(numbers[1]),
                member: member(1),
                shards: shards.iter().map(|&(s, e)| (ShardId(s), Epoch::new(e))).collect(),
            }],
            cells: vec![CellHealth {
                cell: cell_id(2),
                canary_ok: numbers[2],
                canary_failed: numbers[3],
                requests: numbers[4],
                errors: numbers[5],
                latency_p99_ms: numbers[6],
                last_ok_unix_ms: numbers[7],
            }],
            unix_ms: numbers[0],
            draining,
            requests: draining.then_some(RequestCounts {
                answered: numbers[1],
                failed: numbers[2],
                unknown: numbers[3],
                held: numbers[4],
                held_now: numbers[5],
            }),
        }
    }
}

proptest! {
    #[test]
    fn a_table_arrives_as_it_was_sent(table in table()) {
        let encoded = encode(&table);
        let bytes = encoded.to_snapshot().encode_to_vec();
        let arrived =
            EncodedTable::from_snapshot(wire::Snapshot::decode(bytes.as_slice()).unwrap()).unwrap();
        prop_assert_eq!(&arrived, &encoded);
        prop_assert_eq!(decode(&arrived).unwrap(), table);
    }

    #[test]
    fn a_delta_makes_the_new_table_of_its_base(old in table(), new in table()) {
        let (old, new) = (encode(&old), encode(&new));
        let bytes = new.diff(&old).encode_to_vec();
        let delta = wire::Delta::decode(bytes.as_slice()).unwrap();
        prop_assert_eq!(&old.apply(delta).unwrap(), &new);
    }

    #[test]
    fn a_delta_is_refused_on_any_other_base(a in table(), b in table(), c in table()) {
        let (a, b, c) = (encode(&a), encode(&b), encode(&c));
        prop_assume!(a.hash() != c.hash());
        let refused = matches!(c.apply(b.diff(&a)), Err(UpdateError::OtherBase { .. }));
        prop_assert!(refused);
    }

    #[test]
    fn a_changed_byte_is_noticed(table in table(), at in any::<prop::sample::Index>()) {
        let encoded = encode(&table);
        let mut snapshot = encoded.to_snapshot();
        let entry = at.index(snapshot.entries.len());
        let mut bytes = snapshot.entries[entry].entry.to_vec();
        bytes.push(0);
        snapshot.entries[entry].entry = bytes.into();
        let refused = matches!(
            EncodedTable::from_snapshot(snapshot),
            Err(UpdateError::Hash { .. })
        );
        prop_assert!(refused);
    }

    #[test]
    fn garbage_is_an_error_and_no_panic(
        table in table(),
        garbage in btree_map(
            prop_oneof![
                Just("scheme".to_owned()), Just("rtt".to_owned()), Just("route/x".to_owned()),
                Just("cell/cell-1".to_owned()), Just("group/g1".to_owned()),
                Just("shard/00000-00001".to_owned()),
            ],
            vec(any::<u8>(), 1..20),
            1..3,
        ),
    ) {
        let encoded = encode(&table);
        let mut entries = encoded.entries().clone();
        entries.extend(garbage.into_iter().map(|(key, bytes)| (key, bytes.into())));
        // Some garbage is a valid message; what counts is that no table with a hole comes of it.
        if let Ok(table) = decode(&EncodedTable::new(encoded.version().clone(), entries)) {
            prop_assert!(table.shards.iter().all(|row| table.cells.contains_key(&row.cell)));
        }
        let random: Vec<u8> = encoded.to_snapshot().encode_to_vec().into_iter().rev().collect();
        if let Ok(update) = wire::TableUpdate::decode(random.as_slice())
            && let Some(wire::table_update::Update::Snapshot(snapshot)) = update.update {
            prop_assert!(EncodedTable::from_snapshot(snapshot).is_err());
        }
    }

    #[test]
    fn a_report_arrives_as_it_was_sent(report in report()) {
        let mesh = MeshReport {
            process: ProcessId::parse("hz-1-mesh").unwrap(),
            region: region(2),
            held: report.held.clone(),
            reports: vec![report],
            unix_ms: 7,
        };
        let bytes = wire::MeshReport::from(&mesh).encode_to_vec();
        let arrived = wire::MeshReport::decode(bytes.as_slice()).unwrap();
        prop_assert_eq!(MeshReport::try_from(arrived).unwrap(), mesh);
    }
}

fn small() -> Table {
    let row = |epoch| ShardRow {
        cell: cell_id(1),
        epoch: Epoch::new(epoch),
        phase: Phase::Active,
        group: group_id(1),
    };
    Table {
        version: TableVersion {
            world: "w1".into(),
            number: 1,
        },
        scheme: ShardScheme::Hash,
        shards: vec![row(1), row(1), row(2), row(2)],
        cells: BTreeMap::from([(
            cell_id(1),
            CellRow {
                kind: CellKind::Sharded,
                region: region(1),
                gateways: vec![],
                instances: vec![],
                weights: BTreeMap::new(),
            },
        )]),
        groups: BTreeMap::from([(
            group_id(1),
            GroupRow {
                open: None,
                coming: None,
                members: BTreeMap::new(),
            },
        )]),
        round_trip_ms: BTreeMap::new(),
        routes: vec![],
    }
}

#[test]
fn the_keys_of_a_table_can_be_read_by_a_person() {
    let encoded = encode(&small());
    let keys: Vec<&str> = encoded.entries().keys().map(String::as_str).collect();
    assert_eq!(
        keys,
        [
            "cell/cell-1",
            "group/g1",
            "rtt",
            "scheme",
            "shard/00000-00001",
            "shard/00002-00003"
        ]
    );
}

#[test]
fn a_table_with_a_hole_or_an_overlap_is_refused() {
    let encoded = encode(&small());
    for key in encoded.entries().keys() {
        if key == "rtt" {
            continue;
        }
        let mut entries = encoded.entries().clone();
        entries.remove(key);
        let holed = EncodedTable::new(encoded.version().clone(), entries);
        assert!(decode(&holed).is_err(), "without {key}");
    }
    let mut entries = encoded.entries().clone();
    let run = wire::ShardRunEntry {
        first: 1,
        last: 3,
        cell: "cell-1".into(),
        epoch: 1,
        group: "g1".into(),
        phase: wire::Phase::Active.into(),
        leaving: String::new(),
    };
    entries.insert("shard/00001-00003".into(), run.encode_to_vec().into());
    let overlapping = EncodedTable::new(encoded.version().clone(), entries);
    assert!(decode(&overlapping).is_err());
}

#[test]
fn what_a_newer_control_adds_is_ignored() {
    let encoded = encode(&small());
    let mut entries = encoded.entries().clone();
    entries.insert("layer/grey".into(), vec![1, 2, 3].into());
    let mut scheme = entries["scheme"].to_vec();
    // Field 15, varint 1: unknown to this version.
    scheme.extend([0x78, 0x01]);
    entries.insert("scheme".into(), scheme.into());
    let newer = EncodedTable::new(encoded.version().clone(), entries);
    assert_eq!(decode(&newer).unwrap(), small());
}

#[test]
fn a_delta_carries_only_what_changed() {
    let old = encode(&small());
    let mut table = small();
    table.version.number = 2;
    table.shards[3].epoch = Epoch::new(9);
    let delta = encode(&table).diff(&old);
    let set: Vec<&str> = delta.set.iter().map(|named| named.key.as_str()).collect();
    assert_eq!(set, ["shard/00002-00002", "shard/00003-00003"]);
    assert_eq!(delta.removed, ["shard/00002-00003"]);
}
