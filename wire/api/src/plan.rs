//! A plan: what will happen, decided before anything does, under a hash that names exactly that.

use atoll_topology::{CellId, GroupId, RegionId, Term};
use serde::{Deserialize, Serialize};

use crate::Object;

/// What is asked for. The server answers with the whole plan, or refuses with the reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case", deny_unknown_fields)]
pub enum PlanSpec {
    /// All shards of a cell go to another cell.
    SwitchCell {
        /// The cell that gives.
        cell: CellId,
        /// A cell, or a region, in which the server chooses a cell.
        to: String,
    },
    /// Everything leaves a region.
    EvacuateRegion {
        /// Which one.
        region: RegionId,
    },
    /// Everything goes back to where the topology prefers it.
    Failback {},
}

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckState {
    /// It holds.
    Passed,
    /// It holds, but.
    Warned,
    /// It does not hold: the plan cannot run now.
    Refused,
}

/// A condition that must hold before the plan runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// `headroom`, `replication-lag`, …
    pub name: String,
    /// How it came out.
    pub state: CheckState,
    /// With the value and the limit.
    pub message: String,
}

/// The term that a plan was made for: at another one it is stale.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeFor {
    /// Which group.
    pub group: GroupId,
    /// Its open term.
    pub term: Term,
    /// Shards that the plan moves, as in `0-24`.
    pub shards: String,
}

/// The plan itself. Never changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlanStatus {
    /// Names exactly this plan: `switch run --plan HASH`.
    pub hash: String,
    /// What will happen, line by line, for people.
    pub text: String,
    /// What must hold.
    pub checks: Vec<Check>,
    /// How long writes will be held, estimated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold_ms: Option<u64>,
    /// What it was made for.
    pub made_for: Vec<MadeFor>,
}

impl PlanStatus {
    /// Whether no check refuses it.
    pub fn may_run(&self) -> bool {
        self.checks
            .iter()
            .all(|check| check.state != CheckState::Refused)
    }
}

/// A plan as a resource.
pub type Plan = Object<PlanSpec, PlanStatus>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_asked_for_by_verb() {
        let text = r#"{"verb":"switch-cell","cell":"hz-1","to":"shanghai"}"#;
        let spec: PlanSpec = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&spec).unwrap(), text);
        assert_eq!(
            serde_json::to_string(&PlanSpec::Failback {}).unwrap(),
            r#"{"verb":"failback"}"#
        );
        assert!(serde_json::from_str::<PlanSpec>(r#"{"verb":"guess"}"#).is_err());
    }
}
