//! The simulated world: everything that outlives single processes, and the hosts that these run on.

mod people;
mod places;
mod services;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64};
use std::time::Duration;

use anyhow::Result;
use atoll_control::{Place, PlaceRole as Role};
use atoll_ownership::record::GroupRecord;
use atoll_runtime::{LinkRule, Links, LinksFile, Runtime, SimulatedOptions};
use atoll_store::{Memory, Store, Txn};
use atoll_topology::{GroupId, MemberId, ShardId, Topology};
use futures::FutureExt;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::member::{Disk, Killer, Weakened};
use crate::operator::Operator;
use crate::oracle::Oracle;
use crate::store::Way;
use people::{OBSERVER_NUMBER, OPERATOR_NUMBER, USERS_NUMBER};
use places::{at_region, lay_out};

/// Least delay from one city to another, one way.
pub(crate) const DELAY_MS_MIN: f64 = 2.0;
const TOPOLOGY: &str = include_str!("topology.yaml");

/// One process of the world, as the fault injector sees it.
#[derive(Clone)]
pub(crate) struct Process {
    pub(crate) name: String,
    pub(crate) ip: IpAddr,
    pub(crate) clock: Arc<AtomicI64>,
    pub(crate) region: usize,
    pub(crate) role: Option<Role>,
}

/// Everything that outlives single processes.
pub(crate) struct World {
    pub(crate) topology: Topology,
    /// Region numbers: `outside`, then the topology's regions in the order of their names.
    pub(crate) regions: Vec<String>,
    places: Vec<Place>,
    pub(crate) links: Links,
    /// The store itself, past everybody's way to it.
    pub(crate) memory: Memory,
    /// Each replica's way to the store.
    pub(crate) stores: Vec<Way>,
    pub(crate) oracle: Oracle,
    pub(crate) disks: BTreeMap<MemberId, Disk>,
    pub(crate) killers: BTreeMap<MemberId, Killer>,
    pub(crate) processes: Vec<Process>,
    pub(crate) users: Vec<String>,
    pub(crate) operator: Operator,
    /// Whether the store has a network of its own, which no cut between cities parts.
    pub(crate) store_apart: bool,
    /// Users pause.
    pub(crate) quiet: Arc<AtomicBool>,
    directory: tempfile::TempDir,
    seed: u64,
    weakened: Weakened,
}

impl World {
    /// Lays the world out; nothing runs yet.
    pub(crate) fn new(seed: u64, weakened: Weakened, store_apart: bool) -> Result<Self> {
        let topology = Topology::parse(TOPOLOGY)
            .map_err(|violations| anyhow::anyhow!("the topology: {violations}"))?;
        let mut regions = vec!["outside".to_owned()];
        regions.extend(topology.regions.keys().map(ToString::to_string));
        let places = lay_out(&topology)?;
        let mut groups = BTreeMap::new();
        let mut shards: BTreeMap<ShardId, _> = BTreeMap::new();
        for (group, spec) in &topology.groups {
            groups.extend(spec.members.iter().map(|m| (m.id.clone(), group.clone())));
            shards.extend(spec.shards.iter().map(|shard| (*shard, group.clone())));
        }
        let disks = groups.keys().map(|id| (id.clone(), Disk::default()));
        let killers = groups.keys().map(|id| (id.clone(), Killer::default()));
        let directory = tempfile::tempdir()?;
        std::fs::write(directory.path().join("topology.yaml"), TOPOLOGY)?;
        std::fs::write(directory.path().join("peer-key"), "5a".repeat(32))?;
        let links = Links::none();
        let world = Self {
            links,
            memory: Memory::new(),
            stores: Vec::new(),
            store_apart,
            quiet: Arc::default(),
            disks: disks.collect(),
            killers: killers.collect(),
            oracle: Oracle::new(groups, shards),
            processes: Vec::new(),
            users: Vec::new(),
            operator: Operator::default(),
            topology,
            regions,
            places,
            directory,
            seed,
            weakened,
        };
        world.links.replace(&world.links_file(&BTreeMap::new()))?;
        Ok(world)
    }

    /// The links, with these directions changed.
    pub(crate) fn links_file(&self, changed: &BTreeMap<(usize, usize), (f64, bool)>) -> LinksFile {
        let regions = self.regions.clone();
        let mut links = Vec::new();
        for from in 0..regions.len() {
            for to in 0..regions.len() {
                if from == to {
                    continue;
                }
                let usual = || (self.delay_ms(from, to), false);
                let (delay_ms, cut) = changed.get(&(from, to)).copied().unwrap_or_else(usual);
                links.push(LinkRule {
                    from: regions[from].clone(),
                    to: regions[to].clone(),
                    delay_ms,
                    // Every message would draw from it, also those that depend on how busy the
                    // machine is.
                    jitter_ms: 0.0,
                    cut,
                });
            }
        }
        LinksFile { regions, links }
    }

    /// Something that this seed, and nothing else, says about two things.
    fn drawn(&self, one: u64, other: u64, most: u64) -> u64 {
        let mixed = self.seed ^ (one << 32) ^ (other << 48);
        SmallRng::seed_from_u64(mixed).random_range(0..=most)
    }

    /// What the way from one region to another takes.
    fn delay_ms(&self, from: usize, to: usize) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a handful of tenths")]
        let more = self.drawn(from as u64, to as u64, 60) as f64 / 10.0;
        DELAY_MS_MIN + more
    }

    /// What a message takes between two hosts, region and links apart. The same for all of them: a
    /// library that says more when the machine is busy must not change when others arrive.
    pub(crate) fn latency(&self, a: &Process, b: &Process) -> Duration {
        let number = |process: &Process| match process.ip {
            IpAddr::V4(v4) => u64::from(u32::from(v4) & 0xffff),
            IpAddr::V6(_) => 0,
        };
        let (one, other) = (number(a), number(b));
        let micros = self.drawn(one.min(other), one.max(other), 1_500);
        Duration::from_micros(micros)
    }

    /// Gives every pair of hosts its latency.
    pub(crate) fn spread(&self, sim: &turmoil::Sim<'_>) {
        for (at, a) in self.processes.iter().enumerate() {
            for b in &self.processes[at + 1..] {
                sim.set_link_latency(a.ip, b.ip, self.latency(a, b));
            }
        }
    }

    /// Names of hosts by their addresses, for the trace.
    pub(crate) fn names(&self) -> BTreeMap<String, String> {
        let mut names: BTreeMap<String, String> = BTreeMap::new();
        let mut name = |ip: IpAddr, text: &str| {
            names.insert(SimulatedOptions::host_of(ip).to_string(), text.to_owned());
        };
        for place in &self.places {
            name(place.ip, place.process.as_str());
        }
        for region in 1..self.regions.len() {
            name(at_region(region, USERS_NUMBER), &format!("users-{region}"));
        }
        name(at_region(0, OPERATOR_NUMBER), "operator");
        name(at_region(0, OBSERVER_NUMBER), "observer");
        names
    }

    /// Gives every process its host.
    pub(crate) fn populate(&mut self, sim: &mut turmoil::Sim<'_>) -> Result<()> {
        for place in self.places.clone() {
            self.service(sim, &place)?;
        }
        for region in 1..self.regions.len() {
            self.users_of(sim, region);
        }
        self.operator_of(sim);
        self.observer(sim);
        Ok(())
    }

    /// One process on one host; it is made anew at each start.
    fn host<F, Fut>(
        &mut self,
        sim: &mut turmoil::Sim<'_>,
        name: &str,
        ip: IpAddr,
        role: Option<Role>,
        run: F,
    ) where
        F: Fn(Runtime) -> Fut + 'static,
        Fut: Future<Output = Result<()>> + 'static,
    {
        let options = SimulatedOptions {
            source: Some(ip),
            links: self.links.clone(),
            clock_offset_ms: Arc::default(),
        };
        let region = match ip {
            IpAddr::V4(v4) => usize::from(v4.octets()[2] >> 4),
            IpAddr::V6(_) => 0,
        };
        self.processes.push(Process {
            name: name.to_owned(),
            ip: SimulatedOptions::host_of(ip),
            clock: options.clock_offset_ms.clone(),
            region,
            role,
        });
        let name = name.to_owned();
        sim.host(SimulatedOptions::host_of(ip), move || {
            let running = run(Runtime::simulated(options.clone()));
            let name = name.clone();
            async move {
                if let Err(error) = running.await {
                    // As a supervisor would show it; the host stays down until it is restarted.
                    tracing::error!(
                        process = name,
                        error = format!("{error:#}"),
                        "process ended"
                    );
                }
                std::future::pending().await
            }
        });
    }

    /// Puts another record in the place of a group's, from the first that was seen and the last.
    pub(crate) fn tamper(
        &self,
        group: &GroupId,
        change: impl FnOnce(&GroupRecord, &GroupRecord) -> GroupRecord,
    ) {
        let Some((first, now)) = self.oracle.records_of(group) else {
            return;
        };
        if let Ok(value) = serde_json::to_vec(&change(&first, &now)) {
            let txn = Txn::new().put(format!("/group/{group}"), value);
            drop(self.memory.txn(txn).now_or_never());
        }
    }

    /// What the processes write to.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The process of that name.
    pub(crate) fn process(&self, name: &str) -> Option<&Process> {
        self.processes.iter().find(|process| process.name == name)
    }
}
