//! The simulated world: which process stands where, what it is told, and how its host runs it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64};
use std::time::Duration;

use anyhow::{Context, Result};
use atoll_control::{Place, PlaceRole as Role};
use atoll_ownership::record::GroupRecord;
use atoll_runtime::{LinkRule, Links, LinksFile, Runtime, SimulatedOptions};
use atoll_store::Memory;
use atoll_topology::{GroupId, MemberId, ProcessId, ShardId, Topology, ZoneId};
use atoll_workflow::{Store, Txn};
use futures::FutureExt;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::app::App;
use crate::http;
use crate::member::{self, Disk, Killer, Peer, Weakened};
use crate::operator::Operator;
use crate::oracle::Oracle;
use crate::store::Way;
use crate::users::User;

/// The number of the simulated world, in addresses.
const WORLD: u8 = 7;
/// Users of each city.
const USERS_PER_REGION: u64 = 3;
/// Least delay from one city to another, one way.
pub(crate) const DELAY_MS_MIN: f64 = 2.0;
/// Last number of the address of what only a simulation has.
const USERS_NUMBER: u8 = 200;
const OPERATOR_NUMBER: u8 = 201;
const OBSERVER_NUMBER: u8 = 202;
/// How often tables are looked at, and how long an answer may take.
const OBSERVE_EVERY: Duration = Duration::from_millis(150);
const OBSERVE_LIMIT: Duration = Duration::from_secs(1);
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
            match place.role {
                Role::Control => self.control(sim, &place)?,
                Role::Mesh => self.mesh(sim, &place)?,
                Role::Gateway => self.gateway(sim, &place)?,
                Role::SqlRouter => self.sql_router(sim, &place)?,
                Role::Application => self.application(sim, &place)?,
                Role::Agent => self.agent(sim, &place)?,
            }
        }
        for region in 1..self.regions.len() {
            self.users_of(sim, region);
        }
        let api = self.addresses(Role::Control, "api");
        self.observer(sim);
        let operator = self.operator.clone();
        self.host(
            sim,
            "operator",
            at_region(0, OPERATOR_NUMBER),
            None,
            move |runtime| operator.clone().serve(runtime, api.clone()),
        );
        Ok(())
    }

    fn addresses(&self, role: Role, protocol: &str) -> Vec<SocketAddr> {
        let of_role = self.places.iter().filter(|place| place.role == role);
        of_role.map(|place| address(place, protocol)).collect()
    }

    fn of_cell(&self, place: &Place, role: Role, protocol: &str) -> Result<SocketAddr> {
        let cell = place.cell.as_ref().context("a cell")?;
        let of_cell = |found: &&Place| found.role == role && found.cell.as_ref() == Some(cell);
        let found = self.places.iter().find(of_cell);
        Ok(address(found.context("a process of the cell")?, protocol))
    }

    fn data(&self, place: &Place) -> std::path::PathBuf {
        self.directory.path().join(place.process.as_str())
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

    fn control(&mut self, sim: &mut turmoil::Sim<'_>, place: &Place) -> Result<()> {
        let config: atoll_control::Config = config(json!({
            "process": place.process,
            "api": address(place, "api"),
            "streams": address(place, "grpc"),
            "admin": address(place, "admin"),
            "data": self.data(place),
            "topology": self.directory.path().join("topology.yaml"),
            "places": self.places,
            "automatic_switch_min_interval_seconds": 0,
            "automatic_window_seconds": 1,
        }))?;
        let store = Way::to(self.memory.clone());
        self.stores.push(store.clone());
        self.host(
            sim,
            place.process.as_str(),
            place.ip,
            Some(place.role),
            move |runtime| {
                let (config, store) = (config.clone(), Arc::new(store.clone()));
                async move { Ok(atoll_control::serve_on(config, store, runtime, |_| {}).await?) }
            },
        );
        Ok(())
    }

    fn mesh(&mut self, sim: &mut turmoil::Sim<'_>, place: &Place) -> Result<()> {
        let config: atoll_mesh::Config = config(json!({
            "process": place.process,
            "region": place.region,
            "cell": place.cell,
            "listen": address(place, "mesh"),
            "admin": address(place, "admin"),
            "table_file": self.data(place).join("table"),
            "control": self.addresses(Role::Control, "grpc"),
        }))?;
        self.host(
            sim,
            place.process.as_str(),
            place.ip,
            Some(place.role),
            move |runtime| {
                let config = config.clone();
                async move { Ok(atoll_mesh::serve(config, runtime, |_| {}).await?) }
            },
        );
        Ok(())
    }

    fn gateway(&mut self, sim: &mut turmoil::Sim<'_>, place: &Place) -> Result<()> {
        let config: atoll_gateway::Config = config(json!({
            "process": place.process,
            "region": place.region,
            "cell": place.cell,
            "edge": address(place, "edge"),
            "peer": address(place, "peer"),
            "admin": address(place, "admin"),
            "table_file": self.data(place).join("table"),
            "peer_key_file": self.directory.path().join("peer-key"),
            "meshes": [self.of_cell(place, Role::Mesh, "mesh")?],
            "workers": 1,
            "canary": { "method": "POST", "path": "/canary" },
        }))?;
        self.host(
            sim,
            place.process.as_str(),
            place.ip,
            Some(place.role),
            move |runtime| {
                let config = config.clone();
                async move { Ok(atoll_gateway::serve(config, runtime, |_| {}).await?) }
            },
        );
        Ok(())
    }

    fn sql_router(&mut self, sim: &mut turmoil::Sim<'_>, place: &Place) -> Result<()> {
        let config: atoll_sql_router::Config = config(json!({
            "process": place.process,
            "region": place.region,
            "cell": place.cell,
            "listen": address(place, "sql"),
            "admin": address(place, "admin"),
            "table_file": self.data(place).join("table"),
            "meshes": [self.of_cell(place, Role::Mesh, "mesh")?],
        }))?;
        self.host(
            sim,
            place.process.as_str(),
            place.ip,
            Some(place.role),
            move |runtime| {
                let config = config.clone();
                async move { Ok(atoll_sql_router::serve(config, runtime, |_| {}).await?) }
            },
        );
        Ok(())
    }

    fn application(&mut self, sim: &mut turmoil::Sim<'_>, place: &Place) -> Result<()> {
        let cell = place.cell.clone().context("a cell")?;
        let router = self.of_cell(place, Role::SqlRouter, "sql")?;
        let at = address(place, "http");
        let (oracle, weakened) = (self.oracle.clone(), self.weakened);
        self.host(
            sim,
            place.process.as_str(),
            place.ip,
            Some(place.role),
            move |runtime| {
                let app = App {
                    runtime,
                    cell: cell.clone(),
                    router,
                    oracle: oracle.clone(),
                    weakened,
                    idle: std::sync::Mutex::default(),
                };
                async move { Ok(Arc::new(app).serve(at).await?) }
            },
        );
        Ok(())
    }

    fn agent(&mut self, sim: &mut turmoil::Sim<'_>, place: &Place) -> Result<()> {
        let group = place.group.clone().context("a group")?;
        let id = place.member.clone().context("a member")?;
        let mut members = BTreeMap::new();
        for other in &self.places {
            if let (Some(member), true) = (&other.member, other.group.as_ref() == Some(&group)) {
                let peer = Peer {
                    calls: address(other, "calls"),
                    replication: address(other, "replication"),
                };
                members.insert(member.clone(), peer);
            }
        }
        let config = member::Config {
            process: place.process.clone(),
            sql: address(place, "sql"),
            calls: address(place, "calls"),
            replication: address(place, "replication"),
            control: self.addresses(Role::Control, "grpc"),
            members,
            k: usize::from(self.topology.groups[&group].k),
            weakened: self.weakened,
            disk: self.disks[&id].clone(),
            oracle: self.oracle.clone(),
            member: id.clone(),
            group,
        };
        let killer = self.killers[&id].clone();
        self.host(
            sim,
            place.process.as_str(),
            place.ip,
            Some(place.role),
            move |runtime| {
                let (config, killer) = (config.clone(), killer.clone());
                async move { Ok(member::serve(config, runtime, killer).await?) }
            },
        );
        Ok(())
    }

    fn users_of(&mut self, sim: &mut turmoil::Sim<'_>, region: usize) {
        let mut gateways = self.addresses(Role::Gateway, "edge");
        let count = gateways.len();
        // The nearest first, where there is one.
        gateways.rotate_left((region - 1) % count);
        let names = (0..USERS_PER_REGION).map(|n| format!("u{region}-{n}"));
        let names: Vec<String> = names.collect();
        self.users.extend(names.clone());
        let (oracle, seed, quiet) = (self.oracle.clone(), self.seed, self.quiet.clone());
        let ip = at_region(region, USERS_NUMBER);
        self.host(sim, &format!("users-{region}"), ip, None, move |runtime| {
            let users = (0_u64..).zip(names.clone()).map(|(n, name)| User {
                seed: seed ^ (n + 100 * region as u64),
                name,
                gateways: gateways.clone(),
                runtime: runtime.clone(),
                oracle: oracle.clone(),
                quiet: quiet.clone(),
            });
            let users: Vec<User> = users.collect();
            async move {
                futures::future::join_all(users.into_iter().map(User::live)).await;
                Ok(())
            }
        });
    }

    /// Looks which table each gateway and mesh uses, all the time.
    fn observer(&mut self, sim: &mut turmoil::Sim<'_>) {
        let shown = |place: &&Place| matches!(place.role, Role::Gateway | Role::Mesh);
        let shown = self.places.iter().filter(shown);
        let shown = shown.map(|place| (place.process.to_string(), address(place, "admin")));
        let shown: Vec<_> = shown.collect();
        let oracle = self.oracle.clone();
        let ip = at_region(0, OBSERVER_NUMBER);
        self.host(sim, "observer", ip, None, move |runtime| {
            let (shown, oracle) = (shown.clone(), oracle.clone());
            async move {
                let looks = shown.into_iter().map(|(name, at)| {
                    let (runtime, oracle) = (runtime.clone(), oracle.clone());
                    async move { observe(&runtime, &name, at, &oracle).await }
                });
                futures::future::join_all(looks).await;
                Ok(())
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

/// Asks a process again and again which table it uses.
async fn observe(runtime: &Runtime, name: &str, at: SocketAddr, oracle: &Oracle) {
    loop {
        tokio::time::sleep(OBSERVE_EVERY).await;
        let life = oracle.life(name);
        let head = "GET /debug/table HTTP/1.1";
        let Ok(answer) = http::ask(runtime, at, head, "", OBSERVE_LIMIT).await else {
            continue;
        };
        let shown: Value = serde_json::from_str(&answer.body).unwrap_or_default();
        let version = shown["version"].as_str().and_then(|text| {
            let (world, number) = text.rsplit_once('.')?;
            Some((world, number.parse().ok()?))
        });
        if let Some((world, number)) = version {
            oracle.uses((name, life), world, number);
        }
    }
}

/// Where everything stands: a replica of control in each city, four processes of each cell, an
/// agent of each member.
fn lay_out(topology: &Topology) -> Result<Vec<Place>> {
    let mut used: BTreeMap<ZoneId, u8> = BTreeMap::new();
    let mut place = |name: String, role, zone: &ZoneId| -> Result<Place> {
        let region = topology.zones.get(zone).context("a zone")?.region.clone();
        let number = topology.regions.keys().position(|id| *id == region);
        let number = number.context("a region")? + 1;
        let count = used.entry(zone.clone()).or_default();
        *count += 1;
        Ok(Place {
            process: ProcessId::parse(&name).map_err(|error| anyhow::anyhow!("{error}"))?,
            role,
            ip: at_region(number, *count),
            region: Some(region),
            zone: Some(zone.clone()),
            cell: None,
            group: None,
            member: None,
        })
    };
    let mut places = Vec::new();
    for (zone, spec) in &topology.zones {
        places.push(place(
            format!("{}-control", spec.region),
            Role::Control,
            zone,
        )?);
    }
    for (cell, spec) in &topology.cells {
        let slot = spec.slots.values().next().context("a slot")?;
        for (tail, role) in [
            ("mesh", Role::Mesh),
            ("gateway", Role::Gateway),
            ("sql-router", Role::SqlRouter),
            ("application", Role::Application),
        ] {
            let mut of_cell = place(format!("{cell}-{tail}"), role, &slot.zone)?;
            of_cell.cell = Some(cell.clone());
            places.push(of_cell);
        }
    }
    for (group, spec) in &topology.groups {
        for (index, member) in spec.members.iter().enumerate() {
            let name = format!("{group}-agent-{}", index + 1);
            let mut agent = place(name, Role::Agent, &member.zone)?;
            (agent.group, agent.member) = (Some(group.clone()), Some(member.id.clone()));
            places.push(agent);
        }
    }
    Ok(places)
}

/// Where a process listens for `protocol`; ports are the same in every world.
fn address(place: &Place, protocol: &str) -> SocketAddr {
    let port = match protocol {
        "api" => 7600,
        "grpc" => 7601,
        "mesh" => 7800,
        "edge" => 8080,
        "peer" => 8081,
        "sql" => 5432,
        "calls" => 7700,
        "replication" => 7701,
        "http" => 9000,
        _ => 9900,
    };
    SocketAddr::new(place.ip, port)
}

fn at_region(region: usize, number: u8) -> IpAddr {
    let third = u8::try_from(region << 4).unwrap_or(u8::MAX);
    Ipv4Addr::new(127, WORLD, third, number).into()
}

fn config<T: DeserializeOwned>(value: Value) -> Result<T> {
    serde_json::from_value(value).context("a configuration of the simulated world")
}
