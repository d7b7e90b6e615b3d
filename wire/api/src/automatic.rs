//! Automation: whether verdicts may begin ops by themselves, who said so, and what it did lately.

use atoll_topology::GroupId;
use serde::{Deserialize, Serialize};

/// An order about automation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AutomaticVerb {
    /// The kill switch: no verdict begins anything.
    Off,
    /// Verdicts begin ops again.
    On,
    /// No verdict changes owners; data groups still fail over.
    Freeze,
    /// Verdicts change owners again.
    Thaw,
}

/// An order about automation, as it is given and as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AutomaticOrder {
    /// What.
    pub order: AutomaticVerb,
    /// Who gives it.
    pub by: String,
    /// Why.
    pub reason: String,
}

/// An order that was carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AutomaticEntry {
    /// When, in ms since 1970.
    pub unix_ms: u64,
    /// What, by whom, why.
    #[serde(flatten)]
    pub order: AutomaticOrder,
}

/// What automation did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AutomaticAct {
    /// When, in ms since 1970.
    pub unix_ms: u64,
    /// The group that failed over; none: owners changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupId>,
    /// `failover`, or the place that was lost and its shards.
    pub what: String,
}

/// Automation as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AutomaticStatus {
    /// Whether this replica was started with it.
    pub configured: bool,
    /// Why it is switched off; none: it is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub off: Option<String>,
    /// Why owner changes are frozen; none: they are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen: Option<String>,
    /// What it did in the guards' window, the newest first.
    pub acts: Vec<AutomaticAct>,
    /// The last orders about it, the newest first.
    pub orders: Vec<AutomaticEntry>,
}
