//! Where everything stands in the simulated world.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context, Result};
use atoll_control::{Place, PlaceRole as Role};
use atoll_topology::{ProcessId, Topology, ZoneId};

/// The number of the simulated world, in addresses.
const WORLD: u8 = 7;

/// A replica of control in each city, four processes of each cell, an
/// agent of each member.
pub(super) fn lay_out(topology: &Topology) -> Result<Vec<Place>> {
    let mut used: BTreeMap<ZoneId, u8> = BTreeMap::new();
    let mut place = |name: String, role, zone: &ZoneId| -> Result<Place> {
        let region = topology.zones.get(zone).context("a zone")?.region.clone();
        let number = topology.regions.keys().position(|id| *id == region);
        let number = number.context("a region")? + 1;
        let count = used.entry(zone.clone()).or_default();
        *count += 1;
        Ok(Place {
            process: ProcessId::parse(&name).map_err(|error| anyhow::anyhow!("{error}"))?,
            role,
            ip: at_region(number, *count),
            region: Some(region),
            zone: Some(zone.clone()),
            cell: None,
            group: None,
            member: None,
        })
    };
    let mut places = Vec::new();
    for (zone, spec) in &topology.zones {
        places.push(place(
            format!("{}-control", spec.region),
            Role::Control,
            zone,
        )?);
    }
    for (cell, spec) in &topology.cells {
        let slot = spec.slots.values().next().context("a slot")?;
        for (tail, role) in [
            ("mesh", Role::Mesh),
            ("gateway", Role::Gateway),
            ("sql-router", Role::SqlRouter),
            ("application", Role::Application),
        ] {
            let mut of_cell = place(format!("{cell}-{tail}"), role, &slot.zone)?;
            of_cell.cell = Some(cell.clone());
            places.push(of_cell);
        }
    }
    for (group, spec) in &topology.groups {
        for (index, member) in spec.members.iter().enumerate() {
            let name = format!("{group}-agent-{}", index + 1);
            let mut agent = place(name, Role::Agent, &member.zone)?;
            (agent.group, agent.member) = (Some(group.clone()), Some(member.id.clone()));
            places.push(agent);
        }
    }
    Ok(places)
}

/// Where a process listens for `protocol`; ports are the same in every world.
pub(super) fn address(place: &Place, protocol: &str) -> SocketAddr {
    let port = match protocol {
        "api" => 7600,
        "grpc" => 7601,
        "mesh" => 7800,
        "edge" => 8080,
        "peer" => 8081,
        "sql" => 5432,
        "calls" => 7700,
        "replication" => 7701,
        "http" => 9000,
        _ => 9900,
    };
    SocketAddr::new(place.ip, port)
}

/// An address in a region; 0 is outside of all.
pub(super) fn at_region(region: usize, number: u8) -> IpAddr {
    let third = u8::try_from(region << 4).unwrap_or(u8::MAX);
    Ipv4Addr::new(127, WORLD, third, number).into()
}
