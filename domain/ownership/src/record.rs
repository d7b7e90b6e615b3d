//! The group record: what control may write, in one compare-and-swap, and when.
//!
//! The store holds the intent and the published copy; the group's own log is the truth about
//! privilege. Both numbers stand in one record, so one compare-and-swap changes both.

use atoll_topology::{CellId, Epoch, GroupId, MemberId, Quorum, ShardId, Term};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::messages::{Admitted, DriveOrder, Grant, OpKind};

/// Everything that the store knows of one data group.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct GroupRecord {
    /// Which group.
    pub group: GroupId,
    /// Its members; fixed at birth in this version.
    pub members: Vec<Admitted>,
    /// Awaited standbys.
    pub k: u8,
    /// The highest term given out.
    pub term: Term,
    /// The term and primary that the tables name; none before birth is complete.
    pub open: Option<Open>,
    /// How many ops were ever begun.
    pub ops: u64,
    /// The one change that the group is going through.
    pub op: Option<Op>,
    /// Who owns its shards, ascending, without gaps between neighbours of one run.
    pub runs: Vec<Run>,
}

/// Who leads, under which term.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Open {
    /// The open term.
    pub term: Term,
    /// Its primary.
    pub primary: MemberId,
}

/// A change in progress.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Op {
    /// Counts the group's ops: an owner change has no term of its own, so the term cannot name it.
    pub number: u64,
    /// What kind.
    pub kind: OpKind,
    /// Its term; for an owner change the open one.
    pub term: Term,
    /// The coming primary, who drives.
    pub target: MemberId,
    /// Hash of the plan that it comes from.
    pub plan: String,
    /// The execution that it belongs to.
    pub execution: String,
    /// When it is past its time, in milliseconds of Unix time; then a new op may take over.
    pub deadline_ms: u64,
    /// Whether a verdict began it, not a person.
    pub automatic: bool,
}

impl Op {
    /// Names the op wherever it is spoken of: `<execution>#<number>`.
    pub fn id(&self) -> String {
        format!("{}#{}", self.execution, self.number)
    }
}

/// Neighbouring shards with one owner and one epoch.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Run {
    /// First shard.
    pub first: ShardId,
    /// Last shard, included.
    pub last: ShardId,
    /// The owner; the coming one while switching.
    pub cell: CellId,
    /// Names the ownership; the coming one while switching.
    pub epoch: Epoch,
    /// Whether the owner serves.
    pub phase: RunPhase,
}

/// Whether a run's owner serves.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunPhase {
    /// It serves.
    Active,
    /// It is about to.
    Switching {
        /// The cell that had the shards before.
        leaving: CellId,
    },
}

/// Shards and the cell that they go to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Move {
    /// First shard.
    pub first: ShardId,
    /// Last shard, included.
    pub last: ShardId,
    /// The new owner.
    pub to: CellId,
}

/// An order to begin an op.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Begin {
    /// What kind of change.
    pub kind: OpKind,
    /// The open term that whoever orders this has seen.
    pub judged: Term,
    /// The running op's term that this one takes over; none where there must be none.
    pub over: Option<Term>,
    /// The coming primary; for an owner change or a call-off, the present one.
    pub target: MemberId,
    /// Shards that change hands.
    pub moves: Vec<Move>,
    /// Hash of the plan.
    pub plan: String,
    /// The execution that it belongs to.
    pub execution: String,
    /// Milliseconds of Unix time after which another op may take over.
    pub deadline_ms: u64,
    /// Whether a verdict ordered it.
    pub automatic: bool,
}

/// What the tables may say once the target serves.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Opened {
    /// Which op: [`Op::id`].
    pub op: String,
    /// Who serves.
    pub primary: MemberId,
}

/// Why a record does not take a change.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "kebab-case")]
pub enum Refusal {
    /// The world has moved since this was decided.
    #[error("it was decided for open term {judged}, and term {open} is open")]
    Stale {
        /// What was seen.
        judged: Term,
        /// What is.
        open: Term,
    },
    /// Another op is running.
    #[error("an op ({kind}, term {term}) is running")]
    Running {
        /// Its kind.
        kind: OpKind,
        /// Its term.
        term: Term,
    },
    /// No op of this term is running.
    #[error("no op of term {term} is running")]
    NotRunning {
        /// The term that was named.
        term: Term,
    },
    /// No such op is running.
    #[error("the op {op} is not running")]
    OtherOp {
        /// The op that was named.
        op: String,
    },
    /// Not a member of this group.
    #[error("{member} is not a member of the group")]
    NotAMember {
        /// Who.
        member: MemberId,
    },
    /// The group does not store this shard.
    #[error("shard {shard} is not stored in the group")]
    NotHere {
        /// Which.
        shard: ShardId,
    },
    /// Not born, or the kind of op does not fit.
    #[error("{kind} needs {needs}")]
    Unfit {
        /// The kind asked for.
        kind: OpKind,
        /// What is missing.
        needs: String,
    },
}

impl GroupRecord {
    /// A group as it is admitted: every member with its volume, at term 1, led by nobody, its
    /// shards given to their first owners by the op that makes the first primary.
    pub fn birth(
        group: GroupId,
        members: Vec<Admitted>,
        k: u8,
        owners: impl IntoIterator<Item = (ShardId, CellId)>,
    ) -> Self {
        let mut runs: Vec<Run> = Vec::new();
        for (shard, cell) in owners {
            runs.push(Run {
                first: shard,
                last: shard,
                cell,
                epoch: Epoch::ZERO,
                phase: RunPhase::Active,
            });
        }
        Self {
            group,
            members,
            k,
            term: Term::new(1),
            open: None,
            ops: 0,
            op: None,
            runs: joined(runs),
        }
    }

    /// The term that the tables name; zero before birth is complete.
    pub fn open_term(&self) -> Term {
        self.open.as_ref().map_or(Term::ZERO, |open| open.term)
    }

    /// The group's arithmetic.
    pub fn quorum(&self) -> Quorum {
        Quorum {
            members: self.members.len(),
            k: usize::from(self.k),
        }
    }

    /// The record after `order`, or why not. P1.
    pub fn begin(&self, order: &Begin) -> Result<Self, Refusal> {
        let open = self.open_term();
        if order.judged != open {
            return Err(Refusal::Stale {
                judged: order.judged,
                open,
            });
        }
        match (&self.op, order.over) {
            (Some(op), over) if over != Some(op.term) => {
                return Err(Refusal::Running {
                    kind: op.kind,
                    term: op.term,
                });
            }
            (None, Some(term)) => return Err(Refusal::NotRunning { term }),
            _ => {}
        }
        self.fits(order)?;
        let mut next = self.clone();
        if order.kind != OpKind::OwnerChange {
            next.term = self.term.next();
        }
        let term = if order.kind == OpKind::OwnerChange {
            open
        } else {
            next.term
        };
        next.runs = self.moved(order)?;
        next.ops = self.ops + 1;
        next.op = Some(Op {
            number: next.ops,
            kind: order.kind,
            term,
            target: order.target.clone(),
            plan: order.plan.clone(),
            execution: order.execution.clone(),
            deadline_ms: order.deadline_ms,
            automatic: order.automatic,
        });
        Ok(next)
    }

    fn fits(&self, order: &Begin) -> Result<(), Refusal> {
        if !self.members.iter().any(|member| member.id == order.target) {
            return Err(Refusal::NotAMember {
                member: order.target.clone(),
            });
        }
        let unfit = |needs: &str| Refusal::Unfit {
            kind: order.kind,
            needs: needs.to_owned(),
        };
        let primary = self.open.as_ref().map(|open| &open.primary);
        match order.kind {
            OpKind::Failover => Ok(()),
            OpKind::Switchover if primary.is_none() => Err(unfit("an open primary")),
            OpKind::Switchover if primary == Some(&order.target) => {
                Err(unfit("another member as its target"))
            }
            OpKind::Switchover if order.over.is_some() => Err(unfit("no running op")),
            OpKind::Switchover => Ok(()),
            OpKind::OwnerChange | OpKind::CallOff if primary != Some(&order.target) => {
                Err(unfit("the present primary as its target"))
            }
            OpKind::OwnerChange if order.over.is_some() => Err(unfit("no running op")),
            OpKind::OwnerChange if order.moves.is_empty() => Err(unfit("shards to move")),
            OpKind::OwnerChange => Ok(()),
            OpKind::CallOff if order.over.is_none() => Err(unfit("an op to call off")),
            OpKind::CallOff => Ok(()),
        }
    }

    /// The runs with every moved shard at its next epoch. Shards of an op that is taken over move
    /// to a further epoch in any case: to where the order sends them, back to the cell that they
    /// were leaving where an op is called off, else to the cell that they were going to.
    fn moved(&self, order: &Begin) -> Result<Vec<Run>, Refusal> {
        let mut single = self.single();
        for wanted in &order.moves {
            for number in wanted.first.0..=wanted.last.0 {
                let shard = ShardId(number);
                if !single.iter().any(|run| run.first == shard) {
                    return Err(Refusal::NotHere { shard });
                }
            }
        }
        for run in &mut single {
            let to = order
                .moves
                .iter()
                .find(|wanted| (wanted.first..=wanted.last).contains(&run.first))
                .map(|wanted| wanted.to.clone());
            let (leaving, to) = match (&run.phase, to) {
                (RunPhase::Active, None) => continue,
                (RunPhase::Active, Some(to)) => (run.cell.clone(), to),
                (RunPhase::Switching { leaving }, None) if order.kind == OpKind::CallOff => {
                    (leaving.clone(), leaving.clone())
                }
                (RunPhase::Switching { leaving }, None) => (leaving.clone(), run.cell.clone()),
                (RunPhase::Switching { leaving }, Some(to)) => (leaving.clone(), to),
            };
            run.epoch = run.epoch.next();
            run.cell = to;
            run.phase = RunPhase::Switching { leaving };
        }
        Ok(joined(single))
    }

    /// The record once the op's target serves and, where shards changed hands, the new owner's
    /// router has read their epochs there. P8.
    pub fn finish(&self, opened: &Opened) -> Result<Self, Refusal> {
        let Some(op) = self.op.as_ref().filter(|op| op.id() == opened.op) else {
            return Err(Refusal::OtherOp {
                op: opened.op.clone(),
            });
        };
        if op.target != opened.primary {
            return Err(Refusal::NotAMember {
                member: opened.primary.clone(),
            });
        }
        let mut next = self.clone();
        next.op = None;
        next.open = Some(Open {
            term: op.term,
            primary: opened.primary.clone(),
        });
        let mut single = self.single();
        for run in &mut single {
            run.phase = RunPhase::Active;
        }
        next.runs = joined(single);
        Ok(next)
    }

    /// What the running op's driver is told.
    pub fn drive_order(&self) -> Option<DriveOrder> {
        let op = self.op.as_ref()?;
        Some(DriveOrder {
            group: self.group.clone(),
            kind: op.kind,
            term: op.term,
            open: self
                .open
                .as_ref()
                .map(|open| (open.term, open.primary.clone())),
            target: op.target.clone(),
            members: self.members.clone(),
            k: self.k,
            grants: self.grants(),
            op: op.id(),
        })
    }

    /// The shards of the running op with their coming owners.
    pub fn grants(&self) -> Vec<Grant> {
        let switching = self
            .single()
            .into_iter()
            .filter(|run| matches!(run.phase, RunPhase::Switching { .. }));
        switching
            .map(|run| Grant {
                shard: run.first,
                epoch: run.epoch,
                cell: run.cell,
            })
            .collect()
    }

    /// The run that holds a shard.
    pub fn run_of(&self, shard: ShardId) -> Option<&Run> {
        self.runs
            .iter()
            .find(|run| (run.first..=run.last).contains(&shard))
    }

    /// One run a shard.
    fn single(&self) -> Vec<Run> {
        let each = |run: &Run| {
            let run = run.clone();
            (run.first.0..=run.last.0).map(move |number| Run {
                first: ShardId(number),
                last: ShardId(number),
                ..run.clone()
            })
        };
        self.runs.iter().flat_map(each).collect()
    }
}

/// Neighbours that are alike become one run.
fn joined(single: Vec<Run>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for run in single {
        match runs.last_mut() {
            Some(last)
                if last.last.0 + 1 == run.first.0
                    && last.cell == run.cell
                    && last.epoch == run.epoch
                    && last.phase == run.phase =>
            {
                last.last = run.last;
            }
            _ => runs.push(run),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(name: &str) -> CellId {
        CellId::parse(name).unwrap()
    }

    fn member(n: u8) -> MemberId {
        MemberId::parse(format!("g-{n}")).unwrap()
    }

    fn born() -> GroupRecord {
        let admitted = |n| Admitted {
            id: member(n),
            volume: format!("v{n}"),
        };
        let owners = (0..4).map(|shard| (ShardId(shard), cell("a")));
        let group = GroupId::parse("g").unwrap();
        GroupRecord::birth(group, (1..=3).map(admitted).collect(), 1, owners)
    }

    fn order(kind: OpKind, judged: u64, target: u8, moves: &[(u16, u16, &str)]) -> Begin {
        let to = |(first, last, to): &(u16, u16, &str)| Move {
            first: ShardId(*first),
            last: ShardId(*last),
            to: cell(to),
        };
        Begin {
            kind,
            judged: Term::new(judged),
            over: None,
            target: member(target),
            moves: moves.iter().map(to).collect(),
            plan: "p".into(),
            execution: "x".into(),
            deadline_ms: 10,
            automatic: false,
        }
    }

    fn open() -> GroupRecord {
        let begun = born()
            .begin(&order(OpKind::Failover, 0, 1, &[(0, 3, "a")]))
            .unwrap();
        begun
            .finish(&Opened {
                op: "x#1".into(),
                primary: member(1),
            })
            .unwrap()
    }

    #[test]
    fn birth_opens_term_two_with_every_shard_at_epoch_one() {
        let record = open();
        assert_eq!(record.open_term(), Term::new(2));
        assert_eq!(record.runs.len(), 1);
        assert_eq!(record.runs[0].epoch, Epoch::new(1));
        assert_eq!(record.runs[0].phase, RunPhase::Active);
    }

    #[test]
    fn a_switchover_raises_the_term_and_only_the_moving_shards_epochs() {
        let begun = open()
            .begin(&order(OpKind::Switchover, 2, 2, &[(1, 2, "b")]))
            .unwrap();
        assert_eq!(begun.term, Term::new(3));
        let epochs: Vec<_> = begun
            .runs
            .iter()
            .map(|run| (run.first.0, run.epoch.get()))
            .collect();
        assert_eq!(epochs, [(0, 1), (1, 2), (3, 1)]);
        assert_eq!(begun.grants().len(), 2);
        assert_eq!(begun.drive_order().unwrap().open.unwrap().0, Term::new(2));
    }

    #[test]
    fn a_failover_that_takes_an_op_over_gives_its_shards_yet_newer_epochs() {
        let begun = open()
            .begin(&order(OpKind::Switchover, 2, 2, &[(0, 3, "b")]))
            .unwrap();
        let refused = begun
            .begin(&order(OpKind::Failover, 2, 3, &[]))
            .unwrap_err();
        assert_eq!(
            refused,
            Refusal::Running {
                kind: OpKind::Switchover,
                term: Term::new(3)
            }
        );
        let over = Begin {
            over: Some(Term::new(3)),
            ..order(OpKind::Failover, 2, 3, &[])
        };
        let taken = begun.begin(&over).unwrap();
        assert_eq!(taken.term, Term::new(4));
        assert_eq!(
            (taken.runs[0].epoch, &taken.runs[0].cell),
            (Epoch::new(3), &cell("b"))
        );
        let late = taken.finish(&Opened {
            op: "x#2".into(),
            primary: member(2),
        });
        assert_eq!(late.unwrap_err(), Refusal::OtherOp { op: "x#2".into() });
    }

    #[test]
    fn calling_off_sends_the_shards_back_under_newer_numbers() {
        let begun = open()
            .begin(&order(OpKind::Switchover, 2, 2, &[(0, 3, "b")]))
            .unwrap();
        let off = Begin {
            over: Some(Term::new(3)),
            ..order(OpKind::CallOff, 2, 1, &[])
        };
        let off = begun.begin(&off).unwrap();
        assert_eq!((off.term, off.runs[0].epoch), (Term::new(4), Epoch::new(3)));
        assert_eq!(off.runs[0].cell, cell("a"));
    }

    #[test]
    fn an_order_for_a_world_that_has_moved_is_refused() {
        let stale = open()
            .begin(&order(OpKind::Switchover, 1, 2, &[]))
            .unwrap_err();
        assert_eq!(
            stale,
            Refusal::Stale {
                judged: Term::new(1),
                open: Term::new(2)
            }
        );
        let unknown = open()
            .begin(&order(OpKind::Failover, 2, 9, &[]))
            .unwrap_err();
        assert_eq!(unknown, Refusal::NotAMember { member: member(9) });
    }
}
