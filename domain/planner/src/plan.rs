//! A plan: immutable, a text that a person can read, and a hash of exactly that text.

use std::fmt;

use atoll_ownership::OpKind;
use atoll_ownership::record::{Begin, GroupRecord, Move};
use atoll_topology::{CellId, Epoch, GroupId, MemberId, RegionId, ShardId, Term};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::refusal::Refusal;

/// What will happen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// What it is for, in one line.
    pub title: String,
    /// Whether a verdict asked for it, not a person.
    pub automatic: bool,
    /// In which order the steps run.
    pub pace: Pace,
    /// One op each.
    pub steps: Vec<Step>,
    /// Groups that cannot be helped yet, and why: they are planned again later.
    pub later: Vec<(GroupId, String)>,
    /// What was checked when it was made. Not part of the hash: the values change all the time.
    pub checks: Vec<Check>,
}

/// In which order steps run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pace {
    /// Each after the one before is complete; the first that fails ends the run.
    OneByOne,
    /// All at once.
    Together,
}

/// One op of one group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Which group.
    pub group: GroupId,
    /// What kind of change.
    pub kind: OpKind,
    /// The open term that it was planned for; another one makes it stale.
    pub judged: Term,
    /// The running op's term that it takes over.
    pub over: Option<Term>,
    /// The term that it opens; the open one for an owner change.
    pub term: Term,
    /// The primary before.
    pub from: MemberId,
    /// Where that stands.
    pub from_region: RegionId,
    /// The coming primary; the same one for an owner change.
    pub target: MemberId,
    /// Where that stands.
    pub target_region: RegionId,
    /// The other members, of which `awaited` must acknowledge.
    pub standbys: Vec<MemberId>,
    /// How many standbys a commit waits for.
    pub awaited: u8,
    /// Shards that change hands.
    pub moves: Vec<Moved>,
    /// How long requests will wait, estimated.
    pub hold_ms: u64,
    /// After this time from its start another op may take it over.
    pub deadline_ms: u64,
}

/// Neighbouring shards that change hands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// First shard.
    pub first: ShardId,
    /// Last shard, included.
    pub last: ShardId,
    /// The owner before.
    pub from: CellId,
    /// Under this epoch; another one makes the step stale.
    pub epoch: Epoch,
    /// The coming owner, under the next epoch.
    pub to: CellId,
}

/// What a plan was made for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeFor {
    /// Which group.
    pub group: GroupId,
    /// Its open term.
    pub term: Term,
    /// Shards that it moves, as in `0-24,30`.
    pub shards: String,
}

/// How a check came out. A check that does not hold is a refusal, and there is no plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckState {
    /// It holds.
    Passed,
    /// It holds, but.
    Warned,
}

/// A condition that was checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// `members`, `replication-lag`, `headroom`, …
    pub name: String,
    /// How it came out.
    pub state: CheckState,
    /// With the value and the limit.
    pub message: String,
}

impl Check {
    pub(crate) fn passed(name: &str, message: String) -> Self {
        Self {
            name: name.to_owned(),
            state: CheckState::Passed,
            message,
        }
    }

    pub(crate) fn warned(name: &str, message: String) -> Self {
        Self {
            name: name.to_owned(),
            state: CheckState::Warned,
            message,
        }
    }
}

impl Plan {
    /// SHA-256 of the text, in hexadecimal: names exactly this plan.
    pub fn hash(&self) -> String {
        hex::encode(Sha256::digest(self.to_string().as_bytes()))
    }

    /// How long any one request will wait at most, estimated.
    pub fn hold_ms(&self) -> u64 {
        self.steps
            .iter()
            .map(|step| step.hold_ms)
            .max()
            .unwrap_or(0)
    }

    /// The terms that it was made for: at another one it is stale.
    pub fn made_for(&self) -> Vec<MadeFor> {
        let made_for = |step: &Step| {
            let shards: Vec<_> = step
                .moves
                .iter()
                .flat_map(|moved| moved.first.0..=moved.last.0)
                .map(ShardId)
                .collect();
            MadeFor {
                group: step.group.clone(),
                term: step.judged,
                shards: atoll_topology::format_shards(&shards),
            }
        };
        self.steps.iter().map(made_for).collect()
    }
}

impl Step {
    /// The order to the group's record.
    pub fn begin(&self, plan: &Plan, execution: &str, now_ms: u64) -> Begin {
        let moves = self.moves.iter().map(|moved| Move {
            first: moved.first,
            last: moved.last,
            to: moved.to.clone(),
        });
        Begin {
            kind: self.kind,
            judged: self.judged,
            over: self.over,
            target: self.target.clone(),
            moves: moves.collect(),
            plan: plan.hash(),
            execution: execution.to_owned(),
            deadline_ms: now_ms + self.deadline_ms,
            automatic: plan.automatic,
        }
    }

    /// Whether the record is still the one that the step was planned for: the open term, and owner
    /// and epoch of each shard that moves. Compared in the transaction that begins the op.
    pub fn fits(&self, record: &GroupRecord) -> Result<(), Refusal> {
        let open = record.open_term();
        if open != self.judged {
            let (group, judged) = (self.group.clone(), self.judged);
            return Err(Refusal::Stale {
                group,
                judged,
                open,
            });
        }
        for moved in &self.moves {
            for shard in (moved.first.0..=moved.last.0).map(ShardId) {
                let run = record.run_of(shard);
                if !run.is_some_and(|run| run.cell == moved.from && run.epoch == moved.epoch) {
                    let (cell, epoch) = (moved.from.clone(), moved.epoch);
                    return Err(Refusal::Moved { shard, cell, epoch });
                }
            }
        }
        Ok(())
    }

    /// The shards that it moves, for the guard.
    pub fn shards(&self) -> Vec<(ShardId, ShardId)> {
        self.moves
            .iter()
            .map(|moved| (moved.first, moved.last))
            .collect()
    }
}

fn join<T: fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<_> = items.into_iter().map(|item| item.to_string()).collect();
    items.join(", ")
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.title)?;
        if self.automatic {
            write!(f, " (automatic)")?;
        }
        let many = self.steps.len() > 1;
        match self.pace {
            Pace::OneByOne if many => write!(f, ", one group after the other")?,
            Pace::Together if many => write!(f, ", all groups at once")?,
            _ => {}
        }
        for (n, step) in self.steps.iter().enumerate() {
            write!(f, "\n{}. {step}", n + 1)?;
        }
        for (group, why) in &self.later {
            write!(f, "\nlater group {group}: {why}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            group,
            kind,
            judged,
            term,
            from,
            from_region,
            target,
            target_region,
            ..
        } = self;
        write!(f, "{kind} of group {group}, open at term {judged}")?;
        if let Some(over) = self.over {
            write!(f, ", over its op of term {over}")?;
        }
        let held: Vec<_> = self
            .moves
            .iter()
            .map(|moved| {
                let Moved {
                    first,
                    last,
                    from,
                    epoch,
                    to,
                } = moved;
                format!(
                    "\n   hold shards {first}-{last}: {from} epoch {epoch} to {to} epoch {}",
                    epoch.next()
                )
            })
            .collect();
        let owners: std::collections::BTreeSet<_> = self.moves.iter().map(|m| &m.to).collect();
        let standbys = join(&self.standbys);
        match kind {
            OpKind::Switchover => {
                write!(f, "{}", held.concat())?;
                if held.is_empty() {
                    write!(f, "\n   hold all its shards")?;
                }
                write!(
                    f,
                    "\n   drain, then demote {from} in {from_region} for term {term}"
                )?;
                write!(
                    f,
                    "\n   {target} in {target_region} replays all of its log and is promoted"
                )?;
            }
            OpKind::Failover => {
                if from == target {
                    write!(f, "\n   prepare everyone within reach for term {term}")?;
                } else {
                    write!(f, "\n   give {from} in {from_region} up")?;
                    write!(f, ", prepare everyone else for term {term}")?;
                }
                write!(f, "{}", held.concat())?;
                write!(
                    f,
                    "\n   {target} in {target_region} leads, with the longest log of them"
                )?;
            }
            OpKind::OwnerChange | OpKind::CallOff => {
                write!(f, "{}", held.concat())?;
                write!(
                    f,
                    "\n   drain; {target} in {target_region} goes on as primary at term {term}"
                )?;
            }
        }
        write!(
            f,
            "\n   open once {} of {standbys} acknowledged",
            self.awaited
        )?;
        if !owners.is_empty() {
            write!(f, "; release to {}", join(owners))?;
        }
        write!(
            f,
            "\n   hold about {} ms, deadline {} ms",
            self.hold_ms, self.deadline_ms
        )
    }
}
