//! The whole world of a walk: what there is, and the one function that makes a choice happen.

use std::hash::{Hash, Hasher};
use std::rc::Rc;

use atoll_topology::{CellId, Epoch, MemberId, ShardId, Term};

use super::Mutant;
use super::checks::{Told, Violation};
use super::choice::{ALL, Choice, Key};
use super::control::{self, REPLICAS, Stored, Version};
use super::log::Cell;
use super::message::Message;
use super::node::{Asker, At, Awaited, Node, Postgres};
use super::story::{self, Story};
use crate::driver;
use crate::gate::{Gate, Row};
use crate::member::{Durable, Input, Mark, Member};
use crate::messages::{Admitted, Call};
use crate::rejoin::Rejoin;

/// Messages under way at once; beyond it, the oldest are lost.
const MESSAGES_MAX: usize = 32;
/// Entries of one log, so that a walk stays short.
pub(super) const LOG_MAX: usize = 100;
/// What a choice did: whether it was possible at all, or what it broke.
pub(super) type Stepped = Result<bool, Violation>;

/// A group as a walk begins with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Listed members.
    pub members: u8,
    /// Members that are there and not listed.
    pub spare: u8,
    /// Awaited standbys.
    pub k: u8,
}

/// What the tables say of one group, at one version of its record.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Table {
    pub(super) group: u8,
    pub(super) rows: Vec<(ShardId, Row)>,
    /// The term whose primary serves these rows, or will.
    pub(super) term: Term,
}

/// What a walk went through, so that a walker that does nothing can be told from one that finds
/// nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Walked {
    /// Choices that happened.
    pub steps: u64,
    /// Writes acknowledged to clients.
    pub acknowledged: u64,
    /// Times a port was opened.
    pub opened: u64,
    /// Crashes of members or of their PostgreSQL.
    pub crashes: u64,
    /// Rewinds and clones that ended well.
    pub rebuilt: u64,
    /// Held requests released.
    pub released: u64,
    /// Policy changes that were published after their barrier.
    pub policies: u64,
}

impl std::ops::AddAssign for Walked {
    fn add_assign(&mut self, other: Self) {
        self.steps += other.steps;
        self.acknowledged += other.acknowledged;
        self.opened += other.opened;
        self.crashes += other.crashes;
        self.rebuilt += other.rebuilt;
        self.released += other.released;
        self.policies += other.policies;
    }
}

/// Groups, their control and a gateway.
#[derive(Debug, Clone)]
pub struct World {
    pub(super) mutant: Option<Mutant>,
    pub(super) ids: Vec<MemberId>,
    pub(super) cells: Vec<CellId>,
    pub(super) nodes: Vec<Node>,
    pub(super) groups: u8,
    pub(super) messages: Vec<Message>,
    /// By group: every version that the store ever held; the last one is what it holds.
    pub(super) store: Vec<Vec<Version>>,
    /// By replica, by group: what it believes.
    pub(super) believed: Vec<Vec<Version>>,
    /// What was published, oldest first.
    pub(super) tables: Vec<Rc<Table>>,
    /// By shard: the gate, and the term of the last row that it took.
    pub(super) gates: Vec<(ShardId, Gate, Term)>,
    pub(super) told: Vec<Told>,
    pub(super) writes: u32,
    pub(super) walked: Walked,
    pub(super) story: Option<Story>,
}

pub(super) fn cell_index(cells: &[CellId], cell: &CellId) -> Cell {
    Cell::from(cells.first() != Some(cell))
}

impl World {
    /// Groups that are admitted and not born.
    pub fn new(shapes: &[Shape], mutant: Option<Mutant>) -> Self {
        #[expect(clippy::expect_used, reason = "constants that parse")]
        let cells: Vec<_> = story::CELLS
            .map(|name| CellId::parse(name).expect("an id"))
            .to_vec();
        let mut world = Self {
            mutant,
            ids: Vec::new(),
            cells,
            nodes: Vec::new(),
            groups: 0,
            messages: Vec::new(),
            store: Vec::new(),
            believed: vec![Vec::new(); usize::from(REPLICAS)],
            tables: Vec::new(),
            gates: Vec::new(),
            told: Vec::new(),
            writes: 0,
            walked: Walked::default(),
            story: None,
        };
        shapes.iter().for_each(|shape| world.add(*shape));
        world
    }

    fn add(&mut self, shape: Shape) {
        let group = self.groups;
        self.groups += 1;
        #[expect(clippy::cast_possible_truncation, reason = "a handful of members")]
        let first = self.nodes.len() as At;
        let awaited = Awaited {
            members: (first..first + shape.members).collect(),
            k: shape.k,
        };
        for at in first..first + shape.members + shape.spare {
            #[expect(clippy::expect_used, reason = "a constant that parses")]
            let id = MemberId::parse(char::from(b'a' + at)).expect("an id");
            self.ids.push(id.clone());
            let durable = Durable {
                promise: Term::new(1),
                upstream: None,
                mark: Mark::None,
            };
            let member = self.member(id, durable);
            let mut node = Node::new(member, group, awaited.clone());
            if self.mutant == Some(Mutant::RewindsAllAtOnce) {
                node.rejoin = Rejoin::all_at_once();
            }
            self.nodes.push(node);
        }
        let members = awaited.members.iter().map(|at| self.admitted(*at));
        let stored = control::birth(group, members.collect(), shape.k, &self.cells[0]);
        let version = Version {
            revision: 1,
            stored: Rc::new(stored),
        };
        self.store.push(vec![version.clone()]);
        for replica in &mut self.believed {
            replica.push(version.clone());
        }
        for shard in control::shards(group) {
            let gate = match self.mutant {
                Some(mutant) => Gate::weakened(mutant.gate()),
                None => Gate::default(),
            };
            self.gates.push((shard, gate, Term::ZERO));
        }
        self.told.push(Told::default());
    }

    pub(super) fn member(&self, id: MemberId, durable: Durable) -> Member {
        match self.mutant {
            Some(mutant) => Member::weakened(id, durable, mutant.member()),
            None => Member::new(id, durable),
        }
    }

    fn admitted(&self, at: At) -> Admitted {
        let node = self.node(at);
        Admitted {
            id: node.id.clone(),
            volume: node.nonce(),
        }
    }

    /// What was reached.
    pub fn walked(&self) -> Walked {
        self.walked
    }

    /// Keeps the story from here on.
    #[must_use]
    pub fn telling(self) -> Self {
        Self {
            story: Some(Story::default()),
            ..self
        }
    }

    /// What happened, a line a choice.
    pub fn story(self) -> Vec<String> {
        self.story.map(Story::lines).unwrap_or_default()
    }

    pub(super) fn node(&self, at: At) -> &Node {
        &self.nodes[usize::from(at)]
    }

    pub(super) fn at(&mut self, at: At) -> &mut Node {
        &mut self.nodes[usize::from(at)]
    }

    /// Members are named a, b, c, …
    pub(super) fn index(id: &MemberId) -> At {
        id.as_str().bytes().next().map_or(0, |b| b - b'a')
    }

    pub(super) fn tell(&mut self, what: impl FnOnce() -> String) {
        if let Some(story) = &mut self.story {
            story.effect(what());
        }
    }

    pub(super) fn send(&mut self, message: Message) {
        if self.messages.len() >= MESSAGES_MAX {
            self.messages.remove(0);
        }
        self.messages.push(message);
    }

    /// Names the state, whatever path led to it: two worlds with one name have one future. What
    /// else the future depends on is told with `besides`.
    pub(super) fn fingerprint(&self, besides: &impl Hash) -> u64 {
        // Messages have no order: they may arrive in any.
        let mut bag = 0_u64;
        for message in &self.messages {
            let mut hasher = Mix::default();
            message.hash(&mut hasher);
            bag = bag.wrapping_add(hasher.finish());
        }
        let mut hasher = Mix::default();
        (besides, bag, &self.nodes, &self.told).hash(&mut hasher);
        for group in 0..self.groups {
            self.newest(group).stored.hash(&mut hasher);
        }
        hasher.finish()
    }

    /// Makes a choice happen. `false` where it cannot: then nothing has changed.
    pub fn step(&mut self, choice: Choice) -> Stepped {
        if self.story.is_some() {
            let line = story::line(self, choice);
            if let Some(story) = &mut self.story {
                story.begin(line);
            }
        }
        let stepped = self.happen(choice);
        match &stepped {
            Ok(false) => {
                if let Some(story) = &mut self.story {
                    story.forget();
                }
            }
            _ => self.walked.steps += 1,
        }
        stepped
    }

    fn happen(&mut self, choice: Choice) -> Stepped {
        match choice {
            Choice::Deliver(key, outputs) => self.deliver(key, outputs, Copies::None),
            Choice::Repeat(key, outputs) => self.deliver(key, outputs, Copies::One),
            Choice::Lose(key) => Ok(self.take_message(key, Copies::None).is_some()),
            Choice::Work(at, outputs) => self.work(at, outputs),
            Choice::Link(at) => self.establish(at),
            Choice::Stream(at, entries) => self.stream(at, usize::from(entries)),
            Choice::Write(at, shard, cell) => self.write(at, shard, cell, Pace::AtOnce),
            Choice::Linger(at, shard, cell) => self.write(at, shard, cell, Pace::Lingering),
            Choice::Execute(at, nth) => self.execute(at, usize::from(nth)),
            Choice::Commit(at) => self.commit(at),
            Choice::Promoted(at) => self.promoted(at),
            Choice::Ready(at) => self.ready(at),
            Choice::Replayed(at) => self.replayed(at),
            Choice::Rebuilt(at) => self.rebuilt(at),
            Choice::RebuildFails(at) => self.rebuild_fails(at),
            Choice::Lead(at, to) => Ok(self.lead(at, to, at)),
            Choice::Cascade(at, to, through) => Ok(at != through && self.lead(at, to, through)),
            Choice::Again(at, to) => Ok(self.ask_again(at, to)),
            Choice::Unreachable(at, other) => self.unreachable(at, other),
            Choice::Crash(at) => Ok(self.crash(at)),
            Choice::Start(at) => Ok(self.start(at)),
            Choice::PostgresDies(at) => self.postgres_dies(at),
            Choice::LoseVolume(at) => Ok(self.lose_volume(at)),
            Choice::Isolate(at) => self.local(at, Input::Isolated),
            Choice::Hear(at) if self.hears(at) => self.local(at, Input::Heard),
            Choice::Hear(_) => Ok(false),
            Choice::Read(replica, group, back) => Ok(self.read(replica, group, back)),
            Choice::Order {
                replica,
                group,
                kind,
                target,
                cell,
                scope,
            } => Ok(self.order(replica, group, (kind, target, cell), scope)),
            Choice::Policy(replica, group, change) => Ok(self.order_policy(replica, group, change)),
            Choice::Drive(replica, group) => Ok(self.order_drive(replica, group)),
            Choice::Show(group, back) => self.show(group, back),
            Choice::Suspect(shard) => Ok(self.suspect(shard)),
            Choice::Probe(shard) => self.probe(shard),
        }
    }

    fn take_message(&mut self, key: Key, copies: Copies) -> Option<Message> {
        let which = self.messages.iter().position(|m| m.key() == key)?;
        Some(match copies {
            Copies::None => self.messages.remove(which),
            Copies::One => self.messages[which].clone(),
        })
    }

    fn deliver(&mut self, key: Key, outputs: u8, copies: Copies) -> Stepped {
        let Some(message) = self.take_message(key, copies) else {
            return Ok(false);
        };
        match message {
            Message::Call { from, to, call } if self.node(to).alive => {
                self.called(from, to, call, outputs)?;
            }
            Message::Answer { from, to, answer } if self.node(to).alive => {
                self.heard(to, from, &answer);
                let from = self.ids[usize::from(from)].clone();
                self.drive(to, driver::Input::Answer { from, answer })?;
            }
            Message::Drive { to, order, leaving } if self.node(to).alive => {
                self.take_order(to, &order, leaving)?;
            }
            Message::Reload { to, reload } if self.node(to).alive => self.reload(to, reload),
            Message::Admit { to, admitted, term } => self.admit(to, &admitted, term),
            Message::Opened {
                group, op, primary, ..
            } => self.opened(group, &op, &primary),
            Message::Reloaded { group, number, .. } => self.reloaded(group, number),
            Message::Put {
                replica,
                group,
                revision,
                next,
            } => self.put(replica, group, revision, next, outputs)?,
            Message::Call { .. }
            | Message::Answer { .. }
            | Message::Drive { .. }
            | Message::Reload { .. } => self.tell(|| "nobody is there".to_owned()),
        }
        Ok(true)
    }

    fn called(&mut self, from: At, to: At, call: Call, outputs: u8) -> Result<(), Violation> {
        let node = self.at(to);
        node.inbox
            .push_back((Asker::Member(from), Input::Call(call)));
        if node.idle() && node.inbox.len() == 1 {
            self.work(to, outputs)?;
        } else {
            self.tell(|| "waits".to_owned());
        }
        Ok(())
    }

    /// An input from the machine itself, when the agent has nothing else to do.
    pub(super) fn local(&mut self, at: At, input: Input) -> Stepped {
        let node = self.at(at);
        if !node.alive || !node.idle() || !node.inbox.is_empty() {
            return Ok(false);
        }
        let mut after = node.member.clone();
        if after.step(input.clone()).is_empty() {
            return Ok(false);
        }
        node.inbox.push_back((Asker::Nobody, input));
        self.work(at, ALL)
    }

    /// Whether k of its standbys say that their promise is its own.
    fn hears(&self, at: At) -> bool {
        let (own, awaited) = (self.node(at).disk.promise, &self.node(at).awaited);
        let same = |other: &&At| {
            let node = self.node(**other);
            **other != at && node.alive && node.disk.promise == own
        };
        awaited.members.iter().filter(same).count() >= usize::from(awaited.k)
    }

    fn crash(&mut self, at: At) -> bool {
        if !self.node(at).alive {
            return false;
        }
        self.walked.crashes += 1;
        self.cut_links(at, None);
        self.at(at).crash();
        true
    }

    fn start(&mut self, at: At) -> bool {
        let node = self.node(at);
        if node.alive {
            return false;
        }
        let member = self.member(node.id.clone(), node.disk.clone());
        let node = self.at(at);
        node.alive = true;
        node.member = member;
        node.inbox.push_back((Asker::Nobody, Input::Started));
        true
    }

    fn lose_volume(&mut self, at: At) -> bool {
        let node = self.at(at);
        if node.alive || node.disk.mark == Mark::Lost {
            return false;
        }
        node.lose_volume();
        true
    }

    /// The lost member's agent finds a volume that control admits.
    fn admit(&mut self, at: At, admitted: &Admitted, term: Term) {
        let node = self.at(at);
        let volume = node.volume + 1;
        if node.disk.mark != Mark::Lost || admitted.volume != format!("{}{volume}", node.id) {
            return;
        }
        node.crash();
        node.admitted(volume, term);
        node.promised = node.promised.newest(term);
    }

    fn postgres_dies(&mut self, at: At) -> Stepped {
        // Between two inputs only: during one it is the same as a crash of both.
        let node = self.node(at);
        if !node.alive || node.postgres == Postgres::Down || !node.idle() {
            return Ok(false);
        }
        self.walked.crashes += 1;
        self.end_postgres(at);
        self.push(at, Asker::Nobody, Input::PostgresExited);
        Ok(true)
    }

    /// The newest version of a group's record.
    pub(super) fn newest(&self, group: u8) -> &Version {
        let versions = &self.store[usize::from(group)];
        &versions[versions.len() - 1]
    }

    pub(super) fn believed(&self, replica: u8, group: u8) -> Rc<Stored> {
        self.believed[usize::from(replica)][usize::from(group)]
            .stored
            .clone()
    }

    pub(super) fn broke(invariant: &'static str, what: String) -> Result<(), Violation> {
        Err(Violation { invariant, what })
    }
}

/// A quick hash: a multiplication and a rotation a word, and a finish that mixes all bits.
#[derive(Default)]
struct Mix(u64);

impl Hasher for Mix {
    fn write(&mut self, bytes: &[u8]) {
        for word in bytes.chunks(8) {
            let mut whole = [0; 8];
            whole[..word.len()].copy_from_slice(word);
            self.write_u64(u64::from_le_bytes(whole));
        }
    }

    fn write_u64(&mut self, word: u64) {
        let mixed = (self.0.rotate_left(23) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.0 = mixed ^ (mixed >> 29);
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }

    fn finish(&self) -> u64 {
        let mixed = (self.0 ^ (self.0 >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
        mixed ^ (mixed >> 32)
    }
}

/// Whether a message that arrives is still under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Copies {
    None,
    One,
}

/// Whether a client's statement executes at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    AtOnce,
    Lingering,
}

/// The epoch of a row.
pub(super) fn epoch_of(row: Row) -> Epoch {
    let (Row::Active(epoch) | Row::Switching(epoch)) = row;
    epoch
}
