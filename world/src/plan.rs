//! Topology → which processes a world has, where each stands, and under which address.
//!
//! An address tells where a process is: `127.W.(16·R+Z).n`, world W, region R from 1 (0 is outside
//! all regions), zone Z within its region from 0, process n from 1.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};

use atoll_topology::{CellId, GroupId, MemberId, ProcessId, RegionId, Topology, ZoneId};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::options::Store;

/// Regions that fit into an address: 4 bits, 0 is `outside`.
pub const REGIONS_MAX: usize = 15;
/// Zones of one region that fit into an address: 4 bits.
pub const ZONES_PER_REGION_MAX: usize = 16;
/// Processes of one zone that fit into an address.
pub const PROCESSES_PER_ZONE_MAX: u8 = 250;

/// What stands outside all regions.
pub const OUTSIDE: &str = "outside";

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Decides, and keeps the records.
    Control,
    /// A node of the store that control's replicas share.
    Etcd,
    /// Serves tables to the data planes of one cell.
    Mesh,
    /// Takes a cell's user requests.
    Gateway,
    /// Takes a cell's SQL.
    SqlRouter,
    /// Looks after one PostgreSQL of a data group.
    Agent,
    /// The application of a cell; the world knows only how to start it.
    Application,
}

/// One port of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port {
    /// What it speaks, as `status` names it.
    pub protocol: &'static str,
    /// The same in every world, because the address differs.
    pub port: u16,
}

const fn port(protocol: &'static str, port: u16) -> Port {
    Port { protocol, port }
}

const ADMIN: Port = port("admin", 9900);

impl Role {
    /// The word for it, and the subcommand of `atoll` that runs it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Etcd => "etcd",
            Self::Mesh => "mesh",
            Self::Gateway => "gateway",
            Self::SqlRouter => "sql-router",
            Self::Agent => "agent",
            Self::Application => "application",
        }
    }

    /// The tail of its processes' names.
    pub fn tail(self) -> &'static str {
        match self {
            Self::Application => "bank",
            role => role.word(),
        }
    }

    /// Where it listens.
    pub fn ports(self) -> &'static [Port] {
        match self {
            Self::Control => const { &[port("api", 7600), port("grpc", 7601), ADMIN] },
            Self::Etcd => const { &[port("client", 2379), port("peer", 2380)] },
            Self::Mesh => const { &[port("mesh", 7800), ADMIN] },
            Self::Gateway => const { &[port("edge", 8080), port("peer", 8081), ADMIN] },
            Self::SqlRouter => const { &[port("sql", 5432), ADMIN] },
            Self::Agent => {
                const {
                    &[
                        port("sql", 5432),
                        port("calls", 7700),
                        port("replication", 7701),
                        ADMIN,
                    ]
                }
            }
            Self::Application => const { &[port("http", 9000)] },
        }
    }
}

/// A process and where it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// Its name: `<cell or group>-<role>[-<n>]`.
    #[serde(rename = "process")]
    pub id: ProcessId,
    /// What it does.
    pub role: Role,
    /// Its own address.
    pub ip: Ipv4Addr,
    /// Its city; none for what stands outside the regions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<RegionId>,
    /// Its data centre.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<ZoneId>,
    /// The cell that it serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cell: Option<CellId>,
    /// The data group that it carries a member of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupId>,
    /// Which member that is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<MemberId>,
}

impl Place {
    /// Its addresses by protocol.
    pub fn addresses(&self) -> BTreeMap<String, SocketAddrV4> {
        let at = |p: &Port| (p.protocol.to_owned(), SocketAddrV4::new(self.ip, p.port));
        self.role.ports().iter().map(at).collect()
    }

    /// Where it listens for `protocol`.
    pub fn address(&self, protocol: &str) -> Option<SocketAddrV4> {
        let found = self.role.ports().iter().find(|p| p.protocol == protocol)?;
        Some(SocketAddrV4::new(self.ip, found.port))
    }

    /// Whether `name` means this process: its own name, its cell's, its zone's or its region's.
    pub fn answers_to(&self, name: &str) -> bool {
        self.id.as_str() == name
            || self.cell.as_ref().is_some_and(|c| c.as_str() == name)
            || self.zone.as_ref().is_some_and(|z| z.as_str() == name)
            || self.region.as_ref().is_some_and(|r| r.as_str() == name)
    }
}

/// A world's processes and addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// W of its addresses.
    pub world: u8,
    /// Region numbers: `outside`, then the topology's regions in the order of their names.
    pub regions: Vec<String>,
    /// All processes: control, then each cell's, then each group's, then a shared store's.
    pub places: Vec<Place>,
}

/// Why a topology does not fit on one machine.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TooLarge {
    /// Too many regions.
    #[error("a local world has room for {REGIONS_MAX} regions; this topology has {0}")]
    Regions(usize),
    /// Too many zones in one region.
    #[error("a local world has room for {ZONES_PER_REGION_MAX} zones in a region; {0} has more")]
    Zones(RegionId),
    /// Too many processes in one zone.
    #[error(
        "a local world has room for {PROCESSES_PER_ZONE_MAX} processes in a zone; {0} has more"
    )]
    Processes(ZoneId),
    /// Two names joined are longer than a process's name may be.
    #[error("{0} cannot be named: {1}")]
    Name(String, String),
    /// etcd needs places that are not lost together.
    #[error(
        "a store that survives the loss of a city needs three of them; this topology has {0} with \
         a zone (leave --store out for one replica of control with a file)"
    )]
    TooFewRegions(usize),
    /// A cell has no slot to run in.
    #[error("cell {0} has no slot that runs")]
    NoSlot(CellId),
}

impl Plan {
    /// Lays `topology` out as world number `world`. The same topology gives the same plan, and the
    /// store changes no address of another process.
    pub fn lay_out(topology: &Topology, world: u8, store: &Store) -> Result<Self, TooLarge> {
        if topology.regions.len() > REGIONS_MAX {
            return Err(TooLarge::Regions(topology.regions.len()));
        }
        let mut regions = vec![OUTSIDE.to_owned()];
        regions.extend(topology.regions.keys().map(ToString::to_string));
        let mut layout = Layout {
            topology,
            world,
            thirds: thirds(topology)?,
            used: BTreeMap::new(),
        };

        let mut places = Vec::new();
        if *store == Store::Redb {
            places.push(Place {
                id: process(Role::Control.word())?,
                role: Role::Control,
                ip: Ipv4Addr::new(127, world, 0, 1),
                region: None,
                zone: None,
                cell: None,
                group: None,
                member: None,
            });
        }
        for (cell, spec) in &topology.cells {
            let heaviest = spec.slots.values().max_by_key(|slot| slot.weight);
            let zone = &heaviest.ok_or_else(|| TooLarge::NoSlot(cell.clone()))?.zone;
            for role in [
                Role::Mesh,
                Role::Gateway,
                Role::SqlRouter,
                Role::Application,
            ] {
                let mut place =
                    layout.place(process(&format!("{cell}-{}", role.tail()))?, role, zone)?;
                place.cell = Some(cell.clone());
                places.push(place);
            }
        }
        for (group, spec) in &topology.groups {
            for (index, member) in spec.members.iter().enumerate() {
                let id = process(&format!("{group}-agent-{}", index + 1))?;
                let mut place = layout.place(id, Role::Agent, &member.zone)?;
                place.group = Some(group.clone());
                place.member = Some(member.id.clone());
                places.push(place);
            }
        }
        if *store != Store::Redb {
            for (region, zone) in store_zones(topology)? {
                for role in [Role::Etcd, Role::Control] {
                    let id = process(&format!("{region}-{}", role.word()))?;
                    places.push(layout.place(id, role, &zone)?);
                }
            }
        }
        Ok(Self {
            world,
            regions,
            places,
        })
    }

    /// The process of that name.
    pub fn place(&self, id: &str) -> Option<&Place> {
        self.places.iter().find(|p| p.id.as_str() == id)
    }

    /// All that a name means: a process, or a cell's, zone's or region's processes; else a data
    /// group's agents (a cell of the same name comes first: a cell's data stands elsewhere too).
    pub fn meant_by(&self, name: &str) -> Vec<&Place> {
        let found: Vec<&Place> = self.places.iter().filter(|p| p.answers_to(name)).collect();
        if !found.is_empty() {
            return found;
        }
        let of_group = |p: &&Place| p.group.as_ref().is_some_and(|g| g.as_str() == name);
        self.places.iter().filter(of_group).collect()
    }

    /// All processes of a role, those in the region of `seen_from` first.
    pub fn of_role(&self, role: Role, seen_from: Option<&RegionId>) -> Vec<&Place> {
        let mut found: Vec<&Place> = self.places.iter().filter(|p| p.role == role).collect();
        found.sort_by_key(|place| seen_from.is_none() || place.region.as_ref() != seen_from);
        found
    }

    /// The process of `role` in `cell`.
    pub fn of_cell(&self, role: Role, cell: &CellId) -> Option<&Place> {
        self.places
            .iter()
            .find(|p| p.role == role && p.cell.as_ref() == Some(cell))
    }
}

fn process(name: &str) -> Result<ProcessId, TooLarge> {
    ProcessId::parse(name).map_err(|error| TooLarge::Name(name.to_owned(), error.to_string()))
}

/// Where the store's nodes stand: the first zone of each of the first three regions, of five where
/// there are so many.
fn store_zones(topology: &Topology) -> Result<Vec<(RegionId, ZoneId)>, TooLarge> {
    let first = |region: &RegionId| {
        let mut zones = topology.zones.iter();
        zones.find(|(_, zone)| zone.region == *region)
    };
    let mut places: Vec<_> = topology
        .regions
        .keys()
        .filter_map(|region| Some((region.clone(), first(region)?.0.clone())))
        .collect();
    match places.len() {
        few @ 0..3 => return Err(TooLarge::TooFewRegions(few)),
        3 | 4 => places.truncate(3),
        _ => places.truncate(5),
    }
    Ok(places)
}

/// The third number of each zone's addresses.
fn thirds(topology: &Topology) -> Result<BTreeMap<ZoneId, u8>, TooLarge> {
    let mut thirds = BTreeMap::new();
    for (r, region) in topology.regions.keys().enumerate() {
        let zones = topology
            .zones
            .iter()
            .filter(|(_, zone)| zone.region == *region);
        for (z, (zone, _)) in zones.enumerate() {
            let third = u8::try_from(16 * (r + 1) + z)
                .ok()
                .filter(|_| z < ZONES_PER_REGION_MAX);
            thirds.insert(
                zone.clone(),
                third.ok_or_else(|| TooLarge::Zones(region.clone()))?,
            );
        }
    }
    Ok(thirds)
}

struct Layout<'t> {
    topology: &'t Topology,
    world: u8,
    thirds: BTreeMap<ZoneId, u8>,
    used: BTreeMap<ZoneId, u8>,
}

impl Layout<'_> {
    fn place(&mut self, id: ProcessId, role: Role, zone: &ZoneId) -> Result<Place, TooLarge> {
        let third = self.thirds.get(zone).copied().unwrap_or_default();
        let n = self.used.entry(zone.clone()).or_default();
        *n += 1;
        if *n > PROCESSES_PER_ZONE_MAX {
            return Err(TooLarge::Processes(zone.clone()));
        }
        let ip = Ipv4Addr::new(127, self.world, third, *n);
        let region = self.topology.zones.get(zone).map(|z| z.region.clone());
        let (cell, group, member) = (None, None, None);
        Ok(Place {
            id,
            role,
            ip,
            region,
            zone: Some(zone.clone()),
            cell,
            group,
            member,
        })
    }
}
