//! The topology file: the resources themselves as YAML documents, read and written.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::check::check;
use crate::id::{CellId, ShardId};
use crate::model::Topology;
use crate::resource::{Resource, envelope, to_yaml};
use crate::shards::format_shards;
use crate::spec::Draft;
use crate::violation::Violations;
use crate::yaml::{Node, documents};

/// The name of the shard map that `Topology::to_resources` writes: a world has one.
const SHARD_MAP: &str = "users";

impl Topology {
    /// Reads a topology file. Every violation is named, with line and column.
    pub fn parse(yaml: &str) -> Result<Self, Violations> {
        let mut out = Violations::default();
        let documents = documents(yaml, &mut out);
        Self::read(&documents, out)
    }

    /// Reads stored resources. Violations name the resource and the path inside it.
    pub fn from_resources(resources: &[Resource]) -> Result<Self, Violations> {
        let documents: Vec<_> = resources
            .iter()
            .map(|resource| Node::from_json(&resource.document()))
            .collect();
        Self::read(&documents, Violations::default())
    }

    fn read(documents: &[Node], mut out: Violations) -> Result<Self, Violations> {
        let mut draft = Draft::default();
        for document in documents {
            if let Some(envelope) = envelope(document, &mut out) {
                draft.read(envelope, &mut out);
            }
        }
        check(draft, out)
    }

    /// This topology as resources, sorted by kind and name.
    pub fn to_resources(&self) -> Vec<Resource> {
        let mut list = Vec::new();
        let mut add = |kind: &str, name: &str, spec: Value| {
            list.push(Resource {
                kind: kind.to_owned(),
                name: name.to_owned(),
                spec,
            });
        };
        for (id, region) in &self.regions {
            add(
                "Region",
                id.as_str(),
                json!({ "roundTripMs": region.round_trip_ms }),
            );
        }
        for (id, zone) in &self.zones {
            add("Zone", id.as_str(), json!(zone));
        }
        for (id, cluster) in &self.clusters {
            add("Cluster", id.as_str(), json!(cluster));
        }
        for (id, cell) in &self.cells {
            add("Cell", id.as_str(), json!(cell));
        }
        for (id, group) in &self.groups {
            let members: Vec<_> = group.members.iter().map(|member| &member.zone).collect();
            let spec = json!({
                "members": members,
                "k": group.k,
                "survives": group.survives,
                "shards": format_shards(&group.shards),
            });
            add("DataGroup", id.as_str(), spec);
        }
        let mut owned: BTreeMap<&CellId, Vec<ShardId>> = BTreeMap::new();
        for (cell, shard) in self.shard_map.owners.iter().zip(0..) {
            owned.entry(cell).or_default().push(ShardId(shard));
        }
        let owners: Vec<_> = owned
            .into_iter()
            .map(|(cell, shards)| json!({ "shards": format_shards(&shards), "cell": cell }))
            .collect();
        let mut spec = Map::new();
        spec.insert("scheme".to_owned(), json!(self.shard_map.scheme));
        spec.insert("shards".to_owned(), json!(self.shard_map.shards));
        spec.insert("owners".to_owned(), Value::Array(owners));
        add("ShardMap", SHARD_MAP, Value::Object(spec));
        for route in &self.routes {
            let spec = json!({
                "pathPrefix": route.path_prefix,
                "kind": route.kind,
                "user": route.user,
            });
            add("Route", &route.name, spec);
        }
        list
    }

    /// This topology as a file that `parse` reads back.
    pub fn to_yaml(&self) -> String {
        to_yaml(&self.to_resources())
    }
}
