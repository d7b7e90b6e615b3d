//! The whole world of a walk, and what can happen in it.

use std::collections::BTreeMap;

use atoll_topology::{CellId, Epoch, MemberId, ShardId, Term};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::checks::{Told, Violation};
use super::control::{self, Replica, Scope, Store};
use super::node::{Commit, Entry, Link, Node, Postgres, Waiting};
use super::{Mutant, Walked};
use crate::driver::{self, Driver};
use crate::gate::{Decision, Gate, Row};
use crate::member::{Durable, Input, Member, Output};
use crate::messages::{Answer, Call, DriveOrder, Grant, OpKind, Progress, TermRow};
use crate::record::{GroupRecord, RunPhase};

/// Messages under way at once; beyond it, the oldest are lost.
const MESSAGES_MAX: usize = 24;
/// Entries of one log, so that a walk stays short.
const LOG_MAX: usize = 120;

#[derive(Debug, Clone)]
enum Message {
    Call {
        to: usize,
        from: MemberId,
        call: Call,
    },
    Answer {
        to: usize,
        from: MemberId,
        answer: Answer,
    },
    Drive {
        to: usize,
        order: DriveOrder,
    },
    Opened {
        op: String,
        primary: MemberId,
    },
}

/// One group, its control and its gateway.
pub struct World {
    rng: SmallRng,
    mutant: Option<Mutant>,
    ids: Vec<MemberId>,
    cells: Vec<CellId>,
    nodes: Vec<Node>,
    messages: Vec<Message>,
    store: Store,
    replicas: Vec<Replica>,
    tables: Vec<GroupRecord>,
    gates: BTreeMap<ShardId, Gate>,
    told: Told,
    writes: u64,
    walked: Walked,
    story: Vec<String>,
    telling: bool,
}

fn make(mutant: Option<Mutant>) -> impl Fn(MemberId, Durable) -> Member {
    move |id, durable| match mutant {
        Some(mutant) => Member::weakened(id, durable, mutant.member()),
        None => Member::new(id, durable),
    }
}

impl World {
    /// A group that is admitted and not born.
    pub fn new(seed: u64, mutant: Option<Mutant>) -> Self {
        #[expect(clippy::expect_used, reason = "constants that parse")]
        let (ids, cells): (Vec<_>, Vec<_>) = (
            (1..=3)
                .map(|n| MemberId::parse(format!("g-{n}")).expect("an id"))
                .collect(),
            ["east", "west"]
                .map(|name| CellId::parse(name).expect("an id"))
                .to_vec(),
        );
        let record = control::birth(&ids, &cells);
        let gate = || mutant.map_or_else(Gate::default, |mutant| Gate::weakened(mutant.gate()));
        Self {
            rng: SmallRng::seed_from_u64(seed),
            mutant,
            nodes: ids
                .iter()
                .map(|id| Node::new(id.clone(), make(mutant)))
                .collect(),
            ids,
            cells,
            messages: Vec::new(),
            store: Store {
                revision: 1,
                record: record.clone(),
            },
            replicas: vec![
                Replica {
                    revision: 1,
                    record: record.clone()
                };
                2
            ],
            tables: vec![record],
            gates: (0..2).map(|shard| (ShardId(shard), gate())).collect(),
            told: Told::default(),
            writes: 0,
            walked: Walked::default(),
            story: Vec::new(),
            telling: false,
        }
    }

    /// The same, keeping the story.
    #[must_use]
    pub fn telling(self) -> Self {
        Self {
            telling: true,
            ..self
        }
    }

    /// What was broken, if anything was.
    pub fn violation(&self) -> Option<Violation> {
        self.told.broken.clone()
    }

    /// What happened, oldest first.
    pub fn story(self) -> Vec<String> {
        self.story
    }

    /// What was reached.
    pub fn walked(&self) -> Walked {
        self.walked
    }

    fn tell(&mut self, what: impl FnOnce() -> String) {
        if self.telling {
            self.story.push(what());
        }
    }

    fn any(&mut self, of: usize) -> usize {
        self.rng.random_range(0..of)
    }

    /// One random event.
    pub fn act(&mut self) {
        let node = self.any(self.nodes.len());
        // Work is quick and losses are rare, else nothing would ever be opened to be lost.
        match self.rng.random_range(0..1_000_u32) {
            0..430 => self.work(node),
            430..620 => self.deliver(),
            620..730 => self.replicate(node),
            730..780 => self.write(node),
            780..840 => self.commit(node),
            840..890 => self.finish_long_work(node),
            890..905 => self.lead(node),
            905..917 => self.order(),
            917..930 => self.refresh(),
            930..945 => self.show_table(),
            945..970 => self.ask_again(node),
            970..975 => self.unreachable(node),
            975..988 => self.restart(node),
            988..997 => self.stop(node),
            _ => {}
        }
    }

    /// Now and then, a member or only its PostgreSQL dies.
    fn stop(&mut self, at: usize) {
        match self.any(6) {
            0 => self.crash(at),
            1 => self.postgres_dies(at),
            _ => {}
        }
    }

    /// The next output of the last input, or the next input.
    fn work(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        if !node.alive {
            return;
        }
        if let Some(output) = node.queue.pop_front() {
            self.perform(at, output);
        } else if let Some((caller, input)) = node.inbox.pop_front() {
            node.caller = caller;
            let outputs = node.member.step(input.clone());
            node.queue.extend(outputs);
            self.tell(|| format!("g-{} takes {input:?}", at + 1));
        }
    }

    fn perform(&mut self, at: usize, output: Output) {
        self.tell(|| format!("g-{} does {output:?}", at + 1));
        let node = &mut self.nodes[at];
        match output {
            Output::Persist(durable) => {
                if node.disk.promise.supersedes(durable.promise) {
                    let what = format!("{} promises {:?} again", node.id, durable.promise);
                    // Without the promise check a member goes back by design of the mutant.
                    self.told.broke("EPOCH_GROWS", what);
                    return;
                }
                node.disk = durable;
            }
            Output::ClosePort => {
                node.port = None;
                node.waiting.clear();
            }
            Output::CutLinks { except } => self.cut_links(at, except.as_ref()),
            Output::CutUpstream | Output::AwaitReceiverGone => node.link = None,
            Output::AnswerPrepared { term } => {
                let (volume, recruit) = (node.id.to_string(), node.recruit());
                self.reply(
                    at,
                    Answer::Prepared {
                        term,
                        volume,
                        recruit,
                    },
                );
            }
            Output::AnswerDemoted { term } => {
                let (end, history) = (node.end(), node.rows());
                self.reply(at, Answer::Demoted { term, end, history });
            }
            Output::Answer(answer) => self.reply(at, answer),
            Output::CompareLogs => {
                let outputs = node.member.step(Input::Compared(node.end()));
                for output in outputs.into_iter().rev() {
                    node.queue.push_front(output);
                }
            }
            Output::Link { upstream, .. } => {
                let stands = node
                    .link
                    .as_ref()
                    .is_some_and(|link| link.upstream == upstream);
                if !stands {
                    node.link = Some(Link {
                        upstream,
                        established: false,
                    });
                }
            }
            Output::StopPostgres => self.end_postgres(at),
            Output::StartStandby => {
                node.postgres = Postgres::Standby;
                node.inbox.push_back((None, Input::StandbyUp));
            }
            Output::Rebuild { upstream, .. } => node.rebuild_from = Some(upstream),
            Output::Promote { term } => node.promoting = Some(term),
            Output::OpeningTransaction { term, grants } => self.opening(at, term, grants),
            Output::OpenPort { term } => self.open_port(at, term),
            Output::Deny(why) => self.drive(
                at,
                driver::Input::Denied {
                    reason: why.to_string(),
                },
            ),
        }
    }

    fn cut_links(&mut self, at: usize, except: Option<&MemberId>) {
        let own = self.ids[at].clone();
        let node = &mut self.nodes[at];
        if node
            .link
            .as_ref()
            .is_some_and(|link| Some(&link.upstream) != except)
        {
            node.link = None;
        }
        for (other, id) in self.nodes.iter_mut().zip(&self.ids) {
            let mine = other.link.as_mut().filter(|link| link.upstream == own);
            if let Some(link) = mine.filter(|_| Some(id) != except) {
                link.established = false;
            }
        }
    }

    fn end_postgres(&mut self, at: usize) {
        self.cut_links(at, None);
        self.nodes[at].postgres_ended();
    }

    fn reply(&mut self, at: usize, answer: Answer) {
        let from = self.ids[at].clone();
        if let Some(caller) = self.nodes[at].caller.clone() {
            let to = self.index(&caller);
            self.send(Message::Answer { to, from, answer });
        }
    }

    fn index(&self, id: &MemberId) -> usize {
        self.ids
            .iter()
            .position(|other| other == id)
            .unwrap_or_default()
    }

    fn send(&mut self, message: Message) {
        if self.messages.len() >= MESSAGES_MAX {
            self.messages.remove(0);
        }
        self.messages.push(message);
    }

    /// The opening transaction: the row only if it is the greatest, every grant only if newer.
    fn opening(&mut self, at: usize, term: Term, grants: Vec<Grant>) {
        let node = &mut self.nodes[at];
        if node.postgres != Postgres::Primary {
            node.queue
                .push_front(Output::OpeningTransaction { term, grants });
            return;
        }
        let stale_row = !term.supersedes(node.end().position.term);
        if stale_row || stale(node, &grants) {
            let reason = "stale".to_owned();
            self.drive(at, driver::Input::Denied { reason });
            return;
        }
        let row = Some(TermRow {
            term,
            timeline: node.timeline(),
            fork: node.fork(),
            primary: node.id.clone(),
            members: self.ids.clone(),
            k: 1,
            op: String::new(),
        });
        append(
            node,
            Entry::Opening {
                row: row.clone(),
                grants,
            },
        );
        let what = Commit::Opening { term, row };
        node.waiting.push(Waiting {
            at: node.log.len() - 1,
            what,
        });
    }

    /// In place, at the open term, under the lock that waits for the shards' writers.
    fn change_owners(&mut self, at: usize, term: Term, grants: Vec<Grant>) {
        let node = &mut self.nodes[at];
        let serves = node.member.serving() == Some(term) && node.port == Some(term);
        if !serves || stale(node, &grants) {
            self.drive(
                at,
                driver::Input::Denied {
                    reason: "stale".to_owned(),
                },
            );
            return;
        }
        let locked = |waiting: &Waiting| match &waiting.what {
            Commit::Write { shard, .. } => grants.iter().any(|grant| grant.shard == *shard),
            Commit::Opening { .. } => false,
        };
        if node.waiting.iter().any(locked) {
            self.drive(
                at,
                driver::Input::Denied {
                    reason: "locked".to_owned(),
                },
            );
            return;
        }
        append(node, Entry::Opening { row: None, grants });
        let what = Commit::Opening { term, row: None };
        node.waiting.push(Waiting {
            at: node.log.len() - 1,
            what,
        });
    }

    fn keep_open(&mut self, at: usize, term: Term, grants: Vec<Grant>) {
        let node = &self.nodes[at];
        if node.member.serving().is_some() && node.member.durable().promise == term {
            self.opening(at, term, grants);
        } else {
            self.drive(
                at,
                driver::Input::Denied {
                    reason: "not serving".to_owned(),
                },
            );
        }
    }

    fn open_port(&mut self, at: usize, term: Term) {
        let node = &mut self.nodes[at];
        node.port = Some(term);
        self.walked.opened += 1;
        let has = node.writes();
        let opened = node.end().position.term == term;
        let served: Vec<_> = node.owners().into_values().collect();
        self.told.opens(term, &has);
        if opened {
            let pairs = served
                .into_iter()
                .map(|grant| (grant.shard, grant.epoch.get()));
            self.told.served.extend(pairs);
        }
        self.report(at);
    }

    fn report(&mut self, at: usize) {
        if let Some(op) = self.nodes[at].reporting.take() {
            let primary = self.ids[at].clone();
            self.send(Message::Opened { op, primary });
        }
    }

    fn deliver(&mut self) {
        if self.messages.is_empty() {
            return;
        }
        let which = self.any(self.messages.len());
        let message = match self.rng.random_range(0..20_u32) {
            0 => {
                self.messages.swap_remove(which);
                return;
            }
            1 => self.messages[which].clone(),
            _ => self.messages.swap_remove(which),
        };
        self.tell(|| format!("arrives: {message:?}"));
        match message {
            Message::Call { to, from, call } if self.nodes[to].alive => {
                self.nodes[to]
                    .inbox
                    .push_back((Some(from), Input::Call(call)));
            }
            Message::Answer { to, from, answer } if self.nodes[to].alive => {
                self.drive(to, driver::Input::Answer { from, answer });
            }
            Message::Drive { to, order } if self.nodes[to].alive => self.take_order(to, order),
            Message::Opened { op, primary } => self.opened(&op, &primary),
            Message::Call { .. } | Message::Answer { .. } | Message::Drive { .. } => {}
        }
    }

    fn take_order(&mut self, at: usize, order: DriveOrder) {
        let node = &mut self.nodes[at];
        if node.driver.as_ref().is_some_and(|driver| {
            driver.order() == &order || driver.order().term.supersedes(order.term)
        }) {
            return;
        }
        node.asked.clear();
        node.replay_target = None;
        node.driver = Some(Driver::new(order));
        self.drive(at, driver::Input::Start);
    }

    /// Feeds a member's driver and does what it asks for.
    fn drive(&mut self, at: usize, input: driver::Input) {
        let Some(driver) = &mut self.nodes[at].driver else {
            return;
        };
        let outputs = driver.step(input);
        let own = self.ids[at].clone();
        for output in outputs {
            self.tell(|| format!("driver g-{}: {output:?}", at + 1));
            let node = &mut self.nodes[at];
            match output {
                driver::Output::Call { to, call } => {
                    node.asked.push((to.clone(), call.clone()));
                    let to = self.index(&to);
                    self.send(Message::Call {
                        to,
                        from: own.clone(),
                        call,
                    });
                }
                driver::Output::AwaitReplayed(lsn) => node.replay_target = Some(lsn),
                driver::Output::Promote { term } => {
                    node.inbox.push_back((None, Input::Promote { term }));
                    // A running primary that wins again is promoted already.
                    if node.postgres == Postgres::Primary {
                        node.promoting = Some(term);
                    }
                }
                driver::Output::OpeningTransaction { term, grants } => {
                    node.inbox
                        .push_back((None, Input::OpeningTransaction { term, grants }));
                }
                driver::Output::ChangeOwners { term, grants } => {
                    self.change_owners(at, term, grants);
                }
                driver::Output::KeepOpen { term, grants } => self.keep_open(at, term, grants),
                driver::Output::Open { term } => node.inbox.push_back((None, Input::Open { term })),
                driver::Output::Report(Progress::Open { .. }) => {
                    node.reporting = node.driver.as_ref().map(|driver| driver.order().op.clone());
                    // In place, nothing has to open first.
                    if node.port.is_some() {
                        self.report(at);
                    }
                }
                driver::Output::Report(_) => {}
            }
        }
    }

    /// One entry along one link.
    fn replicate(&mut self, at: usize) {
        let Some(link) = self.nodes[at].link.clone() else {
            return;
        };
        let up = self.index(&link.upstream);
        if up == at || !self.nodes[at].alive || self.nodes[at].postgres != Postgres::Standby {
            return;
        }
        let (own, upstream) = (&self.nodes[at], &self.nodes[up]);
        if !upstream.alive || upstream.postgres == Postgres::Down {
            return;
        }
        let prefix = upstream.log.starts_with(&own.log);
        if !link.established {
            let accepted = upstream.member.accepts_link(&own.id, own.disk.promise);
            let refused = !prefix && own.timeline() != upstream.timeline();
            if !accepted || refused || own.log.len() > upstream.log.len() {
                return;
            }
        }
        if !prefix {
            let what = format!(
                "{} streams from {}, whose log is another",
                own.id, upstream.id
            );
            self.told.broke("ONE_LOG", what);
            return;
        }
        let next = upstream.log.get(own.log.len()).cloned();
        let node = &mut self.nodes[at];
        node.link = Some(Link {
            established: true,
            ..link
        });
        node.log.extend(next);
    }

    /// A client writes where a port is open, as the cell that owns the shard there.
    fn write(&mut self, at: usize) {
        let shard = ShardId(u16::from(self.rng.random_bool(0.5)));
        let node = &mut self.nodes[at];
        let Some(term) = node.port else { return };
        if !node.alive || node.postgres != Postgres::Primary || node.log.len() >= LOG_MAX {
            return;
        }
        if node.end().position.term != term && node.member.durable().promise == term {
            let what = format!(
                "{} lets a client write before the row of term {term}",
                node.id
            );
            self.told.broke("HELD_UNTIL_OPEN", what);
            return;
        }
        let Some(owner) = node.owners().remove(&shard) else {
            return;
        };
        self.writes += 1;
        let number = self.writes;
        append(node, Entry::Write { number });
        let what = Commit::Write {
            number,
            shard,
            epoch: owner.epoch,
            cell: owner.cell,
        };
        node.waiting.push(Waiting {
            at: node.log.len() - 1,
            what,
        });
        self.tell(|| format!("write {number} of shard {shard} on g-{}", at + 1));
    }

    /// The oldest commit that waits is acknowledged, if enough standbys have it.
    fn commit(&mut self, at: usize) {
        let node = &self.nodes[at];
        let Some(waiting) = node.waiting.first().cloned() else {
            return;
        };
        let holds = |other: &&Node| {
            other.alive
                && other.log.len() > waiting.at
                && other
                    .link
                    .as_ref()
                    .is_some_and(|link| link.established && link.upstream == node.id)
        };
        let standbys = self.nodes.iter().filter(holds).count();
        if standbys < 1 && self.mutant != Some(Mutant::AcknowledgeBeforeQuorum) {
            return;
        }
        self.nodes[at].waiting.remove(0);
        self.tell(|| format!("acknowledged on g-{}: {:?}", at + 1, waiting.what));
        match waiting.what {
            Commit::Write {
                number,
                shard,
                epoch,
                cell,
            } => {
                self.walked.acknowledged += 1;
                self.told.acknowledge(number, shard, epoch, &cell);
            }
            Commit::Opening { term, row } => self.opening_acknowledged(at, term, row),
        }
    }

    fn opening_acknowledged(&mut self, at: usize, term: Term, row: Option<TermRow>) {
        let node = &mut self.nodes[at];
        let kept = node.member.serving().is_some();
        let input = if kept {
            Input::KeptOpen { term }
        } else {
            Input::OpeningAcknowledged { term }
        };
        if row.is_some() {
            node.inbox.push_back((None, input));
        }
        if kept {
            if row.is_some() {
                node.port = Some(term);
            }
            let served = node
                .owners()
                .into_values()
                .map(|g| (g.shard, g.epoch.get()));
            self.told.served.extend(served.collect::<Vec<_>>());
        }
        self.drive(at, driver::Input::Acknowledged { row });
    }

    /// Promotions, rebuilds and replays take their time.
    fn finish_long_work(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        if !node.alive {
            return;
        }
        if let Some(term) = node.promoting.take() {
            if node.postgres == Postgres::Standby {
                node.postgres = Postgres::Primary;
                node.link = None;
                let timeline = u32::try_from(term.get()).unwrap_or(u32::MAX);
                node.log.push((timeline, Entry::Promotion));
            }
            node.inbox.push_back((None, Input::Promoted { term }));
            self.drive(at, driver::Input::Promoted);
        } else if let Some(upstream) = node.rebuild_from.take() {
            let up = self.index(&upstream);
            let leads = self.nodes[up].alive && self.nodes[up].member.leading().is_some();
            let log = self.nodes[up].log.clone();
            let node = &mut self.nodes[at];
            if leads {
                node.log = log;
                node.inbox.push_back((None, Input::Rebuilt));
            } else {
                node.inbox.push_back((None, Input::RebuildFailed));
            }
        } else if node
            .replay_target
            .is_some_and(|lsn| node.log.len() as u64 >= lsn.0)
        {
            node.replay_target = None;
            self.drive(at, driver::Input::Replayed);
        }
    }

    /// Who leads repeats `Follow` to the others.
    fn lead(&mut self, at: usize) {
        let node = &self.nodes[at];
        let Some(term) = node.member.leading().filter(|_| node.alive) else {
            return;
        };
        let (upstream, history) = (node.id.clone(), node.rows());
        let to = (at + 1 + self.any(2)) % 3;
        let call = Call::Follow {
            term,
            upstream: upstream.clone(),
            history,
            settled: true,
        };
        self.send(Message::Call {
            to,
            from: upstream,
            call,
        });
    }

    fn refresh(&mut self) {
        let which = self.any(2);
        let Store { revision, record } = self.store.clone();
        self.replicas[which] = Replica { revision, record };
    }

    /// A replica of control orders an op, or repeats the order of the one that is running.
    fn order(&mut self) {
        let (which, target, cell) = (self.any(2), self.any(3), self.any(2));
        let replica = self.replicas[which].clone();
        if let Some(order) = control::drive_order(&replica.record).filter(|_| self.any(2) == 0) {
            let to = self.index(&order.target);
            self.send(Message::Drive { to, order });
            return;
        }
        let kind = match self.any(6) {
            0 => OpKind::OwnerChange,
            1 => OpKind::CallOff,
            2 | 3 => OpKind::Switchover,
            _ => OpKind::Failover,
        };
        let scope = [Scope::NoShard, Scope::OneShard, Scope::BothShards][self.any(3)];
        let primary = replica
            .record
            .open
            .as_ref()
            .map(|open| open.primary.clone());
        let target = match (kind, primary) {
            (OpKind::OwnerChange | OpKind::CallOff, Some(primary)) => primary,
            _ => self.ids[target].clone(),
        };
        let begin = control::order(
            &replica.record,
            kind,
            &target,
            &self.cells[cell].clone(),
            scope,
        );
        let Some(next) = control::begin(&replica.record, &begin, self.mutant) else {
            return;
        };
        self.put(which, &replica, next);
        if let Some(order) = control::drive_order(&self.store.record) {
            let to = self.index(&order.target);
            self.send(Message::Drive { to, order });
        }
    }

    fn put(&mut self, which: usize, replica: &Replica, next: GroupRecord) {
        let before = self.store.record.clone();
        if control::put(&mut self.store, replica, next, self.mutant).is_err() {
            return;
        }
        let record = self.store.record.clone();
        self.tell(|| format!("record: {record:?}"));
        let backwards = before.term.supersedes(record.term)
            || [ShardId(0), ShardId(1)].iter().any(|shard| {
                let epoch = |r: &GroupRecord| r.run_of(*shard).map_or(Epoch::ZERO, |r| r.epoch);
                epoch(&before).supersedes(epoch(&record))
            });
        if backwards {
            self.told
                .broke("EPOCH_GROWS", "the record's numbers went back".to_owned());
        }
        self.tables.push(record.clone());
        // Its own write is what it knows; whether it hears of it is another matter.
        if self.any(8) != 0 {
            self.replicas[which] = Replica {
                revision: self.store.revision,
                record,
            };
        }
    }

    /// P8.
    fn opened(&mut self, op: &str, primary: &MemberId) {
        let which = self.any(2);
        let replica = self.replicas[which].clone();
        if let Some(next) = control::finish(&replica.record, op, primary) {
            self.put(which, &replica, next);
        }
    }

    /// The gateway is shown a table, not always the newest.
    fn show_table(&mut self) {
        let back = self.any(self.tables.len().min(3)) + 1;
        let table = &self.tables[self.tables.len() - back];
        if table.open.is_none() {
            return;
        }
        for (shard, gate) in &mut self.gates {
            let Some(run) = table.run_of(*shard) else {
                continue;
            };
            let row = match run.phase {
                RunPhase::Active => Row::Active(run.epoch),
                RunPhase::Switching { .. } => Row::Switching(run.epoch),
            };
            let before = gate.epoch();
            let decision = gate.row(row);
            if before.supersedes(gate.epoch()) {
                let what = format!("a gate of shard {shard} went back from epoch {before}");
                self.told.broke("EPOCH_GROWS", what);
            }
            if decision == Decision::Release {
                self.walked.released += 1;
                self.told.releases(*shard, gate.epoch());
            }
        }
    }

    fn ask_again(&mut self, at: usize) {
        let asked = &self.nodes[at].asked;
        if asked.is_empty() || !self.nodes[at].alive {
            return;
        }
        let (to, call) = asked[self.rng.random_range(0..asked.len())].clone();
        let (to, from) = (self.index(&to), self.ids[at].clone());
        self.send(Message::Call { to, from, call });
    }

    fn unreachable(&mut self, at: usize) {
        let other = self.any(3);
        if self.nodes[at].alive && !self.nodes[other].alive {
            let from = self.ids[other].clone();
            self.drive(at, driver::Input::Unreachable { from });
        }
    }

    fn crash(&mut self, at: usize) {
        if !self.nodes[at].alive {
            return;
        }
        self.walked.crashes += 1;
        self.cut_links(at, None);
        self.nodes[at].crash();
        self.tell(|| format!("g-{} crashes", at + 1));
    }

    fn restart(&mut self, at: usize) {
        if self.nodes[at].alive {
            return;
        }
        let node = &mut self.nodes[at];
        node.alive = true;
        node.member = make(self.mutant)(node.id.clone(), node.disk.clone());
        node.inbox.push_back((None, Input::Started));
        self.tell(|| format!("g-{} starts", at + 1));
    }

    fn postgres_dies(&mut self, at: usize) {
        // Between two inputs only: during one it is the same as a crash of both.
        let node = &self.nodes[at];
        if !node.alive || node.postgres == Postgres::Down || !node.queue.is_empty() {
            return;
        }
        self.end_postgres(at);
        self.nodes[at]
            .inbox
            .push_back((None, Input::PostgresExited));
        self.tell(|| format!("PostgreSQL of g-{} dies", at + 1));
    }
}

fn append(node: &mut Node, entry: Entry) {
    let timeline = node.timeline();
    node.log.push((timeline, entry));
}

fn stale(node: &Node, grants: &[Grant]) -> bool {
    let owners = node.owners();
    grants.iter().any(|grant| {
        owners
            .get(&grant.shard)
            .is_some_and(|owner| !grant.epoch.supersedes(owner.epoch))
    })
}
