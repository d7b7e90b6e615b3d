//! Answers about one user or one shard.

use atoll_routing::Explanation;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Where a user's requests and data go, and why: the fields of `atoll_routing::Explanation`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Explain {
    /// The user.
    pub user: String,
    /// The shard.
    pub shard: u16,
    /// Its owner; the coming one while switching.
    pub cell: String,
    /// The owner's city.
    pub region: String,
    /// Names this ownership.
    pub epoch: u64,
    /// Where the data is.
    pub group: String,
    /// The open term; none before birth.
    pub term: Option<u64>,
    /// Its primary; none before birth.
    pub primary: Option<String>,
    /// All members that hold a copy.
    pub members: Vec<String>,
    /// The reason, as in the access log.
    pub reason: String,
    /// The same for people, a line each.
    pub text: String,
    /// Everything else that the explanation holds: scheme, phase, table, the cell asked.
    #[serde(flatten)]
    pub more: serde_json::Map<String, Value>,
}

impl From<&Explanation> for Explain {
    fn from(e: &Explanation) -> Self {
        let more = [
            ("scheme", serde_json::to_value(e.scheme)),
            ("phase", serde_json::to_value(&e.phase)),
            ("table", serde_json::to_value(&e.table)),
            ("local", serde_json::to_value(&e.local)),
        ];
        let more = more
            .into_iter()
            .filter_map(|(k, v)| Some((k.to_owned(), v.ok()?)))
            .collect();
        Self {
            user: e.user.to_string(),
            shard: e.shard.0,
            cell: e.cell.to_string(),
            region: e.region.to_string(),
            epoch: e.epoch.get(),
            group: e.group.to_string(),
            term: e.term.map(atoll_topology::Term::get),
            primary: e.primary.as_ref().map(ToString::to_string),
            members: e.members.iter().map(ToString::to_string).collect(),
            reason: e.reason.clone(),
            text: e.to_string(),
            more,
        }
    }
}

/// Where a shard is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Located {
    /// The user that was asked for, if it was a user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The shard.
    pub shard: u16,
    /// Its schema.
    pub schema: String,
    /// Its owner; the coming one while switching.
    pub cell: String,
    /// The owner's city.
    pub region: String,
    /// Names this ownership.
    pub epoch: u64,
    /// Whether it is switching.
    pub switching: bool,
    /// Where the data is.
    pub group: String,
    /// The open term; none before birth.
    pub term: Option<u64>,
    /// Its primary; none before birth.
    pub primary: Option<String>,
}
