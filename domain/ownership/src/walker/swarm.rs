//! How a walk chooses. Each seed draws its own world and its own rates, so that one walk is full of
//! crashes, another of repeated messages, a third of call-offs, and most faults are absent from
//! most walks: what is rare everywhere is never met (swarm testing, Groce et al., ISSTA 2012). The
//! rates know nothing of mutants.

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::choice::{ALL, Choice};
use super::control::{Change, REPLICAS, Scope};
use super::log::SHARDS;
use super::node::{At, Postgres};
use super::world::{Shape, Stepped, World};
use crate::messages::OpKind;

/// Draws that come to nothing, after which a walk ends.
const DRAWS_MAX: u32 = 40;

/// One in so many walks ends with a look whether the groups open again.
const SETTLES: u32 = 64;
/// Of those that begin with members on several lines.
const SETTLES_PARTED: u32 = 1;

/// What is drawn; a kind stands for the choices that differ only in who and which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Deliver,
    Work,
    Link,
    Stream,
    Execute,
    Commit,
    Finish,
    Lead,
    Again,
    Start,
    Drive,
    Show,
    Write,
    Order,
    Cascade,
    Read,
    Policy,
    Repeat,
    Lose,
    Linger,
    Unreachable,
    RebuildFails,
    Crash,
    PostgresDies,
    LoseVolume,
    Isolate,
    Suspect,
}

type Rates = Vec<(Kind, u32)>;

/// What the world does by itself.
const STEADY: [(Kind, u32); 10] = [
    (Kind::Deliver, 300),
    (Kind::Work, 160),
    (Kind::Link, 50),
    (Kind::Stream, 110),
    (Kind::Execute, 50),
    (Kind::Commit, 90),
    (Kind::Finish, 110),
    (Kind::Lead, 8),
    (Kind::Again, 8),
    (Kind::Start, 30),
];

/// What people and programs want of it.
const WANTED: [(Kind, u32); 7] = [
    (Kind::Write, 60),
    (Kind::Order, 16),
    (Kind::Cascade, 8),
    (Kind::Read, 16),
    (Kind::Drive, 16),
    (Kind::Show, 16),
    (Kind::Policy, 24),
];

/// What goes wrong: each of them much, little, or never in one walk.
const WRONG: [(Kind, u32); 10] = [
    (Kind::Repeat, 40),
    (Kind::Lose, 40),
    (Kind::Linger, 40),
    (Kind::Unreachable, 20),
    (Kind::RebuildFails, 10),
    (Kind::Crash, 20),
    (Kind::PostgresDies, 20),
    (Kind::LoseVolume, 10),
    (Kind::Isolate, 15),
    (Kind::Suspect, 15),
];

/// One seed's way to choose.
pub(super) struct Swarm {
    rng: SmallRng,
    /// What may be drawn, and of a thousand draws how many are of each list.
    lists: [(u32, Rates); 3],
    kinds: Vec<OpKind>,
    /// One in so many inputs is interrupted between two outputs.
    interrupted: u32,
    /// One in so many times, an order takes a running op over.
    patience: u32,
    /// Whether it is seen, after the walk, that the groups open again.
    pub(super) settles: bool,
}

/// The world that a seed begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Start {
    pub(super) shape: Shape,
    pub(super) groups: u8,
    pub(super) begins: Begins,
}

/// How far the groups are when a walk begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Begins {
    /// Admitted, and not born.
    Admitted,
    /// Open, with everybody in line.
    Born,
    /// Three members on three lines: the primary runs and is ordered to win again.
    Parted,
    /// It has won: one was rewound and has not come up yet, the third one will have to be.
    Rejoining,
}

impl Swarm {
    pub(super) fn new(seed: u64) -> (Self, Start) {
        let mut rng = SmallRng::seed_from_u64(seed);
        let (members, spare, k) = match rng.random_range(0..16_u32) {
            0..9 => (3, 0, 1),
            9 => (3, 1, 1),
            10 => (4, 0, 1),
            11 => (4, 1, 1),
            12 => (5, 0, 2),
            13 | 14 => (5, 0, 1),
            _ => (3, 0, 2),
        };
        let shape = Shape { members, spare, k };
        let start = Start {
            shape,
            groups: 1 + u8::from(members + spare == 3 && rng.random_range(0..8_u32) == 0),
            begins: match rng.random_range(0..16_u32) {
                0 => Begins::Admitted,
                1 if (members, spare, k) == (3, 0, 1) => Begins::Parted,
                2 if (members, spare, k) == (3, 0, 1) => Begins::Rejoining,
                _ => Begins::Born,
            },
        };
        let start = Start {
            groups: match start.begins {
                Begins::Parted | Begins::Rejoining => 1,
                Begins::Admitted | Begins::Born => start.groups,
            },
            ..start
        };
        let mut wrong = Vec::new();
        for (kind, rate) in WRONG {
            match rng.random_range(0..4_u32) {
                0 | 1 => {}
                2 => wrong.push((kind, rate.div_ceil(4))),
                _ => wrong.push((kind, rate)),
            }
        }
        // A fixed few members change only where the shape leaves room for it.
        let room = members + spare > 3 && rng.random_bool(0.7);
        let wanted = WANTED
            .into_iter()
            .filter(|(kind, _)| room || *kind != Kind::Policy);
        let all = [
            OpKind::Failover,
            OpKind::Switchover,
            OpKind::OwnerChange,
            OpKind::CallOff,
        ];
        let mut kinds: Vec<_> = all.into_iter().filter(|_| rng.random_bool(0.6)).collect();
        if kinds.is_empty() || start.begins == Begins::Admitted {
            kinds = all.to_vec();
        }
        let of = |rng: &mut SmallRng, some: [u32; 3]| some[rng.random_range(0..3_usize)];
        let (faults, load) = (of(&mut rng, [5, 20, 60]), of(&mut rng, [60, 120, 240]));
        let lists = [
            (faults, wrong),
            (load, wanted.collect()),
            (1000 - faults - load, STEADY.to_vec()),
        ];
        let settles = match start.begins {
            Begins::Parted | Begins::Rejoining => SETTLES_PARTED,
            Begins::Admitted | Begins::Born => SETTLES,
        };
        let swarm = Self {
            settles: rng.random_range(0..settles) == 0,
            lists,
            kinds,
            interrupted: of(&mut rng, [4, 20, 200]),
            patience: of(&mut rng, [3, 12, 40]),
            rng,
        };
        (swarm, start)
    }

    fn below(&mut self, limit: usize) -> u8 {
        if limit <= 1 {
            return 0;
        }
        #[expect(clippy::cast_possible_truncation, reason = "a handful of each")]
        let drawn = self.rng.random_range(0..limit) as u8;
        drawn
    }

    fn outputs(&mut self) -> u8 {
        if self.rng.random_range(0..self.interrupted) == 0 {
            self.below(5)
        } else {
            ALL
        }
    }

    fn drawn(&mut self, draws: u32) -> Option<Kind> {
        let mut which = self.rng.random_range(0..1000);
        let list = self.lists.iter().position(|(share, _)| {
            let here = which < *share;
            which = which.wrapping_sub(*share);
            here
        });
        // Where nothing moves any more, somebody wants something.
        let list = if draws < DRAWS_MAX / 2 {
            list.unwrap_or(2)
        } else {
            1
        };
        let rates = &self.lists[list].1;
        let total = rates.iter().map(|(_, rate)| rate).sum::<u32>();
        let mut which = self.rng.random_range(0..total.max(1));
        let kind = rates.iter().find(|(_, rate)| {
            let here = which < *rate;
            which = which.wrapping_sub(*rate);
            here
        });
        kind.map(|(kind, _)| *kind)
    }

    /// A choice that may turn out not to be possible.
    fn choice(&mut self, world: &World, kind: Kind, at: At) -> Option<Choice> {
        let (group, replica) = match kind {
            Kind::Read | Kind::Order | Kind::Policy | Kind::Drive | Kind::Show => (
                self.below(usize::from(world.groups)),
                self.below(usize::from(REPLICAS)),
            ),
            _ => (0, 0),
        };
        Some(match kind {
            Kind::Deliver | Kind::Repeat | Kind::Lose => {
                let which = usize::from(self.below(world.messages.len()));
                let key = world.messages.get(which)?.key();
                match kind {
                    Kind::Repeat => Choice::Repeat(key, self.outputs()),
                    Kind::Lose => Choice::Lose(key),
                    _ => Choice::Deliver(key, self.outputs()),
                }
            }
            Kind::Work => Choice::Work(at, self.outputs()),
            Kind::Link => Choice::Link(at),
            Kind::Stream => Choice::Stream(at, 1 + self.below(4)),
            Kind::Write => Choice::Write(at, self.below(2), self.below(2)),
            Kind::Linger => Choice::Linger(at, self.below(2), self.below(2)),
            Kind::Execute => Choice::Execute(at, self.below(2)),
            Kind::Commit => Choice::Commit(at),
            Kind::Finish => match self.below(4) {
                0 => Choice::Promoted(at),
                1 => Choice::Ready(at),
                2 => Choice::Replayed(at),
                _ => Choice::Rebuilt(at),
            },
            Kind::RebuildFails => Choice::RebuildFails(at),
            Kind::Lead => Choice::Lead(at, self.below(world.nodes.len())),
            Kind::Cascade => {
                let (to, through) = (self.below(world.nodes.len()), self.below(world.nodes.len()));
                Choice::Cascade(at, to, through)
            }
            Kind::Again => Choice::Again(at, self.below(world.nodes.len())),
            Kind::Unreachable => Choice::Unreachable(at, self.below(world.nodes.len())),
            Kind::Crash => Choice::Crash(at),
            Kind::Start => Choice::Start(at),
            Kind::PostgresDies => Choice::PostgresDies(at),
            Kind::LoseVolume => Choice::LoseVolume(at),
            Kind::Isolate if self.rng.random_bool(0.4) => Choice::Isolate(at),
            Kind::Isolate => Choice::Hear(at),
            Kind::Read => {
                let back = [0, 0, 0, 0, 1, 2][usize::from(self.below(6))];
                Choice::Read(replica, group, back)
            }
            Kind::Order => self.order(world, replica, group, at),
            Kind::Policy => {
                let change = match self.below(4) {
                    0 => Change::Add(at),
                    1 => Change::MoreAwaited,
                    2 => Change::LessAwaited,
                    _ => Change::Remove(at),
                };
                Choice::Policy(replica, group, change)
            }
            Kind::Drive => Choice::Drive(replica, group),
            Kind::Show => Choice::Show(group, [0, 0, 1, 2][usize::from(self.below(4))]),
            Kind::Suspect if self.rng.random_bool(0.5) => Choice::Suspect(self.shard(world)),
            Kind::Suspect => Choice::Probe(self.shard(world)),
        })
    }

    fn shard(&mut self, world: &World) -> u8 {
        self.below(usize::from(world.groups) * usize::from(SHARDS))
    }

    fn order(&mut self, world: &World, replica: u8, group: u8, target: At) -> Choice {
        let believed = world.believed(replica, group);
        let kind = match &believed.record.op {
            Some(_) if self.rng.random_range(0..self.patience) != 0 => {
                return Choice::Drive(replica, group);
            }
            // Nothing but a failover or a call-off can come next.
            Some(_) if self.rng.random_bool(0.6) => OpKind::Failover,
            Some(_) => OpKind::CallOff,
            None => self.kinds[self.rng.random_range(0..self.kinds.len())],
        };
        let primary = believed.record.open.as_ref().map(|open| &open.primary);
        let target = match (kind, primary) {
            (OpKind::OwnerChange | OpKind::CallOff, Some(primary)) => World::index(primary),
            _ => target,
        };
        let scopes = [Scope::NoShard, Scope::OneShard, Scope::BothShards];
        Choice::Order {
            replica,
            group,
            kind,
            target,
            cell: self.below(2),
            scope: scopes[usize::from(self.below(3))],
        }
    }

    /// The next choice that is possible, already taken; none where the walk has come to an end.
    pub(super) fn advance(&mut self, world: &mut World) -> Option<(Choice, Stepped)> {
        for draws in 0..DRAWS_MAX {
            let Some(kind) = self.drawn(draws) else {
                continue;
            };
            // Beginning with anyone, the first for whom it is possible.
            let first = usize::from(self.below(world.nodes.len()));
            for offset in 0..world.nodes.len() {
                #[expect(clippy::cast_possible_truncation, reason = "a handful of members")]
                let at = ((first + offset) % world.nodes.len()) as At;
                if !due(world, kind, at) {
                    continue;
                }
                let Some(choice) = self.choice(world, kind, at) else {
                    break;
                };
                match world.step(choice) {
                    Ok(false) => {}
                    stepped => return Some((choice, stepped)),
                }
            }
        }
        None
    }
}

/// Whether it is worth while to draw the rest: most of what is drawn is not possible just now.
fn due(world: &World, kind: Kind, at: At) -> bool {
    let node = world.node(at);
    match kind {
        Kind::Work => !node.queue.is_empty() || !node.inbox.is_empty(),
        Kind::Link => node.link.is_some_and(|link| !link.established),
        Kind::Stream => node.link.is_some_and(|link| link.established),
        Kind::Execute => !node.statements.is_empty(),
        Kind::Commit => !node.waiting.is_empty(),
        Kind::Write | Kind::Linger => node.port.is_some(),
        Kind::Start => !node.alive,
        Kind::Finish => {
            node.promoting.is_some()
                || node.rebuilding.is_some()
                || node.replay_target.is_some()
                || node.postgres == Postgres::Starting
        }
        Kind::RebuildFails => node.rebuilding.is_some(),
        Kind::Lead | Kind::Cascade => node.member.leading().is_some(),
        Kind::Again => !node.asked.is_empty(),
        Kind::Unreachable => !node.asked.is_empty() || node.member.leading().is_some(),
        _ => true,
    }
}
