//! Faults and orders: drawn from the seed, or given; each has an end, and all are healed at last.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::Ordering;
use std::time::Duration;

use atoll_api::PlanSpec;
use atoll_control::PlaceRole as Role;
use atoll_topology::{CellId, GroupId, MemberId, RegionId};

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tracing::info;

use crate::store::Trouble;
use crate::world::{DELAY_MS_MIN, Process, World};

/// Something that happens to the world. Regions count from 1; 0 is outside of all.
#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    /// Nothing passes from one region to another; nothing is lost, either.
    Cut(usize, usize),
    /// The way from one region to another takes so many milliseconds.
    Delay(usize, usize, u32),
    /// The usual way again.
    Mend(usize, usize),
    /// A process ends at once.
    Kill(String),
    /// It is started again.
    Start(String),
    /// PostgreSQL of a member ends at once; its agent does not.
    KillPostgres(MemberId),
    /// Nothing reaches or leaves a process, and nothing is lost.
    Freeze(String),
    /// Everything that waited comes at once.
    Thaw(String),
    /// Every message of a process takes so many milliseconds.
    Slow(String, u32),
    /// A process is as fast as others.
    Fast(String),
    /// Messages between two processes are lost, and with them their connections.
    Break(String, String),
    /// New connections between them live again.
    Join(String, String),
    /// A process's wall clock is off by so many milliseconds.
    Clock(String, i64),
    /// What a replica of control meets at its store.
    Store(usize, Trouble),
    /// Somebody puts the first record of a group that there was back into the store.
    RollBack(GroupId),
    /// Somebody writes into a group's record that a cell owns all its shards, at new epochs.
    Forge(GroupId, CellId),
    /// A person orders a switch.
    Order(PlanSpec),
}

/// A schedule at work.
pub(crate) struct Faults {
    coming: VecDeque<(Duration, Fault)>,
    links: BTreeMap<(usize, usize), (f64, bool)>,
    down: BTreeSet<String>,
    held: BTreeSet<String>,
    slow: BTreeSet<String>,
    broken: BTreeSet<(String, String)>,
}

impl Faults {
    /// A given schedule.
    pub(crate) fn given(mut schedule: Vec<(Duration, Fault)>) -> Self {
        schedule.sort_by_key(|(at, _)| *at);
        Self {
            coming: schedule.into(),
            links: BTreeMap::new(),
            down: BTreeSet::new(),
            held: BTreeSet::new(),
            slow: BTreeSet::new(),
            broken: BTreeSet::new(),
        }
    }

    /// A schedule drawn from a seed.
    pub(crate) fn drawn(seed: u64, length: Duration, world: &World) -> Self {
        let mut draw = Draw {
            random: SmallRng::seed_from_u64(seed),
            world,
            schedule: Vec::new(),
        };
        draw.orders(length);
        draw.faults(length);
        Self::given(draw.schedule)
    }

    /// Does what is due.
    pub(crate) fn act(&mut self, now: Duration, sim: &mut turmoil::Sim<'_>, world: &World) {
        while let Some((at, _)) = self.coming.front()
            && *at <= now
            && let Some((_, fault)) = self.coming.pop_front()
        {
            info!(?fault, at_ms = now.as_millis(), "fault");
            self.bring(&fault, sim, world);
        }
    }

    /// Ends every fault.
    pub(crate) fn heal(&mut self, sim: &mut turmoil::Sim<'_>, world: &World) {
        self.coming.clear();
        let mut ends = Vec::new();
        ends.extend(self.links.keys().map(|(a, b)| Fault::Mend(*a, *b)));
        ends.extend(self.held.iter().cloned().map(Fault::Thaw));
        ends.extend(self.slow.iter().cloned().map(Fault::Fast));
        let broken = self.broken.iter().cloned();
        ends.extend(broken.map(|(a, b)| Fault::Join(a, b)));
        ends.extend(self.down.iter().cloned().map(Fault::Start));
        for replica in 0..world.stores.len() {
            ends.push(Fault::Store(replica, Trouble::None));
        }
        info!("all faults end");
        for end in ends {
            self.bring(&end, sim, world);
        }
    }

    fn bring(&mut self, fault: &Fault, sim: &mut turmoil::Sim<'_>, world: &World) {
        match fault {
            Fault::Cut(from, to) => self.link(world, (*from, *to), Some((DELAY_MS_MIN, true))),
            Fault::Delay(from, to, ms) => {
                self.link(world, (*from, *to), Some((f64::from(*ms), false)));
            }
            Fault::Mend(from, to) => self.link(world, (*from, *to), None),
            Fault::Kill(name) => {
                if let Some(process) = world.process(name)
                    && self.down.insert(name.clone())
                {
                    sim.crash(process.ip);
                }
            }
            Fault::Start(name) => {
                if let Some(process) = world.process(name)
                    && self.down.remove(name)
                {
                    world.oracle.starts(name);
                    sim.bounce(process.ip);
                }
            }
            Fault::KillPostgres(member) => {
                if let Some(killer) = world.killers.get(member) {
                    killer.kill();
                }
            }
            Fault::Freeze(name) => {
                if self.held.insert(name.clone()) {
                    each_link(world, name, |a, b| sim.hold(a.ip, b.ip));
                }
            }
            Fault::Thaw(name) => {
                if self.held.remove(name) {
                    let held = &self.held;
                    each_link(world, name, |a, b| {
                        if !held.contains(&b.name) {
                            sim.release(a.ip, b.ip);
                        }
                    });
                }
            }
            Fault::Slow(name, ms) => {
                self.slow.insert(name.clone());
                let latency = Duration::from_millis((*ms).into());
                each_link(world, name, |a, b| {
                    sim.set_link_latency(a.ip, b.ip, latency);
                });
            }
            Fault::Fast(name) => {
                self.slow.remove(name);
                let latency = Duration::from_millis(1);
                each_link(world, name, |a, b| {
                    sim.set_link_latency(a.ip, b.ip, latency);
                });
            }
            Fault::Break(one, other) => {
                if let (Some(a), Some(b)) = (world.process(one), world.process(other))
                    && self.broken.insert((one.clone(), other.clone()))
                {
                    sim.partition(a.ip, b.ip);
                }
            }
            Fault::Join(one, other) => {
                if let (Some(a), Some(b)) = (world.process(one), world.process(other))
                    && self.broken.remove(&(one.clone(), other.clone()))
                {
                    sim.repair(a.ip, b.ip);
                }
            }
            Fault::Clock(name, offset_ms) => {
                if let Some(process) = world.process(name) {
                    process.clock.store(*offset_ms, Ordering::Relaxed);
                }
            }
            Fault::Store(replica, trouble) => {
                if let Some(store) = world.stores.get(*replica) {
                    store.meets(*trouble);
                }
            }
            Fault::RollBack(group) => world.tamper(group, |first, _| first.clone()),
            Fault::Forge(group, cell) => world.tamper(group, |_, now| {
                let mut forged = now.clone();
                for run in &mut forged.runs {
                    (run.epoch, run.cell) = (run.epoch.next(), cell.clone());
                }
                forged
            }),
            Fault::Order(spec) => world.operator.order(spec.clone()),
        }
    }

    fn link(&mut self, world: &World, way: (usize, usize), to: Option<(f64, bool)>) {
        match to {
            Some(to) => drop(self.links.insert(way, to)),
            None => drop(self.links.remove(&way)),
        }
        self.part_stores(world);
        let file = world.links_file(&self.links);
        if let Err(error) = world.links.replace(&file) {
            tracing::error!(%error, "the links could not be changed");
        }
    }
}

impl Faults {
    /// A node of the store stands beside each replica, so a city that reaches no other has no
    /// majority; unless the store has a network of its own.
    fn part_stores(&self, world: &World) {
        let cut = |way| self.links.get(&way).is_some_and(|(_, cut)| *cut);
        let regions = 1..world.regions.len();
        for (here, store) in regions.clone().zip(&world.stores) {
            let reaches = |there: &usize| !cut((here, *there)) && !cut((*there, here));
            let mut others = regions.clone().filter(|there| *there != here);
            store.apart(!world.store_apart && !others.any(|there| reaches(&there)));
        }
    }
}

fn each_link(world: &World, name: &str, mut act: impl FnMut(&Process, &Process)) {
    if let Some(process) = world.process(name) {
        let others = world.processes.iter().filter(|other| other.name != name);
        others.for_each(|other| act(process, other));
    }
}

/// Draws a schedule.
struct Draw<'w> {
    random: SmallRng,
    world: &'w World,
    schedule: Vec<(Duration, Fault)>,
}

impl Draw<'_> {
    fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.random.random_range(from..to))
    }

    fn any<T: Clone>(&mut self, of: &[T]) -> Option<T> {
        if of.is_empty() {
            return None;
        }
        of.get(self.random.random_range(0..of.len())).cloned()
    }

    /// Switches and failbacks all along.
    fn orders(&mut self, length: Duration) {
        let mut at = self.millis(200, 1_500);
        while at < length {
            if let Some(spec) = self.order() {
                self.schedule.push((at, Fault::Order(spec)));
            }
            at += self.millis(800, 3_500);
        }
    }

    fn order(&mut self) -> Option<PlanSpec> {
        let cells: Vec<CellId> = self.world.topology.cells.keys().cloned().collect();
        let regions: Vec<RegionId> = self.world.topology.regions.keys().cloned().collect();
        Some(match self.random.random_range(0..6) {
            0..3 => {
                let cell = self.any(&cells)?;
                let others: Vec<_> = cells.into_iter().filter(|other| *other != cell).collect();
                let to = self.any(&others)?.to_string();
                PlanSpec::SwitchCell { cell, to }
            }
            3 => PlanSpec::EvacuateRegion {
                region: self.any(&regions)?,
            },
            _ => PlanSpec::Failback {},
        })
    }

    /// One fault after the other, now and then two at once.
    fn faults(&mut self, length: Duration) {
        let mut at = self.millis(300, 2_000);
        while at < length {
            let took = self.fault(at);
            at += match self.random.random_range(0..4) {
                0 => self.millis(50, 400),
                _ => took + self.millis(300, 2_000),
            };
        }
    }

    /// Adds a fault and its end; gives how long it lasts.
    fn fault(&mut self, at: Duration) -> Duration {
        let took = self.millis(200, 4_000);
        let end = at + took;
        let processes = self.world.processes.iter();
        let ours = processes.filter(|process| process.role.is_some());
        let names: Vec<String> = ours.clone().map(|process| process.name.clone()).collect();
        let members: Vec<MemberId> = self.world.killers.keys().cloned().collect();
        let regions = self.world.regions.len();
        let (one, other) = (
            self.random.random_range(0..regions),
            self.random.random_range(1..regions),
        );
        let other = if one == other {
            other % (regions - 1) + 1
        } else {
            other
        };
        let (Some(name), Some(peer), Some(member)) =
            (self.any(&names), self.any(&names), self.any(&members))
        else {
            return took;
        };
        let mut add = |at, fault| self.schedule.push((at, fault));
        let ways = [(one, other), (other, one)];
        match self.random.random_range(0..100) {
            // Both ways.
            0..10 => {
                for (a, b) in ways {
                    add(at, Fault::Cut(a, b));
                    add(end, Fault::Mend(a, b));
                }
            }
            // One way.
            10..20 => {
                add(at, Fault::Cut(one, other));
                add(end, Fault::Mend(one, other));
            }
            // A region from all others.
            20..28 => {
                for rest in (0..regions).filter(|rest| *rest != other) {
                    for (a, b) in [(rest, other), (other, rest)] {
                        add(at, Fault::Cut(a, b));
                        add(end, Fault::Mend(a, b));
                    }
                }
            }
            28..46 => {
                add(at, Fault::Kill(name.clone()));
                add(end, Fault::Start(name));
            }
            46..56 => add(at, Fault::KillPostgres(member)),
            // Everything in a city, at one moment.
            56..62 => {
                for process in ours.filter(|process| process.region == other) {
                    add(at, Fault::Kill(process.name.clone()));
                    add(end, Fault::Start(process.name.clone()));
                }
            }
            62..72 => {
                add(at, Fault::Freeze(name.clone()));
                add(end, Fault::Thaw(name));
            }
            72..79 => {
                let ms = self.random.random_range(20..300);
                self.schedule.push((at, Fault::Slow(name.clone(), ms)));
                self.schedule.push((end, Fault::Fast(name)));
            }
            79..85 => {
                let ms = self.random.random_range(20..150);
                for (a, b) in ways {
                    self.schedule.push((at, Fault::Delay(a, b, ms)));
                    self.schedule.push((end, Fault::Mend(a, b)));
                }
            }
            85..90 => {
                let offset = self.random.random_range(-5_000..5_000);
                self.schedule.push((at, Fault::Clock(name.clone(), offset)));
                self.schedule.push((end, Fault::Clock(name, 0)));
            }
            90..94 => self.broken(at, end, &name, &peer),
            _ => {
                let replica = self.random.random_range(0..self.world.stores.len());
                let trouble = match self.random.random_range(0..2) {
                    0 => Trouble::Unavailable,
                    _ => Trouble::Doubtful,
                };
                self.schedule.push((at, Fault::Store(replica, trouble)));
                let over = Fault::Store(replica, Trouble::None);
                self.schedule.push((end, over));
            }
        }
        took
    }

    /// Connections are lost without a word only where keep-alives find out: a lost segment is never
    /// sent again here, which no real network does to SQL.
    fn broken(&mut self, at: Duration, end: Duration, name: &str, peer: &str) {
        let alive = |name: &str| {
            let role = self.world.process(name).and_then(|process| process.role);
            matches!(role, Some(Role::Control | Role::Mesh | Role::Agent))
        };
        if name != peer && alive(name) && alive(peer) {
            let (name, peer) = (name.to_owned(), peer.to_owned());
            let fault = Fault::Break(name.clone(), peer.clone());
            self.schedule.push((at, fault));
            self.schedule.push((end, Fault::Join(name, peer)));
        }
    }
}
