//! Every schedule of a small world: three members, one awaited standby, one planned switch and one
//! failover at any moment of it; so many crashes at any moment, each for as long or as short as may
//! be; so many messages that arrive a second time, at any later moment; so many things that are
//! *late*: a message that arrives at any later moment, or a member whose PostgreSQL stands still
//! until any later moment; so many writes. What is not late happens at once, in the order in which
//! it was caused (delay-bounded scheduling: Emmi, Qadeer, Rakamarić, POPL 2011): with enough
//! lateness this is every schedule there is, and what a protocol gets wrong it mostly gets wrong
//! with little of it.
//!
//! What is left out besides, and why nothing is lost by it:
//! - **An input is one step with all its outputs.** Between them a member touches only itself and
//!   the links that it cuts; nobody is answered before the last one. So a crash in between is a
//!   crash after the last one whose answer is lost, and what another does in between it might as
//!   well have done before: the member's log is the same until it cuts.
//! - **Local inputs follow at once, links are made at once.** A driver's order to its own member
//!   could arrive later; but so could the answer that made the driver give it. A link allows and
//!   forbids nothing by itself; a cut ends it whenever it was made.
//! - **No message is lost.** A late one that never arrives is. Where nothing else is left to do,
//!   every driver may repeat a call, and every leader its `Follow`.
//! - **What can have no effect is dropped**: answers that no run waits for (each belongs to one call
//!   of one run) or that it ignores, calls below the promise whose refusal nobody waits for.
//! - **Control acts at once and knows the newest record.** Whatever an older one makes a replica
//!   write is refused by the store, and what it makes it send is an order that was under way.
//! - **No client's statement lingers**, and none writes to the second shard: the switch leaves it.
//! - **The members are not interchangeable** (one leads, one is the target), so there is no
//!   symmetry to use; whom the failover makes the primary is a bound, so that each is one run.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::Hash;

use super::checks::Violation;
use super::choice::{ALL, Choice};
use super::control::Scope;
use super::message::Message;
use super::node::{At, Link, Node, Postgres};
use super::world::{Shape, World};
use super::{Counterexample, Mutant};
use crate::messages::{Answer, OpKind, Refused};
use crate::record::Op;

/// What may happen, and how often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Crashes of members or of their PostgreSQL.
    pub crashes: u8,
    /// Messages that arrive twice.
    pub repeats: u8,
    /// Messages or machines that are late.
    pub late: u8,
    /// Writes of clients.
    pub writes: u8,
    /// Whom the failover makes the primary: 0 the old one, 1 the switch's target, 2 the third.
    pub target: u8,
    /// States after which it ends unfinished.
    pub states: usize,
}

/// What was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Explored {
    /// Different states.
    pub states: usize,
    /// Steps from one to another.
    pub steps: u64,
    /// The longest schedule.
    pub depth: usize,
    /// Whether there was no more to see.
    pub complete: bool,
}

impl fmt::Display for Explored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            states,
            steps,
            depth,
            complete,
        } = self;
        let how = if *complete { "all" } else { "the first" };
        write!(f, "{how} {states} states, {steps} steps, {depth} deep")
    }
}

/// What is still allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Left {
    crashes: u8,
    repeats: u8,
    writes: u8,
    failovers: u8,
}

#[derive(Debug, Clone, Copy)]
enum Act {
    /// What comes next by itself, or what may come at any time.
    Take(Choice),
    /// The next message is late.
    Delay,
    /// The next message is repeated, late.
    Repeat,
    /// A late message arrives.
    Arrive(usize),
    /// A member's PostgreSQL stands still, until it goes on.
    Halt(At),
    GoOn(At),
}

#[derive(Clone)]
struct State {
    world: World,
    late: Vec<Message>,
    still: u8,
    left: Left,
    /// How much may still be late.
    delays: u8,
}

struct Visit {
    state: State,
    acts: Vec<Act>,
    /// How long the schedule was before this one.
    before: usize,
}

/// Goes through all of it.
pub fn explore(bounds: Bounds, mutant: Option<Mutant>) -> Result<Explored, Box<Counterexample>> {
    let shape = Shape {
        members: 3,
        spare: 0,
        k: 1,
    };
    let admitted = World::new(&[shape], mutant);
    let start = admitted.clone().born().unwrap_or(admitted);
    let mut path: Vec<Choice> = Vec::new();
    let found = |violation, path: &Vec<Choice>| {
        Box::new(Counterexample {
            seed: 0,
            violation,
            start: start.clone(),
            choices: path.clone(),
        })
    };
    let mut first = State {
        world: start.clone(),
        late: Vec::new(),
        still: 0,
        left: Left {
            crashes: bounds.crashes,
            repeats: bounds.repeats,
            writes: bounds.writes,
            failovers: 1,
        },
        delays: bounds.late,
    };
    let switch = Act::Take(order(OpKind::Switchover, 1));
    let begun = first.perform(switch, &mut path);
    begun.map_err(|violation| found(violation, &path))?;
    let mut explored = Explored {
        states: 1,
        steps: 0,
        depth: 0,
        complete: true,
    };
    // A state that was seen with as much lateness left has nothing new to show.
    let mut seen = BTreeMap::from([(first.name(), first.delays)]);
    let mut visits = vec![Visit {
        acts: first.acts(bounds.target),
        state: first,
        before: path.len(),
    }];
    while let Some(visit) = visits.last_mut() {
        let Some(act) = visit.acts.pop() else {
            path.truncate(visit.before);
            visits.pop();
            continue;
        };
        let before = path.len();
        let mut state = visit.state.clone();
        explored.steps += 1;
        let performed = state.perform(act, &mut path);
        performed.map_err(|violation| found(violation, &path))?;
        let known = seen.get(&state.name()).copied();
        if known.is_some_and(|delays| delays >= state.delays) {
            path.truncate(before);
            continue;
        }
        seen.insert(state.name(), state.delays);
        explored.states = seen.len();
        explored.depth = explored.depth.max(visits.len());
        if explored.states >= bounds.states {
            explored.complete = false;
            return Ok(explored);
        }
        visits.push(Visit {
            acts: state.acts(bounds.target),
            state,
            before,
        });
    }
    Ok(explored)
}

fn order(kind: OpKind, target: At) -> Choice {
    Choice::Order {
        replica: 0,
        group: 0,
        kind,
        target,
        cell: 1,
        scope: Scope::OneShard,
    }
}

impl State {
    fn name(&self) -> u64 {
        // The order of the messages decides what comes next.
        let besides = (&self.world.messages, &self.late, self.still, self.left);
        self.world.fingerprint(&besides)
    }

    fn members(&self) -> std::ops::Range<At> {
        self.world.members()
    }

    /// Everything that can happen next.
    fn acts(&self, target: At) -> Vec<Act> {
        let mut acts = self.any_time(target);
        if let Some(message) = self.world.messages.iter().find(|m| self.arrives(m)) {
            acts.push(Act::Take(Choice::Deliver(message.key(), ALL)));
            let between_members = !matches!(message, Message::Put { .. });
            if self.delays > 0 && between_members {
                acts.push(Act::Delay);
            }
            if self.left.repeats > 0 && between_members {
                acts.push(Act::Repeat);
            }
            return acts;
        }
        let moving = |at: &At| self.still & (1 << at) == 0;
        for at in self.members().filter(moving) {
            if let Some(choice) = self.world.steady(at) {
                acts.push(Act::Take(choice));
                if self.delays > 0 {
                    acts.push(Act::Halt(at));
                }
                return acts;
            }
        }
        if self.world.may_drive(0) {
            acts.push(Act::Take(Choice::Drive(0, 0)));
            return acts;
        }
        for at in self.members() {
            let asking = self.members().flat_map(|to| self.world.asking(at, to));
            acts.extend(asking.map(Act::Take));
        }
        acts
    }

    /// What may happen at any moment.
    fn any_time(&self, target: At) -> Vec<Act> {
        let mut acts: Vec<Act> = Vec::new();
        acts.extend((0..self.late.len()).filter_map(|nth| {
            let there = self.arrives(&self.late[nth]);
            there.then_some(Act::Arrive(nth))
        }));
        for at in self.members() {
            let node = self.world.node(at);
            if self.still & (1 << at) != 0 {
                acts.push(Act::GoOn(at));
            }
            if !node.alive {
                acts.push(Act::Take(Choice::Start(at)));
            } else if self.left.crashes > 0 {
                acts.push(Act::Take(Choice::Crash(at)));
                if node.postgres != Postgres::Down {
                    acts.push(Act::Take(Choice::PostgresDies(at)));
                }
            }
            let shard = super::control::shards(0)[0];
            if let Some(owned) = node.log.owned(shard)
                && self.left.writes > 0
                && node.port.is_some()
            {
                acts.push(Act::Take(Choice::Write(at, 0, owned.cell)));
            }
        }
        if self.left.failovers > 0 {
            acts.push(Act::Take(order(OpKind::Failover, target)));
        }
        acts
    }

    /// Nobody hears a message where no process is.
    fn arrives(&self, message: &Message) -> bool {
        match message {
            Message::Call { to, .. } | Message::Answer { to, .. } | Message::Drive { to, .. } => {
                self.world.node(*to).alive
            }
            _ => true,
        }
    }

    fn next(&mut self) -> Option<Message> {
        let next = self.world.messages.iter().position(|m| self.arrives(m));
        next.map(|next| self.world.messages.remove(next))
    }

    /// What was chosen, and all that follows by itself.
    fn perform(&mut self, act: Act, path: &mut Vec<Choice>) -> Result<(), Violation> {
        match act {
            Act::Take(choice) => {
                match choice {
                    Choice::Crash(_) | Choice::PostgresDies(_) => self.left.crashes -= 1,
                    Choice::Write(..) => self.left.writes -= 1,
                    Choice::Order {
                        kind: OpKind::Failover,
                        ..
                    } => self.left.failovers -= 1,
                    _ => {}
                }
                self.world.chosen(choice, path)?;
            }
            Act::Delay => {
                self.delays -= 1;
                let message = self.next();
                self.late.extend(message);
            }
            Act::Repeat => {
                self.left.repeats -= 1;
                if let Some(message) = self.next() {
                    self.late.push(message.clone());
                    self.deliver(message, path)?;
                }
            }
            Act::Arrive(nth) => {
                let message = self.late.remove(nth);
                self.deliver(message, path)?;
            }
            Act::Halt(at) => {
                self.delays -= 1;
                self.still |= 1 << at;
            }
            Act::GoOn(at) => self.still &= !(1 << at),
        }
        self.world.follow_up(path)?;
        self.drop_idle();
        Ok(())
    }

    fn deliver(&mut self, message: Message, path: &mut Vec<Choice>) -> Result<(), Violation> {
        let key = message.key();
        self.world.messages.insert(0, message);
        self.world.chosen(Choice::Deliver(key, ALL), path).map(drop)
    }

    /// What would be delivered without any effect, whenever it came.
    fn drop_idle(&mut self) {
        let op = self.world.newest(0).stored.record.op.as_ref().map(Op::id);
        let nodes = &self.world.nodes;
        let waiting = |at: At, term| {
            let driver = nodes[usize::from(at)].driver.as_ref();
            driver.filter(|driver| !driver.ended() && driver.order().term == term)
        };
        let counts = |message: &Message| match message {
            Message::Answer { from, to, answer } => {
                let link = nodes[usize::from(*from)].link;
                let link = link.filter(|link| link.upstream == *to && link.established);
                let news = |link: Link| answer.promised().is_some_and(|p| p.supersedes(link.known));
                if link.is_some_and(news) {
                    return true;
                }
                let to_leader = &nodes[usize::from(*to)];
                if to_leader.member.leading() == Some(answer.term()) {
                    let mut rejoin = to_leader.rejoin.clone();
                    rejoin.heard(&nodes[usize::from(*from)].id, answer);
                    if rejoin != to_leader.rejoin {
                        return true;
                    }
                }
                let Some(driver) = waiting(*to, answer.term()) else {
                    return false;
                };
                let order = driver.order();
                let old = order.open.as_ref().map(|(_, id)| World::index(id));
                let critical = *from == World::index(&order.target) || old == Some(*from);
                match answer {
                    Answer::Halted { .. } => false,
                    Answer::Refused { why, .. } => critical || *why != Refused::NotReady,
                    _ => true,
                }
            }
            Message::Call { from, to, call } => {
                let promise = nodes[usize::from(*to)].member.durable().promise;
                !promise.supersedes(call.term()) || waiting(*from, call.term()).is_some()
            }
            Message::Opened { op: opened, .. } => op.as_ref() == Some(opened),
            _ => true,
        };
        self.world.messages.retain(counts);
        self.late.retain(counts);
    }
}

impl World {
    /// What one member's machine does next by itself.
    fn steady(&self, at: At) -> Option<Choice> {
        let node = self.node(at);
        let behind = node.link.is_some_and(|link| {
            link.established && self.node(link.upstream).log.len() > node.log.len()
        });
        let choices = [
            (node.promoting.is_some(), Choice::Promoted(at)),
            (!node.statements.is_empty(), Choice::Execute(at, 0)),
            (behind, Choice::Stream(at, 1)),
            (!node.waiting.is_empty(), Choice::Commit(at)),
            (node.postgres == Postgres::Starting, Choice::Ready(at)),
            (node.replay_target.is_some(), Choice::Replayed(at)),
            (node.rebuilding.is_some(), Choice::Rebuilt(at)),
        ];
        let possible = |(due, choice): (bool, Choice)| {
            let can = || self.clone().step(choice) != Ok(false);
            (due && can()).then_some(choice)
        };
        choices.into_iter().find_map(possible)
    }

    /// What one member asks of another.
    fn asking(&self, at: At, to: At) -> impl Iterator<Item = Choice> + use<> {
        let node = self.node(at);
        let driving = node.driver.as_ref().is_some_and(|driver| !driver.ended());
        let asked = driving && node.asked.iter().any(|(asked, _)| *asked == to);
        let linked = |to: &Node| {
            let link = to.link.filter(|link| link.upstream == at);
            link.is_some_and(|link| link.established)
        };
        let leads = node.alive && node.member.leading().is_some();
        let there = self.node(to).alive;
        // How it is matters only to those that may have to wait for it.
        let out = |other: &Node| other.id != node.id && !linked(other);
        let waits = self.nodes.iter().any(out) && node.waits_for(&self.ids[usize::from(to)]);
        let asks = !linked(self.node(to)) || waits;
        let choices = [
            (asked && there, Choice::Again(at, to)),
            (
                (asked || leads && waits) && !there,
                Choice::Unreachable(at, to),
            ),
            (leads && asks && there, Choice::Lead(at, to)),
        ];
        let possible = choices.into_iter().filter(|(possible, _)| *possible);
        possible.map(|(_, choice)| choice)
    }

    /// Control repeats an order whose driver is not there.
    pub(super) fn may_drive(&self, group: u8) -> bool {
        let op = self.newest(group).stored.record.op.as_ref();
        op.is_some_and(|op| {
            let target = self.node(Self::index(&op.target));
            let driver = target.driver.as_ref();
            target.alive && driver.is_none_or(|d| d.order().op != op.id())
        })
    }

    /// All that follows by itself.
    fn follow_up(&mut self, path: &mut Vec<Choice>) -> Result<(), Violation> {
        let mut moved = true;
        while moved {
            moved = false;
            let put = |message: &&Message| matches!(message, Message::Put { .. });
            if let Some(key) = self.messages.iter().find(put).map(Message::key) {
                moved |= self.chosen(Choice::Deliver(key, ALL), path)?;
                self.chosen(Choice::Read(0, 0, 0), path)?;
                self.chosen(Choice::Drive(0, 0), path)?;
            }
            for at in 0..3 {
                moved |= self.chosen(Choice::Work(at, ALL), path)?;
                moved |= self.chosen(Choice::Link(at), path)?;
            }
        }
        Ok(())
    }

    pub(super) fn chosen(
        &mut self,
        choice: Choice,
        path: &mut Vec<Choice>,
    ) -> Result<bool, Violation> {
        path.push(choice);
        let happened = self.step(choice)?;
        if !happened {
            path.pop();
        }
        Ok(happened)
    }
}
