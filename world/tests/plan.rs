//! Addresses of a world, as golden text: other programs and people rely on them.

use atoll_topology::Topology;
use atoll_world::{Plan, Store, links_of};

fn topology() -> Topology {
    Topology::parse(include_str!("../../examples/topologies/three-cities.yaml"))
        .expect("a topology")
}

#[test]
fn an_address_tells_world_region_zone_and_process() {
    let plan = Plan::lay_out(&topology(), 7, &Store::Redb).expect("it fits");
    let lines: Vec<String> = plan
        .places
        .iter()
        .map(|p| {
            format!(
                "{} {} {}",
                p.ip,
                p.id,
                p.zone.as_ref().map_or("-", |z| z.as_str())
            )
        })
        .collect();
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn a_shared_store_has_a_node_and_a_replica_of_control_in_each_city_and_moves_nobody() {
    let store = Store::Etcd {
        program: "etcd".into(),
    };
    let plan = Plan::lay_out(&topology(), 7, &store).expect("it fits");
    let alone = Plan::lay_out(&topology(), 7, &Store::Redb).expect("it fits");
    let (before, added) = plan.places.split_at(alone.places.len() - 1);
    assert_eq!(before, &alone.places[1..]);
    let added: Vec<_> = added.iter().map(|p| format!("{} {}", p.ip, p.id)).collect();
    insta::assert_snapshot!(added.join("\n"), @"
    127.7.16.7 hangzhou-etcd
    127.7.16.8 hangzhou-control
    127.7.32.7 shanghai-etcd
    127.7.32.8 shanghai-control
    127.7.48.7 shenzhen-etcd
    127.7.48.8 shenzhen-control
    ");
    let near = plan.of_role(atoll_world::Role::Control, plan.places[8].region.as_ref());
    assert_eq!(near[0].region, plan.places[8].region);
}

#[test]
fn a_shared_store_has_five_nodes_where_there_are_five_regions_and_three_where_there_are_four() {
    let store = Store::Etcd {
        program: "etcd".into(),
    };
    let nodes_of = |regions: &[&str]| {
        let resource = |kind: &str, name: &str, spec: &str| {
            format!(
                "apiVersion: atoll.dev/v1\nkind: {kind}\nmetadata: {{name: {name}}}\n\
                 spec: {spec}\n---\n"
            )
        };
        let more = regions.iter().map(|name| {
            let zone = resource("Zone", &format!("{name}-a"), &format!("{{region: {name}}}"));
            resource("Region", name, "{}") + &zone
        });
        let three = include_str!("../../examples/topologies/three-cities.yaml");
        let text = more.collect::<String>() + three;
        let plan = Plan::lay_out(&Topology::parse(&text).expect("a topology"), 7, &store);
        let plan = plan.expect("it fits");
        let nodes = plan.of_role(atoll_world::Role::Etcd, None);
        let names = nodes.iter().map(|node| node.id.to_string());
        names.collect::<Vec<_>>().join(" ")
    };
    insta::assert_snapshot!(nodes_of(&["beijing"]), @"beijing-etcd hangzhou-etcd shanghai-etcd");
    insta::assert_snapshot!(nodes_of(&["beijing", "chengdu", "wuhan"]), @"beijing-etcd chengdu-etcd hangzhou-etcd shanghai-etcd shenzhen-etcd");
}

#[test]
fn a_link_is_half_a_round_trip_each_way() {
    let links = links_of(&topology(), 8.0);
    assert_eq!(
        links.regions,
        ["outside", "hangzhou", "shanghai", "shenzhen"]
    );
    let delay = |from: &str, to: &str| {
        links
            .links
            .iter()
            .find(|l| l.from == from && l.to == to)
            .map(|l| l.delay_ms)
    };
    assert_eq!(delay("hangzhou", "shanghai"), Some(5.0));
    assert_eq!(delay("shanghai", "hangzhou"), Some(5.0));
    assert_eq!(delay("outside", "shenzhen"), Some(4.0));
    assert_eq!(links.links.len(), 12);
}
