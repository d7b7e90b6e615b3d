//! Where the gateways and the SQL routers of a world are: `run/processes.json`, `world.yaml`, and
//! what the command line adds.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context as _, bail};
use serde::Deserialize;

use super::Options;
use super::users::Scheme;

/// A gateway's edge address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its process's name, or its address.
    pub name: String,
    /// Its region.
    pub region: String,
    /// Where users enter.
    pub address: SocketAddr,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Places {
    /// By region, then name.
    pub(super) gateways: Vec<Found>,
    pub(super) sql: Vec<SocketAddr>,
    pub(super) scheme: Option<Scheme>,
}

impl Places {
    /// Regions that have a gateway, sorted.
    pub(super) fn regions(&self) -> Vec<String> {
        let mut regions: Vec<_> = self.gateways.iter().map(|g| g.region.clone()).collect();
        regions.dedup();
        regions
    }
}

/// `hz=127.0.0.1:8080`
pub(super) fn parse_gateway(text: &str) -> Result<Found, String> {
    let (region, address) = text.split_once('=').ok_or("expected REGION=IP:PORT")?;
    let found = address
        .parse()
        .map_err(|_| format!("{address:?} is not IP:PORT"))?;
    Ok(Found {
        name: address.into(),
        region: region.into(),
        address: found,
    })
}

pub(super) fn find(options: &Options) -> anyhow::Result<Places> {
    let mut places = Places::default();
    if let Some(world) = &options.world {
        let file = world.join("run/processes.json");
        let text = std::fs::read_to_string(&file)
            .with_context(|| format!("no world runs there: reading {}", file.display()))?;
        places = processes(&text).with_context(|| format!("in {}", file.display()))?;
        places.scheme = scheme(&world.join("world.yaml"))?;
    }
    places.gateways.extend(options.gateway.iter().cloned());
    places
        .gateways
        .sort_by(|a, b| (&a.region, &a.name).cmp(&(&b.region, &b.name)));
    places.sql.extend(&options.verify_sql);
    if places.gateways.is_empty() {
        bail!("no gateway is known; the world has none, and none was given with --gateway");
    }
    Ok(places)
}

#[derive(Deserialize)]
struct Processes {
    processes: Vec<Process>,
}

#[derive(Deserialize)]
struct Process {
    #[serde(alias = "name")]
    id: String,
    role: String,
    region: Option<String>,
    #[serde(default)]
    addresses: BTreeMap<String, SocketAddr>,
}

fn processes(text: &str) -> anyhow::Result<Places> {
    let Processes { processes } = serde_json::from_str(text)?;
    let mut places = Places::default();
    for process in processes {
        match process.role.as_str() {
            "gateway" => {
                let edge = process
                    .addresses
                    .get("edge")
                    .or(process.addresses.get("http"));
                let address = *edge.with_context(|| format!("{} has no edge", process.id))?;
                let region = process.region.unwrap_or_else(|| "outside".into());
                places.gateways.push(Found {
                    name: process.id,
                    region,
                    address,
                });
            }
            "sql-router" => places.sql.extend(process.addresses.get("sql")),
            _ => {}
        }
    }
    Ok(places)
}

/// The world's shard scheme, from its topology. A world without the file has the default one.
fn scheme(file: &Path) -> anyhow::Result<Option<Scheme>> {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("reading {}", file.display())),
    };
    scheme_in(&text).with_context(|| format!("in {}", file.display()))
}

#[derive(Deserialize)]
struct Document {
    kind: String,
    #[serde(default)]
    spec: Option<ShardMapSpec>,
}

#[derive(Deserialize)]
struct ShardMapSpec {
    scheme: Option<String>,
    shards: Option<u16>,
}

fn scheme_in(yaml: &str) -> anyhow::Result<Option<Scheme>> {
    // Other kinds have a `shards` of another shape: only the shard map's document is parsed.
    let documents = yaml.split("\n---").filter(|d| d.contains("kind: ShardMap"));
    for document in documents {
        let document: Document = serde_saphyr::from_str(document.trim_start_matches("---"))
            .map_err(|error| anyhow::anyhow!("{error}"))?;
        if document.kind != "ShardMap" {
            continue;
        }
        return match document
            .spec
            .map(|s| (s.scheme.unwrap_or_default(), s.shards))
        {
            Some((scheme, _)) if scheme == "digits" => Ok(Some(Scheme::Digits)),
            Some((scheme, Some(shards))) if scheme == "hash" => Ok(Some(Scheme::hash(shards)?)),
            other => bail!("a shard map that is not understood: {other:?}"),
        };
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateways_and_routers_are_found_in_a_world() {
        let text = r#"{"directory":"/w","world":3,"supervisor":{"pid":1,"started":2},"processes":[
            {"id":"control","role":"control","ip":"127.3.0.1","state":"ready","restarts":0,"log":"/l",
             "addresses":{"api":"127.3.0.1:7600"}},
            {"id":"cell-a-gateway","role":"gateway","region":"hz","zone":"hz-1","cell":"cell-a",
             "addresses":{"admin":"127.3.16.2:9900","edge":"127.3.16.2:8080","peer":"127.3.16.2:8081"}},
            {"id":"cell-a-sql-router","role":"sql-router","region":"hz","addresses":{"sql":"127.3.16.3:5432"}},
            {"id":"group-a-agent-1","role":"agent","region":"hz","addresses":{"sql":"127.3.16.9:5432"}}]}"#;
        let places = processes(text).unwrap();
        assert_eq!(places.regions(), ["hz"]);
        assert_eq!(
            places.gateways[0].address,
            "127.3.16.2:8080".parse().unwrap()
        );
        assert_eq!(places.sql, ["127.3.16.3:5432".parse().unwrap()]);
    }

    #[test]
    fn the_scheme_is_read_from_the_topology() {
        let yaml = "kind: Region\nspec:\n  x: [1]\n---\napiVersion: atoll.dev/v1\nkind: ShardMap\nmetadata:\n  name: main\nspec:\n  scheme: hash\n  shards: 32\n  owners: []\n";
        assert_eq!(scheme_in(yaml).unwrap(), Some(Scheme::hash(32).unwrap()));
        assert_eq!(scheme_in("kind: Region\n").unwrap(), None);
    }
}
