//! What the tables are made of, as of one revision of the store: the group records, and who waits
//! for each op. The revision is the table's number, so that every replica makes the same table
//! under the same number, whoever wrote what it says.

use std::collections::BTreeMap;

use atoll_ownership::OpKind;
use atoll_ownership::record::{GroupRecord, Op};
use atoll_routing::Closed;
use atoll_store::{Change, Changes, Listed, Revision, Store, StoreError};
use atoll_topology::GroupId;
use serde::{Deserialize, Serialize};

use crate::follow::Kept;
use crate::records::Groups;
use crate::stored::decode;

/// Everything under it belongs to the tables.
const TABLE: &str = "/table/";
/// Who waits for a group's op.
const STAGE: &str = "/table/stage/";
/// What else the tables are made of: the replicas' configuration and version, as a hash.
pub(super) const INPUTS: &str = "/table/inputs";
/// How often two lists are tried that must be of one moment.
const TRIES_MAX: u32 = 20;

/// Who waits for an op of a group from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stage {
    /// Which op; another op's stage says nothing.
    pub(crate) op: String,
    /// Who waits.
    pub(crate) closed: Closed,
}

/// The key of a group's stage.
pub(super) fn stage_key(group: &GroupId) -> String {
    format!("{STAGE}{group}")
}

/// One snapshot.
#[derive(Debug, Clone, Default)]
pub(crate) struct Decided {
    /// The records.
    pub(crate) groups: Groups,
    /// Who waits.
    pub(crate) stages: BTreeMap<GroupId, Stage>,
    /// Which transaction wrote each record.
    pub(super) written: BTreeMap<GroupId, Revision>,
    /// The hash of what else the tables are made of.
    pub(super) inputs: String,
    /// The last transaction that changed any of it.
    changed: Revision,
    /// Every transaction up to this one is in here.
    pub(super) seen: Revision,
}

impl Decided {
    /// Reads everything as of one moment.
    pub(super) async fn read(store: &dyn Store) -> Result<Self, StoreError> {
        for _ in 0..TRIES_MAX {
            let groups = store.list(GroupRecord::PREFIX).await?;
            let table = store.list(TABLE).await?;
            let later = |(_, found): &(_, atoll_store::Versioned)| found.revision > groups.revision;
            // What was written between the two lists would be of another moment.
            if !table.entries.iter().any(later) {
                return Self::of(groups, table);
            }
        }
        Err(StoreError::Unavailable {
            reason: "what the tables are made of changes all the time".to_owned(),
        })
    }

    fn of(groups: Listed, table: Listed) -> Result<Self, StoreError> {
        let mut decided = Self {
            seen: groups.revision,
            ..Self::default()
        };
        for (key, found) in groups.entries.into_iter().chain(table.entries) {
            decided.put(&key, &found.value, found.revision)?;
        }
        Ok(decided)
    }

    /// Takes one transaction; whether the table is another one now.
    pub(super) fn take(&mut self, changes: &Changes) -> Result<bool, StoreError> {
        if changes.revision <= self.seen {
            return Ok(false);
        }
        let before = self.changed;
        for Change { key, value } in &changes.changes {
            // None of it is ever deleted.
            if let Some(value) = value {
                self.put(key, value, changes.revision)?;
            }
        }
        self.seen = changes.revision;
        Ok(self.changed != before)
    }

    fn put(&mut self, key: &str, value: &[u8], revision: Revision) -> Result<(), StoreError> {
        if key.starts_with(GroupRecord::PREFIX) {
            let record: GroupRecord = decode(key, value)?;
            self.written.insert(record.group.clone(), revision);
            self.groups.insert(record.group.clone(), record);
        } else if let Some(group) = key.strip_prefix(STAGE) {
            let group = GroupId::parse(group).map_err(|error| StoreError::Corrupt {
                place: key.to_owned(),
                reason: error.to_string(),
            })?;
            self.stages.insert(group, decode(key, value)?);
        } else if key == INPUTS {
            self.inputs = String::from_utf8_lossy(value).into_owned();
        } else {
            return Ok(());
        }
        self.changed = self.changed.max(revision);
        Ok(())
    }

    /// The number of the table that says this: the revision at which the last of it was written.
    pub(super) fn number(&self) -> u64 {
        self.changed.0
    }

    /// Whether this record, or a later one of its group, is in here.
    pub(super) fn covers(&self, record: &GroupRecord) -> bool {
        let reached = |record: &GroupRecord| (record.ops, record.op.is_none());
        let known = self.groups.get(&record.group);
        known.is_some_and(|known| reached(known) >= reached(record))
    }
}

/// Who waits for a group's op; `None`: nobody yet, or there is none.
pub(crate) fn waits(record: &GroupRecord, stages: &BTreeMap<GroupId, Stage>) -> Option<Closed> {
    let op = record.op.as_ref()?;
    match stages.get(&record.group) {
        Some(stage) if stage.op == op.id() => Some(stage.closed),
        _ if planned(op) => None,
        _ => Some(Closed::All),
    }
}

/// Whether the op begins with everything well: users wait only once they are told to.
fn planned(op: &Op) -> bool {
    matches!(op.kind, OpKind::Switchover | OpKind::OwnerChange)
}

#[cfg(test)]
mod tests {
    use atoll_ownership::Admitted;
    use atoll_ownership::record::{Begin, Move, Open};
    use atoll_store::{Memory, Txn};
    use atoll_topology::{CellId, MemberId, ShardId, Term};
    use futures::StreamExt;

    use super::*;
    use crate::stored::encode;

    fn group() -> GroupId {
        GroupId::parse("g1").unwrap()
    }

    /// A group that is open, and the same with an op in it.
    fn records(kind: OpKind) -> (GroupRecord, GroupRecord) {
        let member = |id: &str| Admitted {
            id: MemberId::parse(id).unwrap(),
            volume: id.to_owned(),
        };
        let members = vec![member("g1-1"), member("g1-2"), member("g1-3")];
        let (from, to) = (CellId::parse("a").unwrap(), CellId::parse("b").unwrap());
        let mut open = GroupRecord::birth(group(), members, 1, [(ShardId(0), from)]);
        open.term = Term::new(2);
        open.open = Some(Open {
            term: open.term,
            primary: open.members[0].id.clone(),
        });
        let begin = Begin {
            kind,
            judged: open.term,
            over: None,
            target: open.members[1].id.clone(),
            moves: vec![Move {
                first: ShardId(0),
                last: ShardId(0),
                to,
            }],
            plan: String::new(),
            execution: "run".to_owned(),
            deadline_ms: 0,
            automatic: false,
        };
        let begun = open.begin(&begin).unwrap();
        (open, begun)
    }

    fn stage(record: &GroupRecord, closed: Closed) -> BTreeMap<GroupId, Stage> {
        let op = record.op.as_ref().map(Op::id).unwrap_or_default();
        BTreeMap::from([(group(), Stage { op, closed })])
    }

    #[test]
    fn users_wait_for_a_planned_op_once_they_are_told_to_and_for_others_at_once() {
        let none = BTreeMap::new();
        let (open, begun) = records(OpKind::Switchover);
        assert_eq!(waits(&open, &none), None);
        assert_eq!(waits(&begun, &none), None);
        let told = stage(&begun, Closed::Gateways);
        assert_eq!(waits(&begun, &told), Some(Closed::Gateways));
        assert_eq!(waits(&open, &told), None, "the op is over");
        let (_, failover) = records(OpKind::Failover);
        assert_eq!(waits(&failover, &none), Some(Closed::All));
    }

    #[test]
    fn what_was_said_of_another_op_is_not_said_of_this_one() {
        let (_, begun) = records(OpKind::Switchover);
        let earlier = Stage {
            op: "another#7".to_owned(),
            closed: Closed::All,
        };
        let stages = BTreeMap::from([(group(), earlier)]);
        assert_eq!(waits(&begun, &stages), None);
    }

    #[tokio::test]
    async fn whoever_reads_and_whoever_followed_have_the_same_under_the_same_number() {
        let store = Memory::new();
        let mut followed = Decided::read(&store).await.unwrap();
        let mut changes = store.watch("/", followed.seen).await.unwrap();
        let (open, begun) = records(OpKind::Switchover);
        let record = |record: &GroupRecord| Txn::new().put("/group/g1", encode(record));
        let told = stage(&begun, Closed::All);
        let txns = [
            record(&open),
            Txn::new().put("/control/seat", "of no account"),
            record(&begun),
            Txn::new().put(stage_key(&group()), encode(&told[&group()])),
            record(&open),
        ];
        let mut numbers = vec![followed.number()];
        for txn in txns {
            store.txn(txn).await.unwrap();
            let news = followed.take(&changes.next().await.unwrap().unwrap());
            let read = Decided::read(&store).await.unwrap();
            assert_eq!(followed.number(), read.number());
            assert_eq!(followed.groups, read.groups);
            assert_eq!(followed.stages, read.stages);
            let last = numbers.last().copied().unwrap_or_default();
            assert_eq!(news.unwrap(), followed.number() > last);
            numbers.push(followed.number());
        }
        assert_eq!(numbers, [0, 1, 1, 3, 4, 5]);
        assert!(followed.covers(&open));
    }
}
