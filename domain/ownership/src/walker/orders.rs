//! Control and the gateway at work.

use std::rc::Rc;

use atoll_topology::{MemberId, ShardId, Term};

use super::checks::Violation;
use super::choice::ALL;
use super::control::{self, Change, First, REPLICAS, Reload, Scope, Stored, Version, shards};
use super::log::{Cell, SHARDS};
use super::message::Message;
use super::node::{At, Awaited, Work};
use super::world::{Stepped, Table, World, epoch_of};
use super::{Mutant, story};
use crate::gate::{Decision, Row};
use crate::messages::{Admitted, OpKind};
use crate::record::{GroupRecord, Opened, RunPhase};

impl World {
    /// A replica reads a record; one that has just come back may be told an old one.
    pub(super) fn read(&mut self, replica: u8, group: u8, back: u8) -> bool {
        let versions = &self.store[usize::from(group)];
        let Some(which) = versions.len().checked_sub(1 + usize::from(back)) else {
            return false;
        };
        let version = versions[which].clone();
        let believed = &mut self.believed[usize::from(replica)][usize::from(group)];
        if believed.revision == version.revision {
            return false;
        }
        *believed = version;
        true
    }

    pub(super) fn order(
        &mut self,
        replica: u8,
        group: u8,
        (kind, target, cell): (OpKind, At, Cell),
        scope: Scope,
    ) -> bool {
        let believed = self.believed(replica, group);
        let Some(target) = self.ids.get(usize::from(target)) else {
            return false;
        };
        let to = &self.cells[usize::from(cell)];
        let Some(next) = control::begin(&believed, group, (kind, target, to), scope, self.mutant)
        else {
            return false;
        };
        self.put_later(replica, group, next);
        true
    }

    pub(super) fn order_policy(&mut self, replica: u8, group: u8, change: Change) -> bool {
        let believed = self.believed(replica, group);
        // A member comes back with the volume that it had, or with a new one.
        let member = |at: At| {
            let node = self
                .nodes
                .get(usize::from(at))
                .filter(|n| n.group == group)?;
            let lost = node.disk.mark == crate::member::Mark::Lost;
            let volume = node.volume + u8::from(lost);
            Some(Admitted {
                id: node.id.clone(),
                volume: format!("{}{volume}", node.id),
            })
        };
        let Some(next) = control::change(&believed, change, member, self.mutant) else {
            return false;
        };
        self.put_later(replica, group, next);
        true
    }

    fn put_later(&mut self, replica: u8, group: u8, next: Stored) {
        let revision = self.believed[usize::from(replica)][usize::from(group)].revision;
        self.send(Message::Put {
            replica,
            group,
            revision,
            next: Rc::new(next),
        });
    }

    /// A replica tells the target, or the primary that is to reload; it may be told again.
    pub(super) fn order_drive(&mut self, replica: u8, group: u8) -> bool {
        let stored = self.believed(replica, group);
        if let Some(order) = stored.record.drive_order() {
            let to = Self::index(&order.target);
            let leaving = control::leaving(&stored.record, &self.cells);
            self.send(Message::Drive {
                to,
                order: Rc::new(order),
                leaving,
            });
            return true;
        }
        let (Some(policy), Some(open)) = (&stored.policy, &stored.record.open) else {
            return false;
        };
        let reload = Reload {
            term: open.term,
            policy: policy.clone(),
        };
        self.send(Message::Reload {
            to: Self::index(&open.primary),
            reload,
        });
        for admitted in &stored.record.members {
            let to = Self::index(&admitted.id);
            if self.node(to).nonce() != admitted.volume {
                self.send(Message::Admit {
                    to,
                    admitted: admitted.clone(),
                    term: stored.record.term,
                });
            }
        }
        true
    }

    /// A compare-and-swap reaches the store. Whoever sent it may never hear the outcome.
    pub(super) fn put(
        &mut self,
        replica: u8,
        group: u8,
        revision: u64,
        next: Rc<Stored>,
        heard: u8,
    ) -> Result<(), Violation> {
        let before = self.newest(group).clone();
        let blind = self.mutant == Some(Mutant::BlindPut);
        if before.revision != revision && !blind {
            self.tell(|| "refused".to_owned());
            return Ok(());
        }
        self.tell(|| story::record(&next));
        let (old, new) = (&before.stored.record, &next.record);
        let epoch = |r: &GroupRecord, shard| r.run_of(shard).map(|run| run.epoch.get());
        let back = |shard: &ShardId| epoch(old, *shard) > epoch(new, *shard);
        if old.term.supersedes(new.term)
            || old.open_term().supersedes(new.open_term())
            || shards(group).iter().any(back)
        {
            return Self::broke("EPOCH_GROWS", "the record's numbers go back".to_owned());
        }
        let version = Version {
            revision: before.revision + 1,
            stored: next,
        };
        self.publish(group, &version.stored.record);
        if before.stored.policy.is_some() && version.stored.policy.is_none() {
            self.walked.policies += 1;
        }
        self.store[usize::from(group)].push(version.clone());
        if heard == ALL {
            self.believed[usize::from(replica)][usize::from(group)] = version;
        }
        Ok(())
    }

    /// While the primary moves, all the group's shards wait.
    fn publish(&mut self, group: u8, record: &GroupRecord) {
        let Some(open) = &record.open else { return };
        let moves = record
            .op
            .as_ref()
            .filter(|op| op.kind != OpKind::OwnerChange);
        let mut rows = Vec::new();
        for shard in shards(group) {
            if let Some(run) = record.run_of(shard) {
                rows.push(match run.phase {
                    RunPhase::Active if moves.is_none() => (shard, Row::Active(run.epoch)),
                    _ => (shard, Row::Switching(run.epoch)),
                });
            }
        }
        let term = record.op.as_ref().map_or(open.term, |op| op.term);
        let table = Rc::new(Table { group, rows, term });
        if self.tables.last() != Some(&table) {
            self.tables.push(table);
        }
    }

    /// P8.
    pub(super) fn opened(&mut self, group: u8, op: &str, primary: &MemberId) {
        for replica in 0..REPLICAS {
            let believed = self.believed(replica, group);
            let opened = Opened {
                op: op.to_owned(),
                primary: primary.clone(),
            };
            if let Ok(record) = believed.record.finish(&opened) {
                let next = Stored {
                    record,
                    policy: believed.policy.clone(),
                };
                self.put_later(replica, group, next);
                return;
            }
        }
        self.tell(|| "no replica knows of that op".to_owned());
    }

    /// The primary is told of a policy change. Orders carry the term and a number that grows:
    /// an older list never takes a newer one's place.
    pub(super) fn reload(&mut self, at: At, reload: Reload) {
        let node = self.at(at);
        let leads = node.member.leading() == Some(reload.term)
            && node.member.durable().promise == reload.term;
        let policy = reload.policy;
        if !leads || policy.number <= node.policy {
            self.tell(|| "refuses".to_owned());
            return;
        }
        node.policy = policy.number;
        node.awaited = Awaited {
            members: Self::listed(policy.members.iter().map(|member| &member.id)),
            k: policy.k,
        };
        let number = policy.number;
        let barrier = policy.first == First::Postgres
            && self.mutant != Some(Mutant::PolicyChangeWithoutBarrier);
        if barrier {
            self.begin_statement(at, 0, Work::Policy { number });
        } else {
            self.reloaded_on(at, number);
        }
    }

    pub(super) fn reloaded(&mut self, group: u8, number: u64) {
        for replica in 0..REPLICAS {
            if let Some(next) = control::changed(&self.believed(replica, group), number) {
                self.put_later(replica, group, next);
                return;
            }
        }
    }

    /// The gateway is shown a table, not always the newest.
    pub(super) fn show(&mut self, group: u8, back: u8) -> Stepped {
        let of_group = |table: &&Rc<Table>| table.group == group;
        let Some(table) = self
            .tables
            .iter()
            .rev()
            .filter(of_group)
            .nth(usize::from(back))
        else {
            return Ok(false);
        };
        let table = table.clone();
        let mut changed = false;
        for (shard, row) in &table.rows {
            let (_, gate, newest) = &mut self.gates[usize::from(shard.0)];
            let before = *gate;
            let decision = gate.row(*row);
            changed |= *gate != before;
            let (epoch, taken) = (gate.epoch(), gate.epoch() == epoch_of(*row));
            if taken {
                *newest = newest.newest(table.term);
            }
            if before.epoch().supersedes(epoch) {
                let old = before.epoch();
                let what = format!("a gate of shard {shard} goes back from epoch {old} to {epoch}");
                return Self::broke("EPOCH_GROWS", what).map(|()| true);
            }
            if decision != Decision::Unchanged {
                self.tell(|| format!("shard {shard}: {decision:?} at epoch {epoch}"));
            }
            if decision == Decision::Release {
                self.released(group, *shard, epoch, table.term)?;
            }
        }
        Ok(changed)
    }

    fn released(
        &mut self,
        group: u8,
        shard: ShardId,
        epoch: atoll_topology::Epoch,
        term: Term,
    ) -> Result<(), Violation> {
        self.walked.released += 1;
        self.told[usize::from(group)].releases(shard, epoch, term)
    }

    pub(super) fn suspect(&mut self, shard: u8) -> bool {
        let (_, gate, _) = &mut self.gates[usize::from(shard)];
        gate.epoch() != atoll_topology::Epoch::ZERO && gate.suspect() == Decision::Close
    }

    /// A probe passes where an open port has the owner that the gate knows.
    pub(super) fn probe(&mut self, shard: u8) -> Stepped {
        let (shard, gate, _) = self.gates[usize::from(shard)];
        let serves = self.nodes.iter().find_map(|node| {
            let owned = node.log.owned(shard)?;
            let here = node.alive && u16::from(node.group) == shard.0 / SHARDS;
            let here = here && owned.epoch == gate.epoch();
            node.port.filter(|_| here).map(|term| (node.group, term))
        });
        let Some((group, term)) = serves else {
            return Ok(false);
        };
        let decision = self.gates[usize::from(shard.0)].1.probe_passed();
        if decision != Decision::Release {
            return Ok(false);
        }
        self.released(group, shard, gate.epoch(), term)?;
        Ok(true)
    }
}
