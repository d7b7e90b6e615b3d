//! The address book: which process stands where.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use atoll_topology::{CellId, GroupId, MemberId, ProcessId, RegionId, ZoneId};
use serde::{Deserialize, Serialize};

/// Port of a gateway for its peers.
pub(crate) const GATEWAY_PEER_PORT: u16 = 8081;
/// Port of an application's instance.
pub(crate) const APPLICATION_PORT: u16 = 9000;
/// SQL port of routers and agents.
pub(crate) const SQL_PORT: u16 = 5432;

/// What a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PlaceRole {
    /// A replica of control.
    Control,
    /// Serves tables.
    Mesh,
    /// HTTP, at a cell's edge.
    Gateway,
    /// SQL, in front of data groups.
    SqlRouter,
    /// A data-group member's agent.
    Agent,
    /// An instance of the application.
    Application,
}

/// One process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// Its name.
    pub process: ProcessId,
    /// What it is.
    pub role: PlaceRole,
    /// Its own address; ports are fixed by role.
    pub ip: IpAddr,
    /// Its city; none outside the regions.
    #[serde(default)]
    pub region: Option<RegionId>,
    /// Its data centre.
    #[serde(default)]
    pub zone: Option<ZoneId>,
    /// The cell that it serves.
    #[serde(default)]
    pub cell: Option<CellId>,
    /// The data group that it belongs to.
    #[serde(default)]
    pub group: Option<GroupId>,
    /// The member whose agent it is.
    #[serde(default)]
    pub member: Option<MemberId>,
}

/// All processes, by name.
#[derive(Debug, Clone, Default)]
pub(crate) struct Places(BTreeMap<ProcessId, Place>);

impl Places {
    /// From the configuration's list.
    pub(crate) fn new(places: Vec<Place>) -> Self {
        Self(
            places
                .into_iter()
                .map(|place| (place.process.clone(), place))
                .collect(),
        )
    }

    /// Names exactly these places.
    pub(crate) fn hash(&self) -> String {
        let all: Vec<&Place> = self.0.values().collect();
        let text = crate::stored::encode(&all);
        crate::plans::hash_of(&String::from_utf8_lossy(&text))
    }

    /// One of them.
    pub(crate) fn get(&self, process: &ProcessId) -> Option<&Place> {
        self.0.get(process)
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Place> {
        self.0.values()
    }

    /// The gateways and routers that there should be.
    pub(crate) fn data_planes(&self) -> Vec<ProcessId> {
        let roles = [PlaceRole::Gateway, PlaceRole::SqlRouter];
        let planes = self.iter().filter(|place| roles.contains(&place.role));
        planes.map(|place| place.process.clone()).collect()
    }

    /// Addresses of a cell's processes of one role, at a port.
    pub(crate) fn of_cell<'a>(
        &'a self,
        cell: &'a CellId,
        role: PlaceRole,
        port: u16,
    ) -> impl Iterator<Item = SocketAddr> + 'a {
        self.iter()
            .filter(move |place| place.role == role && place.cell.as_ref() == Some(cell))
            .map(move |place| SocketAddr::new(place.ip, port))
    }

    /// Where a member's agent stands.
    pub(crate) fn member(&self, member: &MemberId) -> Option<&Place> {
        self.iter()
            .find(|place| place.role == PlaceRole::Agent && place.member.as_ref() == Some(member))
    }
}
