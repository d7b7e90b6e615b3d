//! Two replicas of control with caches of the record that may be stale, and the store between
//! them.

use atoll_topology::{CellId, MemberId, ShardId};

use crate::messages::{Admitted, DriveOrder, OpKind};
use crate::record::{Begin, GroupRecord, Move, Opened};

use super::Mutant;

/// The store: one record, its revision.
#[derive(Debug, Clone)]
pub(super) struct Store {
    pub(super) revision: u64,
    pub(super) record: GroupRecord,
}

/// A replica's cache.
#[derive(Debug, Clone)]
pub(super) struct Replica {
    pub(super) revision: u64,
    pub(super) record: GroupRecord,
}

pub(super) fn birth(members: &[MemberId], cells: &[CellId]) -> GroupRecord {
    let admitted = |id: &MemberId| Admitted {
        id: id.clone(),
        volume: id.to_string(),
    };
    let owners = [
        (ShardId(0), cells[0].clone()),
        (ShardId(1), cells[0].clone()),
    ];
    #[expect(clippy::expect_used, reason = "a constant that parses")]
    let group = atoll_topology::GroupId::parse("g").expect("a group id");
    GroupRecord::birth(group, members.iter().map(admitted).collect(), 1, owners)
}

/// What a replica may order next, given what it believes.
pub(super) fn order(
    believed: &GroupRecord,
    kind: OpKind,
    target: &MemberId,
    to: &CellId,
    both: Scope,
) -> Begin {
    let last = ShardId(u16::from(both == Scope::BothShards));
    let born = believed.open.is_some();
    let first = Move {
        first: ShardId(0),
        last: ShardId(1),
        to: to.clone(),
    };
    let moves = match kind {
        _ if !born => vec![first],
        OpKind::CallOff => vec![],
        OpKind::Failover if both == Scope::NoShard => vec![],
        _ => vec![Move {
            first: ShardId(0),
            last,
            to: to.clone(),
        }],
    };
    Begin {
        kind,
        judged: believed.open_term(),
        over: believed.op.as_ref().map(|op| op.term),
        target: target.clone(),
        moves,
        plan: String::new(),
        execution: String::new(),
        deadline_ms: 0,
        automatic: false,
    }
}

/// How many shards an order moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    NoShard,
    OneShard,
    BothShards,
}

/// Writes the record if the replica has seen the newest one.
pub(super) fn put(
    store: &mut Store,
    replica: &Replica,
    next: GroupRecord,
    mutant: Option<Mutant>,
) -> Result<(), ()> {
    let blind = mutant == Some(Mutant::BlindPut);
    if store.revision != replica.revision && !blind {
        return Err(());
    }
    store.revision += 1;
    store.record = next;
    Ok(())
}

/// P1 with the mutant that keeps the term of the op that it takes over.
pub(super) fn begin(
    believed: &GroupRecord,
    order: &Begin,
    mutant: Option<Mutant>,
) -> Option<GroupRecord> {
    let mut next = believed.begin(order).ok()?;
    if mutant == Some(Mutant::ResumeUnderTheSameTerm)
        && let (Some(old), Some(op)) = (&believed.op, &mut next.op)
        && order.kind == OpKind::Failover
        && old.kind != OpKind::OwnerChange
    {
        op.term = old.term;
        next.term = believed.term;
    }
    Some(next)
}

pub(super) fn drive_order(record: &GroupRecord) -> Option<DriveOrder> {
    record.drive_order()
}

pub(super) fn finish(record: &GroupRecord, op: &str, primary: &MemberId) -> Option<GroupRecord> {
    record
        .finish(&Opened {
            op: op.to_owned(),
            primary: primary.clone(),
        })
        .ok()
}
