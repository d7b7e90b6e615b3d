//! A data group without PostgreSQL: the members and drivers of `domain/ownership`, which call one
//! another at once, over logs that hold opening transactions and nothing else.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use atoll_ownership::driver::{self, Driver};
use atoll_ownership::member::{self, Durable, Mark, Member, Stage};
use atoll_ownership::{
    Answer, Call, DriveOrder, Grant, LogEnd, Progress, Recruit, Refused, TermRow,
};
use atoll_streams::agent::{Heard, MemberRole, MemberStatus};
use atoll_topology::{CellId, Epoch, Lsn, MemberId, Position, ShardId, Term};
use tokio::sync::watch;

/// What a log says of its shards.
pub(super) type Owners = BTreeMap<ShardId, (Epoch, CellId)>;

/// An opening transaction, on the timeline on which it was written.
#[derive(Debug, Clone, PartialEq)]
struct Entry {
    timeline: u32,
    row: Option<TermRow>,
    grants: Vec<Grant>,
}

#[derive(Default)]
struct Node {
    member: Option<Member>,
    volume: String,
    log: Vec<Entry>,
    up: bool,
    primary: bool,
    upstream: Option<MemberId>,
    port: Option<Term>,
    driver: Option<Driver>,
    progress: Option<(DriveOrder, Progress)>,
    /// The opening transaction that waits for its quorum.
    waiting: Option<(Term, Option<TermRow>)>,
    /// What its driver has asked for in vain.
    again: Vec<(MemberId, Call)>,
}

enum Event {
    Member(MemberId, member::Input, Option<MemberId>),
    Driver(MemberId, driver::Input),
    Report(MemberId, Progress),
}

#[derive(Default)]
struct State {
    nodes: BTreeMap<MemberId, Node>,
    /// Orders to drive that were obeyed, by op: an op that is begun twice would show here.
    driven: BTreeMap<String, u32>,
}

/// The group.
pub(super) struct Group {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

impl Group {
    pub(super) fn new(members: &[MemberId]) -> Self {
        let nodes = members.iter().map(|id| (id.clone(), Node::default()));
        let state = State {
            nodes: nodes.collect(),
            driven: BTreeMap::new(),
        };
        Self {
            state: Mutex::new(state),
            changed: watch::Sender::new(0),
        }
    }

    pub(super) fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        let done = f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.send_modify(|count| *count += 1);
        done
    }

    pub(super) fn admit(&self, id: &MemberId, volume: &str) {
        self.with(|state| {
            let node = state.nodes.get_mut(id).unwrap();
            if node.member.is_some() {
                return;
            }
            node.volume = volume.to_owned();
            node.member = Some(Member::new(
                id.clone(),
                Durable {
                    promise: Term::new(1),
                    upstream: None,
                    mark: Mark::None,
                },
            ));
            state.pump([Event::Member(id.clone(), member::Input::Started, None)]);
        });
    }

    pub(super) fn drive(&self, id: &MemberId, order: DriveOrder) {
        self.with(|state| {
            let node = state.nodes.get_mut(id).unwrap();
            let known = node.driver.as_ref().is_some_and(|driver| {
                driver.order() == &order || driver.order().term.supersedes(order.term)
            });
            if known {
                return;
            }
            *state.driven.entry(order.op.clone()).or_default() += 1;
            node.again.clear();
            node.progress = None;
            node.driver = Some(Driver::new(order));
            state.pump([Event::Driver(id.clone(), driver::Input::Start)]);
        });
    }

    pub(super) fn stand_down(&self, id: &MemberId, op: &str) {
        self.with(|state| {
            let node = state.nodes.get_mut(id).unwrap();
            if node.driver.as_ref().is_some_and(|d| d.order().op == op) {
                node.driver = None;
            }
        });
    }

    /// What an agent does again and again: calls that were refused, `Follow` from who leads.
    pub(super) fn tick(&self) {
        self.with(|state| {
            let ids: Vec<MemberId> = state.nodes.keys().cloned().collect();
            let mut events = Vec::new();
            for (id, node) in &mut state.nodes {
                for (to, call) in std::mem::take(&mut node.again) {
                    events.push(Event::Member(
                        to,
                        member::Input::Call(call),
                        Some(id.clone()),
                    ));
                }
                let leading = node.member.as_ref().and_then(Member::leading);
                for other in ids.iter().filter(|other| *other != id) {
                    let Some(term) = leading else { continue };
                    let call = Call::Follow {
                        term,
                        upstream: id.clone(),
                        history: node.rows(),
                        settled: true,
                    };
                    events.push(Event::Member(
                        other.clone(),
                        member::Input::Call(call),
                        None,
                    ));
                }
            }
            state.pump(events);
        });
    }

    pub(super) fn progress(&self, id: &MemberId) -> Option<(DriveOrder, Progress)> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.nodes[id].progress.clone()
    }

    /// How often each op was driven from its beginning.
    pub(super) fn driven(&self) -> BTreeMap<String, u32> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.driven.clone()
    }

    /// The open primary's term and the owners that its log names.
    pub(super) fn open(&self) -> Option<(Term, MemberId, Owners)> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (id, node) = state.nodes.iter().find(|(_, node)| node.port.is_some())?;
        Some((node.member.as_ref()?.serving()?, id.clone(), node.owners()))
    }

    pub(super) fn status(&self, id: &MemberId) -> MemberStatus {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let node = &state.nodes[id];
        let others = state.nodes.keys().filter(|other| *other != id);
        let promise = |other: &MemberId| {
            let member = state.nodes[other].member.as_ref();
            member.map_or(Term::ZERO, |member| member.durable().promise)
        };
        MemberStatus {
            promise: promise(id),
            role: node
                .member
                .as_ref()
                .map_or(MemberRole::Down, |member| member.role().into()),
            volume: node.member.as_ref().map(|_| node.volume.clone()),
            position: node.up.then(|| node.end()),
            led: node.member.as_ref().and_then(|member| match member.role() {
                member::Role::Primary { led, .. } => Some(*led),
                _ => None,
            }),
            open: node.port,
            upstream: node.upstream.clone(),
            heard: others
                .map(|other| Heard {
                    member: other.clone(),
                    ago_ms: 10,
                    promise: promise(other),
                })
                .collect(),
            exit: None,
            replay_lag_bytes: 0,
            oldest_transaction_ms: 0,
            broken_privilege: None,
        }
    }
}

impl Node {
    fn rows(&self) -> Vec<TermRow> {
        self.log
            .iter()
            .filter_map(|entry| entry.row.clone())
            .collect()
    }

    fn lsn(&self) -> Lsn {
        Lsn(100 * (1 + self.log.len() as u64))
    }

    fn end(&self) -> LogEnd {
        let term = self.rows().last().map_or(Term::new(1), |row| row.term);
        let lsn = self.lsn();
        LogEnd {
            position: Position { term, lsn },
            timeline: self.log.last().map_or(1, |entry| entry.timeline),
        }
    }

    fn owners(&self) -> Owners {
        let grants = self.log.iter().flat_map(|entry| &entry.grants);
        grants
            .map(|grant| (grant.shard, (grant.epoch, grant.cell.clone())))
            .collect()
    }
}

impl State {
    fn node(&mut self, id: &MemberId) -> &mut Node {
        self.nodes.get_mut(id).unwrap()
    }

    /// Handles events until nothing more follows from them.
    fn pump(&mut self, events: impl IntoIterator<Item = Event>) {
        let mut queue: VecDeque<Event> = events.into_iter().collect();
        loop {
            while let Some(event) = queue.pop_front() {
                match event {
                    Event::Member(at, input, caller) => {
                        let Some(member) = &mut self.node(&at).member else {
                            continue;
                        };
                        let promoting = matches!(input, member::Input::Promote { .. });
                        let outputs = member.step(input);
                        // A running primary that wins again is promoted already.
                        let again = promoting
                            && matches!(
                                member.role(),
                                member::Role::Primary {
                                    stage: Stage::Promoted,
                                    ..
                                }
                            );
                        if again {
                            queue.push_back(Event::Driver(at.clone(), driver::Input::Promoted));
                        }
                        for output in outputs {
                            self.perform(&at, output, caller.as_ref(), &mut queue);
                        }
                    }
                    Event::Driver(at, input) => {
                        let Some(driver) = &mut self.node(&at).driver else {
                            continue;
                        };
                        for output in driver.step(input) {
                            self.obey(&at, output, &mut queue);
                        }
                    }
                    Event::Report(at, progress) => {
                        let node = self.node(&at);
                        if let Some(driver) = &node.driver {
                            node.progress = Some((driver.order().clone(), progress));
                        }
                    }
                }
            }
            self.replicate();
            if !self.acknowledge(&mut queue) {
                return;
            }
        }
    }

    /// Every linked standby has what its upstream has.
    fn replicate(&mut self) {
        for _ in 0..2 {
            let links: Vec<(MemberId, MemberId)> = self
                .nodes
                .iter()
                .filter_map(|(id, node)| Some((id.clone(), node.upstream.clone()?)))
                .collect();
            for (id, upstream) in links {
                let log = self.nodes[&upstream].log.clone();
                let own = self.node(&id);
                if own.up && !own.primary && log.starts_with(&own.log) {
                    own.log = log;
                }
            }
        }
    }

    /// Opening transactions whose quorum is there; k is 1.
    fn acknowledge(&mut self, queue: &mut VecDeque<Event>) -> bool {
        let waiting: Vec<_> = self
            .nodes
            .iter()
            .filter_map(|(id, node)| {
                let (term, row) = node.waiting.clone()?;
                let holds = |other: &&Node| {
                    other.upstream.as_ref() == Some(id) && other.up && other.log == node.log
                };
                self.nodes.values().find(holds)?;
                Some((id.clone(), term, row))
            })
            .collect();
        for (id, term, row) in &waiting {
            self.node(id).waiting = None;
            let acknowledged = member::Input::OpeningAcknowledged { term: *term };
            if row.is_some() {
                queue.push_back(Event::Member(id.clone(), acknowledged, None));
            }
            let row = row.clone();
            queue.push_back(Event::Driver(
                id.clone(),
                driver::Input::Acknowledged { row },
            ));
        }
        !waiting.is_empty()
    }

    fn reply(
        &mut self,
        at: &MemberId,
        to: Option<&MemberId>,
        answer: Answer,
        queue: &mut VecDeque<Event>,
    ) {
        if let Some(to) = to {
            let from = at.clone();
            queue.push_back(Event::Driver(
                to.clone(),
                driver::Input::Answer { from, answer },
            ));
        }
    }

    fn cut(&mut self, at: &MemberId, except: Option<&MemberId>) {
        for (id, node) in &mut self.nodes {
            let cut = match (&node.upstream, id == at) {
                (Some(upstream), true) => Some(upstream) != except,
                (Some(upstream), false) => upstream == at && Some(id) != except,
                (None, _) => false,
            };
            if cut {
                node.upstream = None;
            }
        }
    }

    fn perform(
        &mut self,
        at: &MemberId,
        output: member::Output,
        caller: Option<&MemberId>,
        queue: &mut VecDeque<Event>,
    ) {
        use member::Output;
        self.replicate();
        match output {
            Output::Persist(_) => {}
            Output::ClosePort => {
                let node = self.node(at);
                node.port = None;
                node.waiting = None;
            }
            Output::CutLinks { except } => self.cut(at, except.as_ref()),
            Output::CutUpstream | Output::AwaitReceiverGone => self.node(at).upstream = None,
            Output::AnswerPrepared { term } => {
                let node = self.node(at);
                let recruit = node.up.then(|| Recruit {
                    end: node.end(),
                    history: node.rows(),
                    left: node.lsn(),
                    primary: node.primary,
                });
                let volume = node.volume.clone();
                let answer = Answer::Prepared {
                    term,
                    volume,
                    recruit,
                };
                self.reply(at, caller, answer, queue);
            }
            Output::AnswerDemoted { term } => {
                let node = self.node(at);
                let (end, history) = (node.end(), node.rows());
                let answer = Answer::Demoted { term, end, history };
                self.reply(at, caller, answer, queue);
            }
            Output::Answer(answer) => {
                let not_ready = matches!(
                    &answer,
                    Answer::Refused {
                        why: Refused::NotReady,
                        ..
                    }
                );
                if let (true, Some(caller)) = (not_ready, caller) {
                    let asked = self.nodes[caller]
                        .driver
                        .as_ref()
                        .map(Driver::order)
                        .cloned();
                    let call = Call::Prepare {
                        term: answer.term(),
                    };
                    // What matters of what is asked again: a member that is coming up follows.
                    if asked.is_some_and(|order| order.term == answer.term()) {
                        self.node(caller).again.push((at.clone(), call));
                    }
                }
                self.reply(at, caller, answer, queue);
            }
            Output::CompareLogs => {
                let end = self.nodes[at].end();
                let member = self.node(at).member.as_mut().unwrap();
                for output in member.step(member::Input::Compared(end)) {
                    self.perform(at, output, caller, queue);
                }
            }
            Output::Link { upstream, .. } => self.node(at).upstream = Some(upstream),
            Output::StopPostgres => {
                self.cut(at, None);
                let node = self.node(at);
                (node.up, node.primary, node.port) = (false, false, None);
            }
            Output::StartStandby => {
                let node = self.node(at);
                (node.up, node.primary) = (true, false);
                queue.push_back(Event::Member(at.clone(), member::Input::StandbyUp, None));
            }
            Output::Rebuild { upstream, .. } => {
                let log = self.nodes[&upstream].log.clone();
                self.node(at).log = log;
                queue.push_back(Event::Member(at.clone(), member::Input::Rebuilt, None));
            }
            Output::Promote { term } => {
                let node = self.node(at);
                node.primary = true;
                node.upstream = None;
                let promoted = member::Input::Promoted { term };
                queue.push_back(Event::Member(at.clone(), promoted, None));
                queue.push_back(Event::Driver(at.clone(), driver::Input::Promoted));
            }
            Output::OpeningTransaction { term, grants } => self.write(at, term, grants),
            Output::OpenPort { term } => self.node(at).port = Some(term),
            Output::Deny(why) => {
                let reason = why.to_string();
                queue.push_back(Event::Driver(at.clone(), driver::Input::Denied { reason }));
            }
        }
    }

    /// The opening transaction with its term row, on the timeline that its term names.
    fn write(&mut self, at: &MemberId, term: Term, grants: Vec<Grant>) {
        let members = self.nodes.keys().cloned().collect();
        let op = self.nodes[at].driver.as_ref();
        let op = op
            .map(|driver| driver.order().op.clone())
            .unwrap_or_default();
        let node = self.node(at);
        let timeline = u32::try_from(term.get()).unwrap();
        let row = TermRow {
            term,
            timeline,
            fork: node.lsn(),
            primary: at.clone(),
            members,
            k: 1,
            op,
        };
        node.log.push(Entry {
            timeline,
            row: Some(row.clone()),
            grants,
        });
        node.waiting = Some((term, Some(row)));
    }

    fn obey(&mut self, at: &MemberId, output: driver::Output, queue: &mut VecDeque<Event>) {
        use driver::Output;
        match output {
            Output::Call { to, call } => queue.push_back(Event::Member(
                to,
                member::Input::Call(call),
                Some(at.clone()),
            )),
            Output::AwaitReplayed(_) => {
                self.replicate();
                queue.push_back(Event::Driver(at.clone(), driver::Input::Replayed));
            }
            Output::Promote { term } => queue.push_back(Event::Member(
                at.clone(),
                member::Input::Promote { term },
                None,
            )),
            Output::OpeningTransaction { term, grants } => queue.push_back(Event::Member(
                at.clone(),
                member::Input::OpeningTransaction { term, grants },
                None,
            )),
            Output::ChangeOwners { term, grants } => {
                let node = self.node(at);
                let timeline = node.end().timeline;
                node.log.push(Entry {
                    timeline,
                    row: None,
                    grants,
                });
                node.waiting = Some((term, None));
            }
            Output::KeepOpen { term, grants } => self.write(at, term, grants),
            Output::Open { term } => queue.push_back(Event::Member(
                at.clone(),
                member::Input::Open { term },
                None,
            )),
            Output::Report(progress) => queue.push_back(Event::Report(at.clone(), progress)),
        }
    }
}
