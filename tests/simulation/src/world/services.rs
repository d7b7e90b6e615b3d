//! The services of the simulated world: what each process is told, and that it is served.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Error, Result};
use atoll_control::{Place, PlaceRole as Role};
use atoll_runtime::Runtime;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::World;
use super::places::address;
use crate::app::App;
use crate::member::{self, Ground};
use crate::store::Way;

impl World {
    /// Gives the process of this place its host.
    pub(super) fn service(&mut self, sim: &mut turmoil::Sim<'_>, place: &Place) -> Result<()> {
        match place.role {
            Role::Control => {
                let store = Way::to(self.memory.clone());
                self.stores.push(store.clone());
                self.serve(
                    sim,
                    place,
                    self.of_control(place),
                    move |config, runtime| {
                        let store = Arc::new(store.clone());
                        async { atoll_control::serve_on(config, store, runtime, |_| {}).await }
                    },
                )
            }
            Role::Mesh => self.serve(sim, place, self.of_mesh(place), |config, runtime| {
                atoll_mesh::serve(config, runtime, |_| {})
            }),
            Role::Gateway => self.serve(sim, place, self.of_gateway(place)?, |config, runtime| {
                atoll_gateway::serve(config, runtime, |_| {})
            }),
            Role::SqlRouter => self.serve(sim, place, self.of_router(place)?, |config, runtime| {
                atoll_sql_router::serve(config, runtime, |_| {})
            }),
            Role::Application => self.application(sim, place),
            Role::Agent => {
                let id = place.member.as_ref().context("a member")?;
                let ground = Ground {
                    disk: self.disks[id].clone(),
                    killer: self.killers[id].clone(),
                    oracle: self.oracle.clone(),
                    weakened: self.weakened,
                };
                self.serve(sim, place, self.of_agent(place)?, move |config, runtime| {
                    member::serve(config, runtime, ground.clone())
                })
            }
        }
    }

    /// A service, from the same configuration at each start.
    fn serve<C, F, Fut, E>(
        &mut self,
        sim: &mut turmoil::Sim<'_>,
        place: &Place,
        told: Value,
        serve: F,
    ) -> Result<()>
    where
        C: DeserializeOwned + Clone + 'static,
        F: Fn(C, Runtime) -> Fut + 'static,
        Fut: Future<Output = Result<(), E>> + 'static,
        E: Into<Error>,
    {
        let config: C = serde_json::from_value(told)
            .with_context(|| format!("the configuration of {}", place.process))?;
        let name = place.process.as_str();
        self.host(sim, name, place.ip, Some(place.role), move |runtime| {
            let served = serve(config.clone(), runtime);
            async { served.await.map_err(Into::into) }
        });
        Ok(())
    }

    fn application(&mut self, sim: &mut turmoil::Sim<'_>, place: &Place) -> Result<()> {
        let cell = place.cell.clone().context("a cell")?;
        let router = self.of_cell(place, Role::SqlRouter, "sql")?;
        let at = address(place, "http");
        let (oracle, weakened) = (self.oracle.clone(), self.weakened);
        let name = place.process.as_str();
        self.host(sim, name, place.ip, Some(place.role), move |runtime| {
            let app = App {
                runtime,
                cell: cell.clone(),
                router,
                oracle: oracle.clone(),
                weakened,
                idle: std::sync::Mutex::default(),
            };
            async move { Ok(Arc::new(app).serve(at).await?) }
        });
        Ok(())
    }

    fn of_control(&self, place: &Place) -> Value {
        json!({
            "process": place.process,
            "api": address(place, "api"),
            "streams": address(place, "grpc"),
            "admin": address(place, "admin"),
            "data": self.data(place),
            "topology": self.directory.path().join("topology.yaml"),
            "places": self.places,
            "automatic_switch_min_interval_seconds": 0,
            "automatic_window_seconds": 1,
        })
    }

    fn of_mesh(&self, place: &Place) -> Value {
        json!({
            "process": place.process,
            "region": place.region,
            "cell": place.cell,
            "listen": address(place, "mesh"),
            "admin": address(place, "admin"),
            "table_file": self.data(place).join("table"),
            "control": self.addresses(Role::Control, "grpc"),
        })
    }

    fn of_gateway(&self, place: &Place) -> Result<Value> {
        Ok(json!({
            "process": place.process,
            "region": place.region,
            "cell": place.cell,
            "edge": address(place, "edge"),
            "peer": address(place, "peer"),
            "admin": address(place, "admin"),
            "table_file": self.data(place).join("table"),
            "peer_key_file": self.directory.path().join("peer-key"),
            "meshes": [self.of_cell(place, Role::Mesh, "mesh")?],
            "workers": 1,
            "canary": { "method": "POST", "path": "/canary" },
        }))
    }

    fn of_router(&self, place: &Place) -> Result<Value> {
        Ok(json!({
            "process": place.process,
            "region": place.region,
            "cell": place.cell,
            "listen": address(place, "sql"),
            "admin": address(place, "admin"),
            "table_file": self.data(place).join("table"),
            "meshes": [self.of_cell(place, Role::Mesh, "mesh")?],
        }))
    }

    fn of_agent(&self, place: &Place) -> Result<Value> {
        let group = place.group.as_ref().context("a group")?;
        let mut members = BTreeMap::new();
        for other in &self.places {
            if let (Some(member), true) = (&other.member, other.group == place.group) {
                let peer = json!({
                    "calls": address(other, "calls"),
                    "replication": address(other, "replication"),
                });
                members.insert(member, peer);
            }
        }
        Ok(json!({
            "process": place.process,
            "group": group,
            "member": place.member,
            "sql": address(place, "sql"),
            "calls": address(place, "calls"),
            "replication": address(place, "replication"),
            "admin": address(place, "admin"),
            "data": self.data(place),
            "control": self.addresses(Role::Control, "grpc"),
            "members": members,
            "k": self.topology.groups[group].k,
        }))
    }

    pub(super) fn addresses(&self, role: Role, protocol: &str) -> Vec<SocketAddr> {
        let of_role = self.places.iter().filter(|place| place.role == role);
        of_role.map(|place| address(place, protocol)).collect()
    }

    fn of_cell(&self, place: &Place, role: Role, protocol: &str) -> Result<SocketAddr> {
        let cell = place.cell.as_ref().context("a cell")?;
        let of_cell = |found: &&Place| found.role == role && found.cell.as_ref() == Some(cell);
        let found = self.places.iter().find(of_cell);
        Ok(address(found.context("a process of the cell")?, protocol))
    }

    fn data(&self, place: &Place) -> PathBuf {
        self.directory.path().join(place.process.as_str())
    }
}
