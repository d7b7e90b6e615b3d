//! The envelope around every resource, as Kubernetes has it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{API_VERSION, Kind, Problem, Timestamp};

/// Whose document it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// Unique within its kind.
    pub name: String,
    /// Grows with every change; opaque to clients. Empty before the first write.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub resource_version: String,
    /// Grows with every change of `spec`.
    #[serde(default)]
    pub generation: u64,
    /// When it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creation_timestamp: Option<Timestamp>,
    /// For people and selectors.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

impl Metadata {
    /// A name and nothing else.
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ..Self::default()
        }
    }
}

/// A resource: what is wanted, and what is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Object<Spec, Status> {
    /// `atoll.dev/v1`
    pub api_version: String,
    /// Which kind.
    pub kind: Kind,
    /// Whose.
    #[serde(default)]
    pub metadata: Metadata,
    /// What is wanted.
    pub spec: Spec,
    /// What is; absent in what clients send.
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
}

const fn none<T>() -> Option<T> {
    None
}

/// A resource whose `spec` and `status` nobody has looked at.
pub type AnyObject = Object<Value, Value>;

impl<Spec, Status> Object<Spec, Status> {
    /// A new one, as a client sends it.
    pub fn new(kind: Kind, name: impl Into<String>, spec: Spec) -> Self {
        Self {
            api_version: API_VERSION.to_owned(),
            kind,
            metadata: Metadata::named(name),
            spec,
            status: None,
        }
    }
}

impl<Spec: Serialize, Status: Serialize> Object<Spec, Status> {
    /// The same, untyped.
    pub fn untyped(&self) -> Result<AnyObject, serde_json::Error> {
        Ok(Object {
            api_version: self.api_version.clone(),
            kind: self.kind,
            metadata: self.metadata.clone(),
            spec: serde_json::to_value(&self.spec)?,
            status: self.status.as_ref().map(serde_json::to_value).transpose()?,
        })
    }
}

impl AnyObject {
    /// The same, typed.
    pub fn typed<Spec, Status>(self) -> Result<Object<Spec, Status>, serde_json::Error>
    where
        Spec: serde::de::DeserializeOwned,
        Status: serde::de::DeserializeOwned,
    {
        Ok(Object {
            api_version: self.api_version,
            kind: self.kind,
            metadata: self.metadata,
            spec: serde_json::from_value(self.spec)?,
            status: self.status.map(serde_json::from_value).transpose()?,
        })
    }
}

/// What a list is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ListMetadata {
    /// A watch may begin after it.
    pub resource_version: String,
}

/// All resources of a kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct List {
    /// `atoll.dev/v1`
    pub api_version: String,
    /// `CellList`
    pub kind: String,
    /// As of when.
    pub metadata: ListMetadata,
    /// By name.
    pub items: Vec<AnyObject>,
}

impl List {
    /// A list of `kind`.
    pub fn new(kind: Kind, resource_version: impl Into<String>, items: Vec<AnyObject>) -> Self {
        Self {
            api_version: API_VERSION.to_owned(),
            kind: format!("{kind}List"),
            metadata: ListMetadata {
                resource_version: resource_version.into(),
            },
            items,
        }
    }
}

/// What happened to a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum WatchKind {
    /// It is new, or was there when the watch began.
    Added,
    /// It is another.
    Modified,
    /// It is gone.
    Deleted,
    /// Nothing; only the resource version counts.
    Bookmark,
    /// The watch ends; `object` is a `Problem`.
    Error,
}

/// One line of a watch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WatchEvent {
    /// What happened.
    #[serde(rename = "type")]
    pub kind: WatchKind,
    /// The resource after it, or a `Problem`.
    pub object: Value,
}

impl WatchEvent {
    /// A resource, or the problem that ends the watch.
    pub fn read(self) -> Result<(WatchKind, AnyObject), Box<Problem>> {
        if self.kind == WatchKind::Error {
            let problem = serde_json::from_value(self.object);
            return Err(Box::new(
                problem.unwrap_or_else(|error| Problem::unreadable(&error)),
            ));
        }
        match serde_json::from_value(self.object) {
            Ok(object) => Ok((self.kind, object)),
            Err(error) => Err(Box::new(Problem::unreadable(&error))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_looks_as_kubernetes_wants_it() {
        let mut cell: Object<Value, Value> =
            Object::new(Kind::Cell, "hz-1", serde_json::json!({"kind": "sharded"}));
        cell.metadata.resource_version = "17".into();
        cell.metadata.generation = 2;
        cell.metadata.creation_timestamp = Some(Timestamp(1_795_356_131_000));
        let text = serde_json::to_string(&cell).unwrap();
        assert_eq!(
            text,
            r#"{"apiVersion":"atoll.dev/v1","kind":"Cell","metadata":{"name":"hz-1","resourceVersion":"17","generation":2,"creationTimestamp":"2026-11-22T14:02:11Z"},"spec":{"kind":"sharded"}}"#
        );
        assert_eq!(serde_json::from_str::<AnyObject>(&text).unwrap(), cell);
    }
}
