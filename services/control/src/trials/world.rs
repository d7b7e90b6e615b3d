//! A small world around control's real code: a group of three members played over the agents' real
//! streams, a gateway and a router for each of two cells that follow the tables with the data
//! planes' real code, and the store in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use atoll_api::{AnyObject, ExecutionSpec, Kind, Object, Phase as Ended, PlanSpec};
use atoll_ownership::record::GroupRecord;
use atoll_ownership::{OpKind, Progress};
use atoll_proxy::table::{FollowerConfig, Observed, TableFollower};
use atoll_routing::{Closed, Phase, Table};
use atoll_runtime::{RealOptions, Runtime};
use atoll_store::{Memory, Revision, Store};
use atoll_streams::agent::{AgentReport, Order, ReportBody, RowsHashed, TableHash};
use atoll_streams::proto::agent as wire;
use atoll_streams::proto::agent::control_client::ControlClient;
use atoll_streams::{Opening, Role};
use atoll_topology::{CellId, GroupId, Lsn, MemberId, ProcessId, RegionId, Topology};
use futures::StreamExt;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

use super::group::Group;
use crate::app::Control;
use crate::reconcile::execution::Stored;
use crate::seat::{self, Seat};
use crate::{Place, PlaceRole, api, plans, streams};

/// How long anything may take before the trial has failed.
pub(super) const LIMIT: Duration = Duration::from_secs(20);

const TOPOLOGY: &str = include_str!("topology.yaml");

/// The data planes of a cell.
const PLANES: [(&str, PlaceRole); 2] = [
    ("gateway", PlaceRole::Gateway),
    ("router", PlaceRole::SqlRouter),
];

/// Where a peer stops until it is told to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// Data planes of this role do not take the table in which these wait.
    Table(Closed),
    /// The target does not hear the order to drive.
    Drive,
    /// The target's word that it is open does not get out.
    Open,
    /// No data plane takes the table that names the new owner.
    Published,
}

/// Everything but control.
pub(super) struct World {
    pub(super) store: Memory,
    pub(super) group: Arc<Group>,
    stop: Arc<watch::Sender<Option<Stop>>>,
    /// Whether a peer has come to the stop.
    reached: Arc<watch::Sender<bool>>,
    /// What went backwards, if anything did.
    wrong: Arc<Mutex<Vec<String>>>,
    /// Data planes of each replica that do not wait for the group.
    serving: Arc<Mutex<BTreeSet<(SocketAddr, String)>>>,
    controls: Vec<SocketAddr>,
    peers: Runtime,
    _folder: tempfile::TempDir,
}

/// One life of control: on a thread of its own, so that it can end as a process ends.
pub(super) struct Life {
    pub(super) control: Arc<Control>,
    process: tokio::runtime::Runtime,
}

impl Life {
    /// Ends it at once, with nothing finished.
    pub(super) async fn kill(self) {
        let Self { control, process } = self;
        drop(control);
        // Where it is awaited, a runtime must not be dropped.
        let end = move || process.shutdown_timeout(LIMIT);
        let ender = Runtime::real(RealOptions::default());
        ender
            .tasks()
            .spawn_blocking("end", end)
            .join()
            .await
            .unwrap();
    }
}

fn group_id() -> GroupId {
    GroupId::parse("g1").unwrap()
}

impl World {
    /// Peers for one replica of control, or for several at once.
    pub(super) async fn new(replicas: usize) -> Self {
        // What control says, where a person looks: run one trial with ATOLL_LOG set.
        if std::env::var_os("ATOLL_LOG").is_some() {
            atoll_telemetry::init("trial", &[]).ok();
        }
        let topology = Topology::parse(TOPOLOGY).unwrap();
        let members: Vec<MemberId> = topology.groups[&group_id()]
            .members
            .iter()
            .map(|member| member.id.clone())
            .collect();
        let peers = Runtime::real(RealOptions::default());
        let mut controls = Vec::new();
        for _ in 0..replicas {
            // A free port, which control takes and takes again.
            let at = peers.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
            controls.push(at.local_addr());
        }
        let world = Self {
            store: Memory::new(),
            group: Arc::new(Group::new(&members)),
            stop: Arc::new(watch::Sender::new(None)),
            reached: Arc::new(watch::Sender::new(false)),
            wrong: Arc::default(),
            serving: Arc::default(),
            controls: controls.clone(),
            peers,
            _folder: tempfile::tempdir().unwrap(),
        };
        for at in controls {
            for member in &members {
                world.agent(at, member.clone());
            }
            for (cell, spec) in &topology.cells {
                for role in [Role::Gateway, Role::SqlRouter] {
                    world.plane(at, cell.clone(), spec.region.clone(), role);
                }
            }
        }
        let (group, shutdown) = (world.group.clone(), world.peers.shutdown());
        world.peers.tasks().spawn("ticks", async move {
            while !shutdown.is_requested() {
                group.tick();
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        world.watch_records().await;
        world
    }

    /// A new life of control, on the store as it is, which acts as if it were alone.
    pub(super) async fn control(&self, replica: usize) -> Life {
        self.live(replica, "127.0.0.1", None).await
    }

    /// The same, which shares the seat under this name; its address book has the agents here.
    pub(super) async fn seated(&self, replica: usize, name: &str, agents: &str) -> Life {
        self.live(replica, agents, Some(ProcessId::parse(name).unwrap()))
            .await
    }

    async fn live(&self, replica: usize, agents: &str, seat: Option<ProcessId>) -> Life {
        let process = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let topology = Topology::parse(TOPOLOGY).unwrap();
        let store: Arc<dyn Store> = Arc::new(self.store.clone());
        // Nobody dials these: only tables name them.
        let members = &topology.groups[&group_id()].members;
        let places = members.iter().map(|member| Place {
            process: ProcessId::parse(format!("{}-agent", member.id)).unwrap(),
            role: PlaceRole::Agent,
            ip: agents.parse().unwrap(),
            region: None,
            zone: Some(member.zone.clone()),
            cell: None,
            group: Some(group_id()),
            member: Some(member.id.clone()),
        });
        let mut places: Vec<Place> = places.collect();
        for (cell, spec) in &topology.cells {
            for (word, role) in PLANES {
                places.push(Place {
                    process: ProcessId::parse(format!("{cell}-{word}")).unwrap(),
                    role,
                    ip: "127.0.0.1".parse().unwrap(),
                    region: Some(spec.region.clone()),
                    zone: None,
                    cell: Some(cell.clone()),
                    group: None,
                    member: None,
                });
            }
        }
        let at = self.controls[replica];
        let begin = async move {
            let runtime = Runtime::real(RealOptions::default());
            let control = Control::new(runtime, store, topology, places)
                .await
                .unwrap();
            let control = Arc::new(match &seat {
                None => control,
                Some(process) => Control {
                    seat: Seat::shared(process.clone()),
                    ..control
                },
            });
            control.start();
            streams::listen(control.clone(), at).await.unwrap();
            if let Some(process) = seat {
                let sit = seat::run(control.clone(), process);
                control.runtime.tasks().spawn("seat", sit);
            }
            control
        };
        let control = process.spawn(begin).await.unwrap();
        Life { control, process }
    }

    /// Peers stop there from now on.
    pub(super) fn stop_at(&self, stop: Stop) {
        self.reached.send_replace(false);
        self.stop.send_replace(Some(stop));
    }

    /// Waits until a peer has come to the stop.
    pub(super) async fn reached(&self) {
        let mut reached = self.reached.subscribe();
        let reached = reached.wait_for(|reached| *reached);
        tokio::time::timeout(LIMIT, reached)
            .await
            .expect("the stop is reached")
            .unwrap();
    }

    /// Peers go on.
    pub(super) fn go_on(&self) {
        self.stop.send_replace(None);
    }

    pub(super) fn wrong(&self) -> Vec<String> {
        self.wrong
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The group's record, as the store has it.
    pub(super) async fn record(&self) -> Option<GroupRecord> {
        let found = self.store.list("/group/").await.ok()?;
        let (_, found) = found.entries.into_iter().next()?;
        serde_json::from_slice(&found.value).ok()
    }

    /// An execution, as the store has it.
    pub(super) async fn execution(&self, name: &str) -> Option<Stored> {
        let found = self.store.get(&format!("/execution/{name}")).await.ok()??;
        serde_json::from_slice(&found.value).ok()
    }

    /// Everything under a prefix, as text.
    pub(super) async fn store_text(&self, prefix: &str) -> String {
        let found = self.store.list(prefix).await.unwrap();
        let text = |(_, found): &(String, atoll_store::Versioned)| {
            String::from_utf8_lossy(&found.value).into_owned()
        };
        found.entries.iter().map(text).collect()
    }

    /// Waits until the group is open and at rest.
    pub(super) async fn born(&self) {
        self.until("the group is born", async || {
            self.record()
                .await
                .is_some_and(|r| r.open.is_some() && r.op.is_none())
        })
        .await;
    }

    /// Waits for a fact in the store or the group.
    pub(super) async fn until(&self, what: &str, holds: impl AsyncFn() -> bool) {
        let mut changes = self.store.watch("/", Revision(0)).await.unwrap();
        let mut moved = self.group.changed();
        let wait = async {
            while !holds().await {
                tokio::select! {
                    _ = changes.next() => {}
                    _ = moved.changed() => {}
                }
            }
        };
        if tokio::time::timeout(LIMIT, wait).await.is_err() {
            panic!(
                "not in time: {what}; the record is {:?}",
                self.record().await
            );
        }
    }

    /// Numbers in the store never go back, no op is begun twice, no execution ends twice.
    async fn watch_records(&self) {
        let (store, wrong) = (self.store.clone(), self.wrong.clone());
        let mut changes = store.watch("/", Revision(0)).await.unwrap();
        self.peers.tasks().spawn("records", async move {
            let mut last: Option<GroupRecord> = None;
            let mut over: BTreeMap<String, Ended> = BTreeMap::new();
            let say = |what: String| {
                wrong
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(what);
            };
            while let Some(Ok(changes)) = changes.next().await {
                for change in changes.changes {
                    let Some(value) = change.value else { continue };
                    if change.key.starts_with("/execution/") {
                        let stored: Stored = serde_json::from_slice(&value).unwrap();
                        if over.contains_key(&stored.name) {
                            say(format!("{} was written after its end", stored.name));
                        }
                        if stored.phase.is_over() {
                            over.insert(stored.name.clone(), stored.phase);
                        }
                    }
                    if !change.key.starts_with("/group/") {
                        continue;
                    }
                    let now: GroupRecord = serde_json::from_slice(&value).unwrap();
                    if let Some(last) = &last {
                        if last.term.supersedes(now.term)
                            || last.open_term().supersedes(now.open_term())
                            || last.ops > now.ops
                        {
                            say(format!("the record went back: {last:?} then {now:?}"));
                        }
                        for run in &now.runs {
                            let before = last.run_of(run.first).unwrap();
                            if before.epoch.supersedes(run.epoch) {
                                say(format!("an epoch went back: {last:?} then {now:?}"));
                            }
                        }
                    }
                    last = Some(now);
                }
            }
        });
    }

    /// One member's agent, as far as control can see it.
    fn agent(&self, at: SocketAddr, member: MemberId) {
        let (runtime, group) = (self.peers.clone(), self.group.clone());
        let (stop, reached) = (self.stop.clone(), self.reached.clone());
        let (serving, wrong) = (self.serving.clone(), self.wrong.clone());
        let name = format!("agent {member}");
        self.peers.tasks().spawn(name, async move {
            loop {
                let mut client = ControlClient::new(runtime.grpc_channel(at));
                let (sender, reports) = mpsc::channel(64);
                let report = |body| {
                    wire::AgentReport::from(&AgentReport {
                        process: ProcessId::parse(format!("{member}-agent")).unwrap(),
                        group: group_id(),
                        member: member.clone(),
                        unix_ms: runtime.wall_clock().0,
                        body,
                    })
                };
                let status = || report(ReportBody::Status(group.status(&member)));
                sender.try_send(status()).unwrap();
                let Ok(orders) = client.agent(ReceiverStream::new(reports)).await else {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                };
                let mut orders = orders.into_inner();
                let (mut changed, mut stops) = (group.changed(), stop.subscribe());
                let mut told = None;
                loop {
                    let held = *stops.borrow_and_update();
                    let progress = group.progress(&member);
                    let open = matches!(&progress, Some((_, Progress::Open { .. })));
                    // Birth is not what the trial is about.
                    let tried = progress
                        .as_ref()
                        .is_some_and(|(o, _)| !o.op.starts_with("birth"));
                    if open && tried && held == Some(Stop::Open) {
                        reached.send_replace(true);
                    } else if progress != told {
                        told.clone_from(&progress);
                        if let Some((order, progress)) = progress {
                            let body = ReportBody::Progress {
                                term: order.term,
                                op: order.op,
                                progress,
                            };
                            if sender.send(report(body)).await.is_err() {
                                break;
                            }
                        }
                    }
                    if sender.send(status()).await.is_err() {
                        break;
                    }
                    let order = tokio::select! {
                        order = orders.message() => order,
                        _ = changed.changed() => continue,
                        _ = stops.changed() => continue,
                        () = tokio::time::sleep(Duration::from_millis(100)) => continue,
                    };
                    let Ok(Some(order)) = order else { break };
                    match Order::try_from(order).unwrap() {
                        Order::Admit { volume, .. } => group.admit(&member, &volume),
                        Order::Drive(_) if *stop.borrow() == Some(Stop::Drive) => {
                            reached.send_replace(true);
                        }
                        Order::Drive(order) => {
                            let serving = serving.lock().unwrap_or_else(PoisonError::into_inner);
                            let serving = serving.iter().filter(|(to, _)| *to == at);
                            let serving: Vec<_> = serving.map(|(_, process)| process).collect();
                            if order.kind == OpKind::Switchover && !serving.is_empty() {
                                let what =
                                    format!("{} is driven while {serving:?} serve", order.op);
                                wrong
                                    .lock()
                                    .unwrap_or_else(PoisonError::into_inner)
                                    .push(what);
                            }
                            group.drive(&member, order);
                        }
                        Order::StandDown { op, .. } => group.stand_down(&member, &op),
                        Order::HashRows { id, shards, .. } => {
                            let hash = |shard| TableHash {
                                shard,
                                table: "account".to_owned(),
                                rows: 2,
                                hash: 7,
                            };
                            let body = ReportBody::RowsHashed(RowsHashed {
                                id,
                                lsn: Lsn(100),
                                tables: shards.into_iter().map(hash).collect(),
                                error: None,
                            });
                            if sender.send(report(body)).await.is_err() {
                                break;
                            }
                        }
                        _ => {}
                    }
                }
            }
        });
    }

    /// One gateway or router.
    fn plane(&self, at: SocketAddr, cell: CellId, region: RegionId, role: Role) {
        let word = if role == Role::Gateway {
            "gateway"
        } else {
            "router"
        };
        let process = format!("{cell}-{word}");
        let file = self._folder.path().join(format!("{process}-{}", at.port()));
        let config = FollowerConfig {
            process: ProcessId::parse(process.clone()).unwrap(),
            role,
            region,
            cell: Some(cell.clone()),
            sources: vec![at],
            file,
        };
        let handle = TableFollower::start(&self.peers, config);
        let group = self.group.clone();
        handle.observe(move || Observed {
            openings: openings(&group, role, &cell),
            ..Observed::default()
        });
        let (stop, reached, wrong) = (self.stop.clone(), self.reached.clone(), self.wrong.clone());
        let (group, serving) = (self.group.clone(), self.serving.clone());
        self.peers.tasks().spawn(process.clone(), async move {
            let worker = handle.worker();
            let (mut tables, mut stops) = (handle.tables(), stop.subscribe());
            let mut opened = group.changed();
            let mut last: Option<Arc<Table>> = None;
            loop {
                let table = tables.borrow_and_update().clone();
                let held = *stops.borrow_and_update();
                if let Some(table) = table.filter(|table| table.version.number > 0) {
                    if held.is_some_and(|stop| stands_at(&table, stop, role)) {
                        reached.send_replace(true);
                    } else {
                        if let Some(last) = &last {
                            let back = goes_back(last, &table);
                            let mut wrong = wrong.lock().unwrap_or_else(PoisonError::into_inner);
                            wrong.extend(back.map(|what| format!("{process}: {what}")));
                        }
                        let waits = table.shards.iter().all(|row| row.phase != Phase::Active);
                        {
                            let mut all = serving.lock().unwrap_or_else(PoisonError::into_inner);
                            let own = (at, process.clone());
                            if waits {
                                all.remove(&own)
                            } else {
                                all.insert(own)
                            };
                        }
                        worker.in_use(&table.version);
                        last = Some(table);
                    }
                }
                tokio::select! {
                    _ = tables.changed() => {}
                    _ = stops.changed() => {}
                    _ = opened.changed() => handle.report_now(),
                }
            }
        });
    }
}

/// What a router reads on the open primary.
fn openings(group: &Group, role: Role, cell: &CellId) -> Vec<Opening> {
    let Some((term, member, owners)) = group.open().filter(|_| role == Role::SqlRouter) else {
        return vec![];
    };
    let own = owners.into_iter().filter(|(_, (_, owner))| owner == cell);
    vec![Opening {
        group: group_id(),
        term,
        member,
        shards: own.map(|(shard, (epoch, _))| (shard, epoch)).collect(),
    }]
}

fn stands_at(table: &Table, stop: Stop, role: Role) -> bool {
    let wait = |wanted| {
        table.shards.iter().any(|row| match &row.phase {
            Phase::Switching { closed, .. } => *closed == wanted && row.epoch.get() > 1,
            Phase::Active => false,
        })
    };
    match stop {
        Stop::Table(Closed::Gateways) => role == Role::Gateway && wait(Closed::Gateways),
        Stop::Table(Closed::All) => role == Role::SqlRouter && wait(Closed::All),
        Stop::Published => table
            .shards
            .iter()
            .any(|row| row.phase == Phase::Active && row.epoch.get() > 1),
        Stop::Drive | Stop::Open => false,
    }
}

fn goes_back(last: &Table, now: &Table) -> Option<String> {
    let older = last.shards.iter().zip(&now.shards);
    let mut older = older.filter(|(last, now)| last.epoch.supersedes(now.epoch));
    let open = |table: &Table| table.groups[&group_id()].open.clone();
    let term = match (open(last), open(now)) {
        (Some((last, _)), Some((now, _))) => last.supersedes(now),
        (Some(_), None) => true,
        (None, _) => false,
    };
    (older.next().is_some() || term)
        .then(|| format!("{} is older than {}", now.version, last.version))
}

/// The hash of a plan that takes cell a's shards to cell b.
pub(super) async fn plan(control: &Arc<Control>) -> String {
    let spec = PlanSpec::SwitchCell {
        cell: CellId::parse("a-1").unwrap(),
        to: "b-1".to_owned(),
    };
    let order: Object<_, ()> = Object::new(Kind::Plan, "", spec);
    let body = serde_json::to_vec(&order).unwrap();
    let made = async {
        loop {
            // Right after birth its members' reports may not say so yet.
            if let Ok(plan) = plans::create(control, &body).await {
                return plan;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let plan = tokio::time::timeout(LIMIT, made).await.expect("a plan");
    plan.status.unwrap()["hash"].as_str().unwrap().to_owned()
}

/// Gives the order to run it.
pub(super) async fn order(control: &Arc<Control>, plan: &str, name: &str) -> Option<AnyObject> {
    let spec = ExecutionSpec {
        plan: plan.to_owned(),
        control: atoll_api::Control::Run,
        automatic: false,
    };
    let order: Object<_, ()> = Object::new(Kind::Execution, name, spec);
    let body = serde_json::to_vec(&order).unwrap();
    api::executions::create(control, &body).await.ok()
}

/// Set by a hook of the store when it has done what it is for.
pub(super) fn once() -> impl FnMut() -> bool + Send {
    let done = AtomicBool::new(false);
    move || !done.swap(true, Ordering::SeqCst)
}
