//! Replicas of control with caches of the records that may be stale, the store between them, and
//! what they order.

use std::rc::Rc;

use atoll_topology::{CellId, GroupId, MemberId, ShardId, Term};

use super::Mutant;
use super::log::{Cell, SHARDS};
use super::node::At;
use crate::messages::{Admitted, OpKind};
use crate::record::{Begin, GroupRecord, Move, Open, RunPhase};

/// Replicas of control.
pub(super) const REPLICAS: u8 = 2;

/// What the store holds of one group: its record, and the change of members or k that it is going
/// through. A group has one change at a time, of either kind.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Stored {
    pub(super) record: GroupRecord,
    pub(super) policy: Option<Policy>,
}

/// A change of the members or of k, one member or one step at a time.
///
/// The services have no such op yet; this is the smallest honest model of what the design says.
/// The store's record decides whom a failover asks (F), PostgreSQL's own list decides whom a
/// commit waits for (W), and every W must meet every F while the two differ. A narrower list or a
/// larger k goes to PostgreSQL first and is published when a barrier in the log has its quorum
/// under the new list; a wider list or a smaller k is published first.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Policy {
    pub(super) number: u64,
    pub(super) members: Vec<Admitted>,
    pub(super) k: u8,
    pub(super) first: First,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum First {
    Postgres,
    Publish,
}

/// One step of policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Change {
    /// A member leaves the list.
    Remove(At),
    /// A member joins; one whose volume was lost, with a new volume.
    Add(At),
    /// One more awaited standby.
    MoreAwaited,
    /// One less.
    LessAwaited,
}

/// What a primary is told of a policy change.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Reload {
    pub(super) term: Term,
    pub(super) policy: Policy,
}

/// How many shards an order moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// The primary moves, the shards keep their owner.
    NoShard,
    /// One.
    OneShard,
    /// All of the group's.
    BothShards,
}

pub(super) fn shards(group: u8) -> [ShardId; 2] {
    let first = u16::from(group) * SHARDS;
    [ShardId(first), ShardId(first + 1)]
}

pub(super) fn birth(group: u8, members: Vec<Admitted>, k: u8, first: &CellId) -> Stored {
    let owners = shards(group).map(|shard| (shard, first.clone()));
    #[expect(clippy::expect_used, reason = "a constant that parses")]
    let id = GroupId::parse(format!("g{}", group + 1)).expect("a group id");
    Stored {
        record: GroupRecord::birth(id, members, k, owners),
        policy: None,
    }
}

/// P1 as a replica would order it, given what it believes.
pub(super) fn begin(
    believed: &Stored,
    group: u8,
    (kind, target, to): (OpKind, &MemberId, &CellId),
    scope: Scope,
    mutant: Option<Mutant>,
) -> Option<Stored> {
    let record = &believed.record;
    let [first, last] = shards(group);
    let moved = |last| {
        vec![Move {
            first,
            last,
            to: to.clone(),
        }]
    };
    let moves = match kind {
        _ if record.open.is_none() => moved(last),
        OpKind::CallOff => vec![],
        OpKind::Failover | OpKind::Switchover if scope == Scope::NoShard => vec![],
        _ if scope == Scope::BothShards => moved(last),
        _ => moved(first),
    };
    let order = Begin {
        kind,
        judged: record.open_term(),
        over: record.op.as_ref().map(|op| op.term),
        target: target.clone(),
        moves,
        plan: String::new(),
        execution: String::new(),
        deadline_ms: 0,
        automatic: false,
    };
    // A failover takes a running policy change over: whatever was published stands.
    if believed.policy.is_some() && kind != OpKind::Failover {
        return None;
    }
    let mut next = record.begin(&order).ok()?;
    match mutant {
        Some(Mutant::ResumeUnderTheSameTerm) => {
            if let (Some(old), Some(op)) = (&record.op, &mut next.op)
                && kind == OpKind::Failover
                && old.kind != OpKind::OwnerChange
            {
                op.term = old.term;
                next.term = record.term;
            }
        }
        Some(Mutant::CallOffToTheOldEpoch) if kind == OpKind::CallOff => {
            for run in &mut next.runs {
                if let RunPhase::Switching { .. } = run.phase {
                    run.epoch = atoll_topology::Epoch::new(run.epoch.get().saturating_sub(2));
                }
            }
        }
        _ => {}
    }
    Some(Stored {
        record: next,
        policy: None,
    })
}

/// The policy change that a replica would order, given what it believes.
pub(super) fn change(
    believed: &Stored,
    change: Change,
    member: impl Fn(At) -> Option<Admitted>,
    mutant: Option<Mutant>,
) -> Option<Stored> {
    let record = &believed.record;
    if record.op.is_some() || believed.policy.is_some() {
        return None;
    }
    let Open { primary, .. } = record.open.as_ref()?;
    let (mut members, mut k) = (record.members.clone(), record.k);
    let first = match change {
        Change::Remove(at) => {
            let leaves = member(at)?;
            let listed = members.len();
            members.retain(|member| member.id != leaves.id);
            // The primary stays, and so does a second member to commit with.
            if leaves.id == *primary || members.len() == listed || members.len() < 2 {
                return None;
            }
            First::Postgres
        }
        Change::Add(at) => {
            let joins = member(at)?;
            if members.iter().any(|member| member.id == joins.id) {
                return None;
            }
            members.push(joins);
            First::Publish
        }
        Change::MoreAwaited => {
            k += 1;
            First::Postgres
        }
        Change::LessAwaited => {
            k = k.checked_sub(1).filter(|k| *k > 0)?;
            First::Publish
        }
    };
    if usize::from(k) >= members.len() {
        return None;
    }
    let mut next = record.clone();
    next.ops += 1;
    let policy = Policy {
        number: next.ops,
        members: members.clone(),
        k,
        first,
    };
    if first == First::Publish || mutant == Some(Mutant::PolicyChangeWithoutBarrier) {
        (next.members, next.k) = (members, k);
    }
    Some(Stored {
        record: next,
        policy: Some(policy),
    })
}

/// A policy change is done: published, if it was not.
pub(super) fn changed(believed: &Stored, number: u64) -> Option<Stored> {
    let policy = believed.policy.as_ref().filter(|p| p.number == number)?;
    let mut record = believed.record.clone();
    (record.members, record.k) = (policy.members.clone(), policy.k);
    Some(Stored {
        record,
        policy: None,
    })
}

/// The cells that the running op's shards leave.
pub(super) fn leaving(record: &GroupRecord, cells: &[CellId]) -> Vec<(ShardId, Cell)> {
    let mut leaving = Vec::new();
    for run in &record.runs {
        if let RunPhase::Switching { leaving: from } = &run.phase {
            let from = super::world::cell_index(cells, from);
            leaving.extend((run.first.0..=run.last.0).map(|number| (ShardId(number), from)));
        }
    }
    leaving
}

/// A version of what the store holds of one group.
#[derive(Debug, Clone)]
pub(super) struct Version {
    pub(super) revision: u64,
    pub(super) stored: Rc<Stored>,
}
