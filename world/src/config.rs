//! The configuration file of each process. The services read them; they are known here by the
//! names of their keys alone.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::SocketAddrV4;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use atoll_topology::Topology;
use serde_json::{Map, Value, json};
use thiserror::Error;

use crate::directory::{Directory, worlds_of_this_user};
use crate::options::{Record, Store};
use crate::plan::{Place, Role};

/// Why a configuration cannot be made.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The plan lacks what a process needs.
    #[error("{process} needs {what}, and the plan has none")]
    Missing {
        /// For whom.
        process: String,
        /// What.
        what: &'static str,
    },
    /// It cannot be written.
    #[error("{} cannot be written", path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It cannot be said in YAML.
    #[error("the configuration of {0} cannot be written as YAML: {1}")]
    Yaml(String, String),
}

/// Writes `config/<process>.yaml` for every process but the application.
pub(crate) fn write_all(
    directory: &Directory,
    record: &Record,
    topology: &Topology,
) -> Result<(), ConfigError> {
    make_peer_key(directory)?;
    for place in record
        .plan
        .places
        .iter()
        .filter(|p| p.role != Role::Application)
    {
        let value = config_of(
            &World {
                directory,
                record,
                topology,
            },
            place,
        )?;
        let text = serde_saphyr::to_string(&value)
            .map_err(|error| ConfigError::Yaml(place.id.to_string(), error.to_string()))?;
        let path = directory.config_of(place.id.as_str());
        fs::write(&path, text).map_err(|source| ConfigError::Write { path, source })?;
    }
    Ok(())
}

/// The world's key for gateways among themselves: made once, 64 hexadecimal digits.
fn make_peer_key(directory: &Directory) -> Result<(), ConfigError> {
    let path = directory.peer_key();
    let write = |source| ConfigError::Write {
        path: path.clone(),
        source,
    };
    if path.try_exists().map_err(write)? {
        return Ok(());
    }
    let mut random = [0_u8; 32];
    let mut source = File::open("/dev/urandom").map_err(write)?;
    source.read_exact(&mut random).map_err(write)?;
    let digits: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let open = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path);
    open.and_then(|mut file| file.write_all(digits.as_bytes()))
        .map_err(write)
}

/// All that configurations are made from.
struct World<'a> {
    directory: &'a Directory,
    record: &'a Record,
    topology: &'a Topology,
}

fn config_of(world: &World<'_>, place: &Place) -> Result<Value, ConfigError> {
    let mut config = Map::new();
    // Read by the binary for every role; the rest is the role's own.
    config.insert(
        "runtime".to_owned(),
        json!({
            "source": place.ip,
            "links_file": world.directory.links(),
            "clock_file": world.directory.clock_of(place.id.as_str()),
        }),
    );
    let own = match place.role {
        Role::Control => world.control(place),
        Role::Etcd => world.etcd(place)?,
        Role::Mesh => world.mesh(place)?,
        Role::Gateway => world.gateway(place)?,
        Role::SqlRouter => world.sql_router(place)?,
        Role::Agent => world.agent(place)?,
        Role::Application => Value::Null,
    };
    if let Value::Object(own) = own {
        config.extend(own);
    }
    Ok(Value::Object(config))
}

impl World<'_> {
    fn data(&self, place: &Place) -> PathBuf {
        self.directory.data_of(place.id.as_str())
    }

    /// Where a process finds the replicas of control, or the store's nodes: the nearest first.
    fn all_of(&self, role: Role, protocol: &str, place: &Place) -> Vec<SocketAddrV4> {
        let all = self.record.plan.of_role(role, place.region.as_ref());
        all.iter().filter_map(|p| p.address(protocol)).collect()
    }

    fn streams(&self, place: &Place) -> Result<Vec<SocketAddrV4>, ConfigError> {
        let all = self.all_of(Role::Control, "grpc", place);
        needed(place, (!all.is_empty()).then_some(all), "a control")
    }

    fn etcd(&self, place: &Place) -> Result<Value, ConfigError> {
        let program = match &self.record.options.store {
            Store::Etcd { program } => Some(program),
            Store::Redb => None,
        };
        let nodes = self.record.plan.of_role(Role::Etcd, None);
        let members: Map<String, Value> = nodes
            .iter()
            .map(|node| (node.id.to_string(), json!(node.address("peer"))))
            .collect();
        Ok(json!({
            "process": place.id,
            "program": needed(place, program, "etcd's program")?,
            "client": place.address("client"),
            "peer": place.address("peer"),
            "data": self.data(place),
            "log": self.directory.log_of(place.id.as_str()),
            "members": members,
        }))
    }

    fn control(&self, place: &Place) -> Value {
        let of_services = self.record.plan.places.iter();
        let places: Vec<&Place> = of_services.filter(|p| p.role != Role::Etcd).collect();
        let mut config = json!({
            "process": place.id,
            "api": place.address("api"),
            "streams": place.address("grpc"),
            "admin": place.address("admin"),
            "data": self.data(place),
            "topology": self.directory.topology(),
            "places": places,
            // Local worlds are there to be switched often.
            "automatic_switch_min_interval_seconds": 0,
            "automatic_window_seconds": self.record.options.automatic_window_seconds,
        });
        if let (Store::Etcd { .. }, Value::Object(keys)) = (&self.record.options.store, &mut config)
        {
            let endpoints = self.all_of(Role::Etcd, "client", place);
            keys.insert(
                "store".to_owned(),
                json!({ "etcd": { "endpoints": endpoints } }),
            );
        }
        config
    }

    fn mesh(&self, place: &Place) -> Result<Value, ConfigError> {
        Ok(json!({
            "process": place.id,
            "region": place.region,
            "cell": place.cell,
            "listen": place.address("mesh"),
            "admin": place.address("admin"),
            "table_file": self.data(place).join("table"),
            "control": self.streams(place)?,
        }))
    }

    fn gateway(&self, place: &Place) -> Result<Value, ConfigError> {
        let mut config = json!({
            "process": place.id,
            "region": place.region,
            "cell": place.cell,
            "edge": place.address("edge"),
            "peer": place.address("peer"),
            "admin": place.address("admin"),
            "table_file": self.data(place).join("table"),
            "peer_key_file": self.directory.peer_key(),
            "meshes": [of_cell(self.record, place, Role::Mesh, "mesh")?],
            // Many gateways share the cores of one machine.
            "workers": 1,
        });
        if let (Some(canary), Value::Object(keys)) = (&self.record.options.canary, &mut config) {
            let canary = json!({ "method": canary.method, "path": canary.path });
            keys.insert("canary".to_owned(), canary);
        }
        Ok(config)
    }

    fn sql_router(&self, place: &Place) -> Result<Value, ConfigError> {
        Ok(json!({
            "process": place.id,
            "region": place.region,
            "cell": place.cell,
            "listen": place.address("sql"),
            "admin": place.address("admin"),
            "table_file": self.data(place).join("table"),
            "meshes": [of_cell(self.record, place, Role::Mesh, "mesh")?],
        }))
    }

    fn agent(&self, place: &Place) -> Result<Value, ConfigError> {
        let group = needed(place, place.group.as_ref(), "a data group")?;
        let spec = needed(
            place,
            self.topology.groups.get(group),
            "its data group's members",
        )?;
        let of_group = self
            .record
            .plan
            .places
            .iter()
            .filter(|p| p.group.as_ref() == Some(group));
        let members: Map<String, Value> = of_group
            .filter_map(|p| {
                let at = json!({
                    "calls": p.address("calls"),
                    "replication": p.address("replication"),
                });
                Some((p.member.as_ref()?.to_string(), at))
            })
            .collect();
        Ok(json!({
            "process": place.id,
            "group": place.group,
            "member": place.member,
            "sql": place.address("sql"),
            "calls": place.address("calls"),
            "replication": place.address("replication"),
            "admin": place.address("admin"),
            "data": self.data(place),
            "control": self.streams(place)?,
            "members": members,
            "k": spec.k,
            "cells": self.topology.cells.keys().collect::<Vec<_>>(),
            // Shared by all worlds of this user: an empty database is made once.
            "templates": worlds_of_this_user().join("templates"),
        }))
    }
}

fn of_cell(
    record: &Record,
    place: &Place,
    role: Role,
    protocol: &'static str,
) -> Result<SocketAddrV4, ConfigError> {
    let cell = needed(place, place.cell.as_ref(), "a cell")?;
    let found = record
        .plan
        .of_cell(role, cell)
        .and_then(|p| p.address(protocol));
    needed(place, found, protocol)
}

fn needed<T>(place: &Place, found: Option<T>, what: &'static str) -> Result<T, ConfigError> {
    found.ok_or_else(|| ConfigError::Missing {
        process: place.id.to_string(),
        what,
    })
}

/// The shell command of a cell's application.
pub(crate) fn app_command(
    directory: &Directory,
    record: &Record,
    place: &Place,
) -> Result<String, ConfigError> {
    let sql = of_cell(record, place, Role::SqlRouter, "sql")?;
    let http = needed(place, place.address("http"), "an address")?;
    let text = |value: Option<&str>| value.unwrap_or_default().to_owned();
    let filled = [
        (
            "{cell}",
            text(place.cell.as_ref().map(atoll_topology::CellId::as_str)),
        ),
        (
            "{region}",
            text(place.region.as_ref().map(atoll_topology::RegionId::as_str)),
        ),
        (
            "{zone}",
            text(place.zone.as_ref().map(atoll_topology::ZoneId::as_str)),
        ),
        ("{ip}", place.ip.to_string()),
        ("{http}", http.to_string()),
        ("{sql}", sql.to_string()),
        (
            "{dir}",
            directory.data_of(place.id.as_str()).display().to_string(),
        ),
    ];
    let mut line = record.options.app.clone();
    for (name, value) in filled {
        line = line.replace(name, &value);
    }
    Ok(line)
}
