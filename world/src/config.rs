//! The configuration file of each process. The services read them; they are known here by the
//! names of their keys alone.

use std::fs;
use std::io;
use std::path::PathBuf;

use serde_json::{Map, Value, json};
use thiserror::Error;

use crate::directory::Directory;
use crate::options::Record;
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
pub(crate) fn write_all(directory: &Directory, record: &Record) -> Result<(), ConfigError> {
    for place in record
        .plan
        .places
        .iter()
        .filter(|p| p.role != Role::Application)
    {
        let value = config_of(directory, record, place)?;
        let text = serde_saphyr::to_string(&value)
            .map_err(|error| ConfigError::Yaml(place.id.to_string(), error.to_string()))?;
        let path = directory.config_of(place.id.as_str());
        fs::write(&path, text).map_err(|source| ConfigError::Write { path, source })?;
    }
    Ok(())
}

fn config_of(directory: &Directory, record: &Record, place: &Place) -> Result<Value, ConfigError> {
    let mut config = Map::new();
    // Read by the binary for every role; the rest is the role's own.
    config.insert(
        "runtime".to_owned(),
        json!({ "source": place.ip, "links_file": directory.links() }),
    );
    let own = match place.role {
        Role::Control => control(directory, record, place),
        Role::Mesh => mesh(directory, record, place)?,
        Role::Gateway => gateway(directory, record, place)?,
        Role::SqlRouter => sql_router(directory, record, place)?,
        Role::Agent => agent(directory, record, place)?,
        Role::Application => Value::Null,
    };
    if let Value::Object(own) = own {
        config.extend(own);
    }
    Ok(Value::Object(config))
}

fn data(directory: &Directory, place: &Place) -> PathBuf {
    directory.data_of(place.id.as_str())
}

fn control(directory: &Directory, record: &Record, place: &Place) -> Value {
    json!({
        "process": place.id,
        "api": place.address("api"),
        "grpc": place.address("grpc"),
        "admin": place.address("admin"),
        "data": data(directory, place),
        "topology": directory.topology(),
        "places": record.plan.places,
    })
}

fn mesh(directory: &Directory, record: &Record, place: &Place) -> Result<Value, ConfigError> {
    let control = record.plan.control().and_then(|c| c.address("grpc"));
    Ok(json!({
        "process": place.id,
        "listen": place.address("mesh"),
        "admin": place.address("admin"),
        "data": data(directory, place),
        "control": [needed(place, control, "a control")?],
    }))
}

fn gateway(directory: &Directory, record: &Record, place: &Place) -> Result<Value, ConfigError> {
    Ok(json!({
        "process": place.id,
        "region": place.region,
        "cell": place.cell,
        "edge": place.address("edge"),
        "peer": place.address("peer"),
        "admin": place.address("admin"),
        "data": data(directory, place),
        "mesh": [of_cell(record, place, Role::Mesh, "mesh")?],
    }))
}

fn sql_router(directory: &Directory, record: &Record, place: &Place) -> Result<Value, ConfigError> {
    Ok(json!({
        "process": place.id,
        "region": place.region,
        "cell": place.cell,
        "sql": place.address("sql"),
        "admin": place.address("admin"),
        "data": data(directory, place),
        "mesh": [of_cell(record, place, Role::Mesh, "mesh")?],
    }))
}

fn agent(directory: &Directory, record: &Record, place: &Place) -> Result<Value, ConfigError> {
    let control = record.plan.control().and_then(|c| c.address("grpc"));
    Ok(json!({
        "process": place.id,
        "group": place.group,
        "member": place.member,
        "sql": place.address("sql"),
        "calls": place.address("calls"),
        "replication": place.address("replication"),
        "admin": place.address("admin"),
        "data": data(directory, place),
        "postgres_bin": record.options.postgres_bin,
        "control": [needed(place, control, "a control")?],
    }))
}

fn of_cell(
    record: &Record,
    place: &Place,
    role: Role,
    protocol: &'static str,
) -> Result<std::net::SocketAddrV4, ConfigError> {
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
        ("{dir}", data(directory, place).display().to_string()),
    ];
    let mut line = record.options.app.clone();
    for (name, value) in filled {
        line = line.replace(name, &value);
    }
    Ok(line)
}
