//! The topology file: what is accepted, and every violation as a person reads it.

use atoll_topology::{
    CellId, Extractor, RegionId, Rule, ShardId, Topology, Violations, format_shards, parse_shards,
    resources,
};
use proptest::prelude::*;

const THREE_CITIES: &str = include_str!("../../../examples/topologies/three-cities.yaml");

fn with(changes: &[(&str, &str)]) -> String {
    let mut text = THREE_CITIES.to_owned();
    for (from, to) in changes {
        assert!(text.contains(from), "{from:?} is not in the example");
        text = text.replacen(from, to, 1);
    }
    text
}

fn violations(changes: &[(&str, &str)]) -> Violations {
    Topology::parse(&with(changes)).expect_err("there is a violation")
}

#[test]
fn the_example_is_a_topology() {
    let topology = Topology::parse(THREE_CITIES).unwrap();
    assert_eq!(topology.regions.len(), 3);
    assert_eq!(topology.groups.len(), 4);
    assert_eq!(
        topology.shard_map.owners[26],
        CellId::parse("hz-2").unwrap()
    );
    let hangzhou = RegionId::parse("hangzhou").unwrap();
    let shanghai = RegionId::parse("shanghai").unwrap();
    assert_eq!(topology.regions[&hangzhou].round_trip_ms[&shanghai], 10);
    assert_eq!(
        topology.routes[0].user[0],
        Extractor::Header("x-user-id".to_owned())
    );
    let g1 = topology.groups.first_key_value().unwrap().1;
    assert_eq!(g1.members[0].id.as_str(), "g1-1");
    assert_eq!(g1.shards.len(), 25);
}

#[test]
fn what_is_written_is_read_back() {
    let topology = Topology::parse(THREE_CITIES).unwrap();
    assert_eq!(Topology::parse(&topology.to_yaml()).unwrap(), topology);
    assert_eq!(
        Topology::from_resources(&topology.to_resources()).unwrap(),
        topology
    );
    let split = resources(THREE_CITIES).unwrap();
    assert_eq!(split.len(), 19);
    assert_eq!(Topology::from_resources(&split).unwrap(), topology);
    let json = serde_json::to_string(&topology).unwrap();
    assert_eq!(serde_json::from_str::<Topology>(&json).unwrap(), topology);
}

#[test]
fn a_zone_may_be_called_no() {
    let yaml = THREE_CITIES.replace("hz-a", "no");
    let topology = Topology::parse(&yaml).unwrap();
    assert!(topology.zones.keys().any(|zone| zone.as_str() == "no"));
    assert_eq!(Topology::parse(&topology.to_yaml()).unwrap(), topology);
}

#[test]
fn the_longest_prefix_comes_first() {
    let yaml = format!(
        "{THREE_CITIES}---\napiVersion: atoll.dev/v1\nkind: Route\nmetadata: {{name: rates}}\n\
         spec: {{pathPrefix: /rates, kind: nearest}}\n"
    );
    let topology = Topology::parse(&yaml).unwrap();
    let names: Vec<_> = topology
        .routes
        .iter()
        .map(|route| route.name.as_str())
        .collect();
    assert_eq!(names, ["rates", "all"]);
}

#[test]
fn shards_that_are_owned_or_stored_twice_or_never_are_named() {
    let wrong = violations(&[
        (
            "{shards: 25-49, cell: hz-2}",
            "{shards: \"20-40,44\", cell: hz-2}",
        ),
        ("  shards: 50-74\n", "  shards: 40-60, 99\n"),
        (
            "{shards: 75-99, cell: sz-1}",
            "{shards: 75-120, cell: sz-1}",
        ),
    ]);
    insta::assert_snapshot!(wrong);
}

#[test]
fn places_that_do_not_exist_are_named() {
    let wrong = violations(&[
        ("spec: {region: hangzhou}", "spec: {region: hangzhuo}"),
        ("members: [hz-a, sh-a, sz-b]", "members: [hz-x, sh-a, sz-b]"),
        ("{zone: sh-a, weight: 100}", "{zone: sz-a, weight: 100}"),
        ("{zone: hz-b, weight: 100}", "{zone: hz-c, weight: 100}"),
        ("cell: hz-1}", "cell: hz-9}"),
    ]);
    insta::assert_snapshot!(wrong);
}

#[test]
fn promises_that_the_arithmetic_cannot_keep_are_named() {
    let wrong = violations(&[
        ("members: [hz-a, sh-a, sz-b]", "members: [hz-a, hz-b, sz-b]"),
        (
            "members: [hz-b, sz-a, sh-b]\n  k: 1",
            "members: [hz-b, sz-a, hz-b]\n  k: 2",
        ),
        (
            "members: [sh-a, sz-b, hz-a]\n  k: 1",
            "members: [sh-a, sz-b, hz-a]\n  k: 3",
        ),
        (
            "members: [sz-a, hz-b, sh-b]\n  k: 1\n  survives: region",
            "members: [sz-a, hz-b]\n  k: 1\n  survives: zone",
        ),
    ]);
    insta::assert_snapshot!(wrong);
}

#[test]
fn five_members_survive_a_region_only_when_none_holds_three() {
    let five = "members: [hz-a, hz-b, sh-a, sh-b, sz-a]\n  k: 2\n";
    let text = with(&[("members: [hz-a, sh-a, sz-b]\n  k: 1\n", five)]);
    assert!(Topology::parse(&text).is_ok());
    // N − k = 4 for k = 1: two lost leave three.
    let text = text.replacen("k: 2", "k: 1", 1);
    let wrong = Topology::parse(&text).unwrap_err();
    assert!(
        wrong
            .0
            .iter()
            .all(|violation| violation.rule == Rule::CannotSurvive),
        "{wrong}"
    );
}

#[test]
fn weights_round_trips_and_names_that_contradict_are_named() {
    let wrong = violations(&[
        (
            "{zone: hz-a, weight: 100}",
            "{zone: hz-a, weight: 60}\n    green: {zone: hz-b, weight: 30}",
        ),
        (
            "roundTripMs: {hangzhou: 10, shenzhen: 10}",
            "roundTripMs: {hangzhou: 12, shanghai: 1}",
        ),
        ("metadata: {name: hz-2}", "metadata: {name: hz-1}"),
        ("metadata: {name: sz-b}", "metadata: {name: SZ_b}"),
    ]);
    insta::assert_snapshot!(wrong);
}

#[test]
fn keys_kinds_and_types_that_are_unknown_are_named() {
    let wrong = violations(&[
        (
            "spec: {region: hangzhou}",
            "spec: {region: hangzhou, colour: red}",
        ),
        (
            "kind: Zone\nmetadata: {name: hz-b}",
            "kind: Zoo\nmetadata: {name: hz-b, labels: {}}",
        ),
        (
            "apiVersion: atoll.dev/v1\nkind: Cell",
            "apiVersion: v1\nkind: Cell",
        ),
        ("survives: region", "survives: everything"),
        ("  k: 1\n", "  k: 1\n  k: 1\n"),
        (
            "    blue: {zone: sz-a, weight: 100}",
            "    red: {zone: sz-a, weight: 100}",
        ),
        ("{zone: sh-a, weight: 100}", "{zone: sh-a, weight: 101}"),
        ("{zone: hz-b, weight: 100}", "[zone]"),
        ("scheme: digits", "scheme: hsah"),
        (
            "    - header: x-user-id",
            "    - header: atoll-user\n    - path: x\n    - header: \"a b\"",
        ),
    ]);
    insta::assert_snapshot!(wrong);
}

#[test]
fn routes_that_lead_nowhere_are_named() {
    let wrong = violations(&[(
        "pathPrefix: /\n  kind: sharded\n  user:\n    - header: x-user-id\n    - cookie: user\n    - query: user\n",
        "pathPrefix: /\n  kind: sharded\n---\napiVersion: atoll.dev/v1\nkind: Route\nmetadata: {name: g}\nspec: {pathPrefix: /, kind: global}\n---\napiVersion: atoll.dev/v1\nkind: Route\nmetadata: {name: h}\nspec: {pathPrefix: pay/, kind: nearest}\n",
    )]);
    insta::assert_snapshot!(wrong);
}

#[test]
fn an_empty_file_is_not_a_topology() {
    insta::assert_snapshot!(Topology::parse("# nothing\n").unwrap_err(), @"A0136: no ShardMap: exactly one is needed");
}

#[test]
fn anchors_are_refused_and_broken_yaml_says_where() {
    insta::assert_snapshot!(Topology::parse("a: &x 1\nb: *x\n").unwrap_err());
    insta::assert_snapshot!(resources("kind: [Zone\nmetadata: {name: a}\n").unwrap_err());
}

#[test]
fn stored_resources_name_the_path_instead_of_the_line() {
    let mut stored = resources(THREE_CITIES).unwrap();
    stored.retain(|resource| resource.name != "sz-1");
    stored[0].spec["roundTripMs"]["shanghai"] = 11.into();
    insta::assert_snapshot!(Topology::from_resources(&stored).unwrap_err());
}

#[test]
fn every_code_is_used_once() {
    let mut codes: Vec<_> = Rule::ALL.iter().map(|rule| rule.code()).collect();
    codes.dedup();
    assert_eq!(codes.len(), Rule::ALL.len());
    assert!(codes.is_sorted());
}

#[test]
fn shards_are_written_as_they_are_read() {
    let shards: Vec<_> = parse_shards("0-24,30")
        .unwrap()
        .into_iter()
        .flatten()
        .map(ShardId)
        .collect();
    assert_eq!(format_shards(&shards), "0-24,30");
    for wrong in ["1-", "-1", "2-1", "a", "1,,2", "0-16384", "99999", "+1"] {
        assert!(parse_shards(wrong).is_err(), "{wrong:?}");
    }
}

proptest! {
    #[test]
    fn garbage_is_refused_without_panic(text in "\\PC{0,200}") {
        prop_assert!(Topology::parse(&text).is_err());
    }

    #[test]
    fn a_damaged_example_never_panics(
        cut in 0..THREE_CITIES.len(),
        len in 0usize..40,
        text in "[-a-z0-9:{}\\[\\], \n\"'&*!|>#%]{0,12}",
    ) {
        prop_assume!(THREE_CITIES.is_char_boundary(cut));
        let end = THREE_CITIES.len().min(cut + len);
        let damaged = format!("{}{text}{}", &THREE_CITIES[..cut], &THREE_CITIES[end..]);
        if let Err(violations) = Topology::parse(&damaged) {
            prop_assert!(!violations.0.is_empty());
        }
    }
}
