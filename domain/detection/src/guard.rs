//! Whether a verdict may be acted upon: what automation has done lately, and what it may still do.
//! The record lies at `/guard/automatic`; every automatic op compares and bumps it in the very
//! transaction that begins the op, so that two of them never pass one guard together.

use std::fmt;

use atoll_topology::{GroupId, RegionId, ShardId, ZoneId};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::limits::Limits;
use crate::verdict::{FailoverVerdict, LostVerdict};

/// What automation has done lately.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Guard {
    /// Grows with each automatic op and each order about automation.
    pub number: u64,
    /// Automation is off, and who said why.
    pub killed: Option<String>,
    /// Owner changes are frozen until a person thaws them, and why.
    pub frozen: Option<String>,
    /// Owner changes of the last window.
    pub changes: Vec<Change>,
    /// Group failovers of the last window.
    pub failovers: Vec<Failover>,
}

/// An automatic owner change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// When.
    pub at_ms: u64,
    /// The failure domain that was lost.
    pub domain: Domain,
    /// The shards that moved, as first and last.
    pub shards: Vec<(ShardId, ShardId)>,
}

/// A group failover.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failover {
    /// When.
    pub at_ms: u64,
    /// Of which group.
    pub group: GroupId,
}

/// A failure domain: a zone, or a whole region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Domain {
    /// The city.
    pub region: RegionId,
    /// The zone; none: the whole city.
    pub zone: Option<ZoneId>,
}

impl Domain {
    /// Whether losing both is losing one: the same zone, or a zone and its own region.
    fn is_one_with(&self, other: &Self) -> bool {
        let zones = self.zone.as_ref().zip(other.zone.as_ref());
        self.region == other.region && zones.is_none_or(|(a, b)| a == b)
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.zone {
            Some(zone) => write!(f, "zone {zone}"),
            None => write!(f, "region {}", self.region),
        }
    }
}

/// Why automation holds back; a person is paged with this text.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Held {
    /// A person has switched automation off.
    #[error("automation is off: {reason}")]
    Killed {
        /// As that person said.
        reason: String,
    },
    /// Owner changes are frozen.
    #[error("owner changes are frozen: {reason}")]
    Frozen {
        /// As the verdict said.
        reason: String,
    },
    /// Another failure domain was lost in this window already.
    #[error("{first} was lost {ago_ms} ms ago: {second} is a second failure domain in the window")]
    BlastRadius {
        /// Acted upon already.
        first: Domain,
        /// How long ago.
        ago_ms: u64,
        /// Not acted upon.
        second: Domain,
    },
    /// The group has failed over too often.
    #[error("group {group} has failed over {count} times in the window: the limit")]
    FailoversPerWindow {
        /// Which.
        group: GroupId,
        /// How often.
        count: usize,
    },
    /// The shard was moved automatically a short while ago.
    #[error("shard {shard} was moved automatically {ago_ms} ms ago, less than {min_ms} ms")]
    MinInterval {
        /// Which.
        shard: ShardId,
        /// How long ago.
        ago_ms: u64,
        /// The limit.
        min_ms: u64,
    },
}

impl Guard {
    /// The record to write when a group fails over automatically.
    pub fn admit_failover(
        &self,
        verdict: &FailoverVerdict,
        limits: &Limits,
        now_ms: u64,
    ) -> Result<Self, Held> {
        self.alive()?;
        let mut next = self.trimmed(limits, now_ms);
        let count = next
            .failovers
            .iter()
            .filter(|past| past.group == verdict.group)
            .count();
        if u32::try_from(count).is_ok_and(|count| count >= limits.group_failovers_per_window) {
            return Err(Held::FailoversPerWindow {
                group: verdict.group.clone(),
                count,
            });
        }
        next.failovers.push(Failover {
            at_ms: now_ms,
            group: verdict.group.clone(),
        });
        Ok(next)
    }

    /// The record to write when `shards` of a lost place change hands automatically.
    pub fn admit_owner_change(
        &self,
        verdict: &LostVerdict,
        shards: &[(ShardId, ShardId)],
        limits: &Limits,
        now_ms: u64,
    ) -> Result<Self, Held> {
        self.alive()?;
        if let Some(reason) = &self.frozen {
            return Err(Held::Frozen {
                reason: reason.clone(),
            });
        }
        let mut next = self.trimmed(limits, now_ms);
        let domain = Domain {
            region: verdict.scope.region().clone(),
            zone: verdict.scope.zone().cloned(),
        };
        for past in &next.changes {
            let ago_ms = now_ms.saturating_sub(past.at_ms);
            if ago_ms < limits.window_ms && !past.domain.is_one_with(&domain) {
                let first = past.domain.clone();
                return Err(Held::BlastRadius {
                    first,
                    ago_ms,
                    second: domain,
                });
            }
            let min_ms = min_interval_ms(verdict, limits);
            let overlap = |a: &(ShardId, ShardId)| {
                shards
                    .iter()
                    .find(|b| a.0 <= b.1 && b.0 <= a.1)
                    .map(|b| a.0.max(b.0))
            };
            if ago_ms < min_ms
                && let Some(shard) = past.shards.iter().find_map(overlap)
            {
                return Err(Held::MinInterval {
                    shard,
                    ago_ms,
                    min_ms,
                });
            }
        }
        next.changes.push(Change {
            at_ms: now_ms,
            domain,
            shards: shards.to_vec(),
        });
        Ok(next)
    }

    /// The record after a person has switched automation off (with a reason) or on again.
    #[must_use]
    pub fn kill_switch(&self, reason: Option<String>) -> Self {
        Self {
            number: self.number + 1,
            killed: reason,
            ..self.clone()
        }
    }

    /// The record after a verdict has frozen owner changes, or a person has thawed them.
    #[must_use]
    pub fn freeze(&self, reason: Option<String>) -> Self {
        Self {
            number: self.number + 1,
            frozen: reason,
            ..self.clone()
        }
    }

    fn alive(&self) -> Result<(), Held> {
        match &self.killed {
            Some(reason) => Err(Held::Killed {
                reason: reason.clone(),
            }),
            None => Ok(()),
        }
    }

    /// The next record, without what the window has left behind.
    fn trimmed(&self, limits: &Limits, now_ms: u64) -> Self {
        let keep_ms = limits
            .window_ms
            .max(limits.automatic_switch_min_interval_ms)
            .max(limits.reporting_switch_min_interval_ms);
        let mut next = Self {
            number: self.number + 1,
            ..self.clone()
        };
        next.changes
            .retain(|past| now_ms.saturating_sub(past.at_ms) < keep_ms);
        next.failovers
            .retain(|past| now_ms.saturating_sub(past.at_ms) < limits.window_ms);
        next
    }
}

/// Where a cell that reports is to lose shards, moving them may be what makes the next cell slow: they
/// are not moved again so soon.
fn min_interval_ms(verdict: &LostVerdict, limits: &Limits) -> u64 {
    let always = limits.automatic_switch_min_interval_ms;
    if verdict.is_silent() {
        always
    } else {
        always.max(limits.reporting_switch_min_interval_ms)
    }
}
