//! Addresses of a world, as golden text: other programs and people rely on them.

use atoll_topology::Topology;
use atoll_world::{Plan, links_of};

fn topology() -> Topology {
    Topology::parse(include_str!("../../examples/topologies/three-cities.yaml"))
        .expect("a topology")
}

#[test]
fn an_address_tells_world_region_zone_and_process() {
    let plan = Plan::lay_out(&topology(), 7).expect("it fits");
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
