//! One data group: three agents in three regions with a delay between them, and the record.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use atoll_ownership::record::{Begin, GroupRecord, Move, Opened};
use atoll_ownership::{Admitted, DriveOrder, OpKind, Progress};
use atoll_runtime::{LinkRule, LinksFile, Listener, RealOptions, Runtime};
use atoll_streams::agent::{MemberRole, MemberStatus, Order, TableHash};
use atoll_topology::{CellId, GroupId, MemberId, ShardId, Term};
use serde_json::json;
use tokio_postgres::{Client, NoTls};

use super::control::{ControlStub, address};
use super::processes::AgentProcess;
use super::writers::{Tally, Writers};

/// An op on this machine, however busy it is.
const OP_LIMIT: Duration = Duration::from_secs(30);

/// A re-join by clone, and PostgreSQL's start.
const JOIN_LIMIT: Duration = Duration::from_secs(60);

/// Worlds that tests may use; `atoll dev` counts from 1.
const WORLDS: std::ops::Range<u8> = 150..250;

/// What a group is made of.
#[derive(Debug, Clone)]
pub struct GroupOptions {
    /// One-way delay between two members, in milliseconds.
    pub delay_ms: f64,
    /// Awaited standbys.
    pub k: u8,
    /// What the agents' configurations say as their k; another one is a fault that is planted.
    pub agents_k: Option<u8>,
}

impl Default for GroupOptions {
    fn default() -> Self {
        Self {
            delay_ms: 15.0,
            k: 1,
            agents_k: None,
        }
    }
}

/// One data group, and control's part in the test's hands.
pub struct Group {
    /// Sockets and tasks of the test itself, outside of every world.
    pub runtime: Runtime,
    /// Its agents, in the order of their names.
    pub agents: Vec<AgentProcess>,
    /// Control's end of their streams.
    pub control: ControlStub,
    /// What control would have in its store.
    pub record: GroupRecord,
    delay_ms: f64,
    links: PathBuf,
    cuts: Mutex<Vec<(usize, usize)>>,
    _folder: tempfile::TempDir,
}

fn regions() -> Vec<String> {
    ["outside", "r1", "r2", "r3"].map(str::to_owned).into()
}

fn cell(name: &str) -> CellId {
    CellId::parse(name).expect("a cell's name")
}

impl Group {
    /// Starts three agents, admits them and makes the first one the primary at term 2. Shards 0
    /// and 1 belong to cell `a`; each has a table `t (id bigint primary key)`.
    pub async fn born(options: GroupOptions) -> Result<Self> {
        let mut group = Self::admitted(&options).await?;
        let moves = [(0, 1, "a")];
        let begin = group.begin(OpKind::Failover, 0, &moves, None)?;
        group.finish_op(&begin).await?;
        let sql = "CREATE TABLE t (id bigint PRIMARY KEY)";
        let applied = group
            .control
            .apply(&group.member(0), "1-tables", sql)
            .await?;
        ensure!(
            applied.error.is_none() && applied.shards.iter().all(|(_, result)| result.is_ok()),
            "{applied:?}"
        );
        Ok(group)
    }

    /// Starts three agents and admits them.
    pub async fn admitted(options: &GroupOptions) -> Result<Self> {
        let runtime = Runtime::real(RealOptions::default());
        let (world, listener) = claim_world(&runtime).await?;
        let folder = tempfile::Builder::new()
            .prefix("atoll-data-")
            .tempdir_in("/var/tmp")?;
        atoll_world_mode(folder.path())?;
        let links = folder.path().join("links.json");
        let id = GroupId::parse("g")?;
        let names: Vec<MemberId> = (1..=3)
            .map(|n| MemberId::parse(format!("g-{n}")))
            .collect::<Result<_, _>>()?;
        let volumes: BTreeMap<MemberId, String> = names
            .iter()
            .map(|name| (name.clone(), format!("volume-{name}")))
            .collect();
        let control = ControlStub::serve(&runtime, listener, id.clone(), volumes.clone());
        let agents = names
            .iter()
            .enumerate()
            .map(|(at, name)| {
                let root = folder.path().join(name.as_str());
                agent(world, at, name, &names, root, &links, options)
            })
            .collect();
        let admitted = volumes
            .iter()
            .map(|(id, volume)| Admitted {
                id: id.clone(),
                volume: volume.clone(),
            })
            .collect();
        let owners = (0..2).map(|shard| (ShardId(shard), cell("a")));
        let record = GroupRecord::birth(id, admitted, options.k, owners);
        let mut group = Self {
            runtime,
            agents,
            control,
            record,
            delay_ms: options.delay_ms,
            links,
            cuts: Mutex::default(),
            _folder: folder,
        };
        group.write_links()?;
        for agent in &mut group.agents {
            agent.start()?;
        }
        for at in 0..3 {
            group
                .until_role(at, |role| role == MemberRole::Sealed)
                .await?;
        }
        Ok(group)
    }

    /// The name of an agent's member.
    pub fn member(&self, at: usize) -> MemberId {
        self.agents[at].member.clone()
    }

    /// Which agent's member the record names as primary.
    pub fn primary(&self) -> usize {
        let open = self.record.open.as_ref().expect("born");
        self.agents
            .iter()
            .position(|agent| agent.member == open.primary)
            .expect("a member")
    }

    /// Begins an op in the record: P1. `moves`: first shard, last shard, to which cell.
    pub fn begin(
        &mut self,
        kind: OpKind,
        target: usize,
        moves: &[(u16, u16, &str)],
        over: Option<Term>,
    ) -> Result<DriveOrder> {
        let begin = Begin {
            kind,
            judged: self.record.open_term(),
            over,
            target: self.member(target),
            moves: moves
                .iter()
                .map(|(first, last, to)| Move {
                    first: ShardId(*first),
                    last: ShardId(*last),
                    to: cell(to),
                })
                .collect(),
            plan: "test".into(),
            execution: format!("op-{}-{kind}", self.record.term.get() + 1).replace(' ', "-"),
            deadline_ms: 0,
            automatic: false,
        };
        self.record = self.record.begin(&begin)?;
        self.record.drive_order().context("no op")
    }

    /// Sends the order to its target: P3 begins.
    pub async fn drive(&self, order: &DriveOrder) -> Result<()> {
        self.control
            .order(&order.target, Order::Drive(order.clone()))
            .await
    }

    /// Waits for P7.
    pub async fn until_open(&self, order: &DriveOrder) -> Result<()> {
        let (op, what) = (
            order.op.clone(),
            format!("{} at term {} open", order.kind, order.term),
        );
        let ended = self
            .control
            .until(OP_LIMIT, &what, |control| match control.progress(&op) {
                Some(Progress::Open { .. }) => Some(Ok(())),
                Some(Progress::GaveUp { reason, .. }) => Some(Err(reason)),
                _ => None,
            });
        match ended.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(reason)) => bail!("{what}: the driver gave up: {reason}\n{}", self.logs()),
            Err(error) => Err(error.context(self.logs())),
        }
    }

    /// P3 to P8.
    pub async fn finish_op(&mut self, order: &DriveOrder) -> Result<()> {
        self.drive(order).await?;
        self.until_open(order).await?;
        self.finish(order)
    }

    /// P8.
    pub fn finish(&mut self, order: &DriveOrder) -> Result<()> {
        let opened = Opened {
            op: order.op.clone(),
            primary: order.target.clone(),
        };
        self.record = self.record.finish(&opened)?;
        Ok(())
    }

    /// A whole op.
    pub async fn op(
        &mut self,
        kind: OpKind,
        target: usize,
        moves: &[(u16, u16, &str)],
    ) -> Result<()> {
        let order = self.begin(kind, target, moves, None)?;
        self.finish_op(&order).await
    }

    /// Waits for a member's role.
    pub async fn until_role(
        &self,
        at: usize,
        fits: impl Fn(MemberRole) -> bool,
    ) -> Result<MemberStatus> {
        let member = self.member(at);
        let what = format!("the role of {member}");
        let found = self.control.until(JOIN_LIMIT, &what, |control| {
            control.status(&member).filter(|status| fits(status.role))
        });
        found.await.map_err(|error| error.context(self.logs()))
    }

    /// Waits until an agent is connected with a log that can be read.
    pub async fn until_connected(&self, at: usize) -> Result<()> {
        let member = self.member(at);
        let found = self.control.until(JOIN_LIMIT, "a readable log", |control| {
            control
                .status(&member)
                .filter(|status| status.position.is_some())
                .map(drop)
        });
        found.await.map_err(|error| error.context(self.logs()))
    }

    /// (term, timeline) of each term row, as a member has them.
    pub async fn term_rows(&self, at: usize) -> Result<Vec<(i64, i64)>> {
        let client = self.client(at, "cell_a").await?;
        let sql = "SELECT term, timeline FROM atoll.term ORDER BY term";
        let rows = client.query(sql, &[]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    /// Waits until all members follow the primary, then compares every row.
    pub async fn members_are_equal(&self) -> Result<Vec<TableHash>> {
        self.members_are_joined().await?;
        let primary = self.primary();
        let term = self.record.open_term();
        let id = format!("hash-{term}-{}", self.runtime.wall_clock().0);
        let leader = self
            .control
            .hash(&self.member(primary), &id, atoll_topology::Lsn(0))
            .await?;
        ensure!(leader.error.is_none(), "{leader:?}");
        for at in (0..3).filter(|at| *at != primary) {
            let hashed = self.control.hash(&self.member(at), &id, leader.lsn).await?;
            ensure!(hashed.error.is_none(), "{hashed:?}\n{}", self.logs());
            ensure!(
                hashed.tables == leader.tables,
                "{} differs: {:?} and {:?}",
                self.member(at),
                hashed.tables,
                leader.tables
            );
        }
        Ok(leader.tables)
    }

    /// Waits until all members follow the primary.
    pub async fn members_are_joined(&self) -> Result<()> {
        let primary = self.primary();
        let term = self.record.open_term();
        for at in (0..3).filter(|at| *at != primary) {
            let (member, leader) = (self.member(at), self.member(primary));
            let what = format!("{member} following {leader}");
            let joined = self.control.until(JOIN_LIMIT, &what, |control| {
                control.status(&member).filter(|status| {
                    status.role == MemberRole::Following
                        && status.promise == term
                        && status.upstream.as_ref() == Some(&leader)
                })
            });
            joined.await.map_err(|error| error.context(self.logs()))?;
        }
        Ok(())
    }

    /// Writers of cell `a` on shard 0 at the present primary.
    pub fn writers(&self, count: i64) -> Writers {
        let at = self.agents[self.primary()].sql;
        Writers::start(&self.runtime, count, "s00000.t", at, "cell_a")
    }

    /// Sends the writers to the present primary, as this cell.
    pub fn point(&self, writers: &Writers, cell: &str) {
        writers.point(self.agents[self.primary()].sql, &format!("cell_{cell}"));
    }

    /// Every acknowledged id must be there; ids of unknown outcome may be; no others.
    pub async fn nothing_is_lost(&self, tally: &Tally, cell: &str) -> Result<()> {
        let missing = self.missing(tally, cell).await?;
        ensure!(
            missing == 0,
            "{missing} of {} acknowledged writes are lost\n{}",
            tally.acknowledged.len(),
            self.logs()
        );
        Ok(())
    }

    /// How many acknowledged ids are missing on the primary.
    pub async fn missing(&self, tally: &Tally, cell: &str) -> Result<usize> {
        let client = self.client(self.primary(), &format!("cell_{cell}")).await?;
        let rows = client.query("SELECT id FROM s00000.t", &[]).await?;
        let present: std::collections::BTreeSet<i64> = rows.iter().map(|row| row.get(0)).collect();
        let stray: Vec<_> = present
            .iter()
            .filter(|id| !tally.acknowledged.contains(id) && !tally.unknown.contains(id))
            .collect();
        ensure!(stray.is_empty(), "rows that nobody wrote: {stray:?}");
        Ok(tally.acknowledged.difference(&present).count())
    }

    /// A session through an agent's client port.
    pub async fn client(&self, at: usize, role: &str) -> Result<Client> {
        let mut config = tokio_postgres::Config::new();
        let sql = self.agents[at].sql;
        config
            .host(sql.ip().to_string())
            .port(sql.port())
            .user(role)
            .dbname("atoll");
        let (client, connection) =
            tokio::time::timeout(Duration::from_secs(5), config.connect(NoTls)).await??;
        self.runtime.tasks().spawn("client", async move {
            connection.await.ok();
        });
        Ok(client)
    }

    /// Cuts what flows from one member to another, silently.
    pub fn cut(&self, from: usize, to: usize) -> Result<()> {
        self.cuts.lock().expect("no panic").push((from, to));
        self.write_links()
    }

    /// Heals every cut.
    pub fn heal(&self) -> Result<()> {
        self.cuts.lock().expect("no panic").clear();
        self.write_links()
    }

    fn write_links(&self) -> Result<()> {
        let (names, cuts) = (regions(), self.cuts.lock().expect("no panic").clone());
        let mut rules = Vec::new();
        for from in 0..3 {
            for to in (0..3).filter(|to| *to != from) {
                rules.push(LinkRule {
                    from: names[from + 1].clone(),
                    to: names[to + 1].clone(),
                    delay_ms: self.delay_ms,
                    jitter_ms: 0.0,
                    cut: cuts.contains(&(from, to)),
                });
            }
        }
        let file = LinksFile {
            regions: names,
            links: rules,
        };
        let making = self.links.with_extension("making");
        std::fs::write(&making, serde_json::to_vec(&file)?)?;
        std::fs::rename(&making, &self.links)?;
        Ok(())
    }

    /// The ends of all agents' logs.
    pub fn logs(&self) -> String {
        let tails = self
            .agents
            .iter()
            .map(|agent| format!("--- {} ---\n{}", agent.member, agent.log_tail()));
        tails.collect::<Vec<_>>().join("\n")
    }
}

/// A world number that no other test holds: whoever has its control address has it.
async fn claim_world(runtime: &Runtime) -> Result<(u8, Listener)> {
    let spread = u8::try_from(std::process::id() % 50).unwrap_or(0);
    for world in WORLDS.skip(usize::from(spread)) {
        if let Ok(listener) = runtime.listen(address(world)).await {
            return Ok((world, listener));
        }
    }
    bail!("every world is taken")
}

fn agent(
    world: u8,
    at: usize,
    name: &MemberId,
    names: &[MemberId],
    root: PathBuf,
    links: &std::path::Path,
    options: &GroupOptions,
) -> AgentProcess {
    let ip = |at: usize| {
        let region = u8::try_from(at + 1).expect("few");
        IpAddr::from([127, world, 16 * region + 1, 1])
    };
    let member = |at: usize| {
        json!({
            "calls": SocketAddr::new(ip(at), 7700),
            "replication": SocketAddr::new(ip(at), 7701),
        })
    };
    let members: serde_json::Map<String, serde_json::Value> = names
        .iter()
        .enumerate()
        .map(|(at, name)| (name.to_string(), member(at)))
        .collect();
    let sql = SocketAddr::new(ip(at), 5432);
    let config = json!({
        "runtime": { "source": ip(at), "links_file": links },
        "process": format!("g-agent-{}", at + 1),
        "group": "g",
        "member": name,
        "sql": sql,
        "calls": SocketAddr::new(ip(at), 7700),
        "replication": SocketAddr::new(ip(at), 7701),
        "admin": SocketAddr::new(ip(at), 9900),
        "data": root,
        "control": [address(world)],
        "members": members,
        "k": options.agents_k.unwrap_or(options.k),
        "connections_max": 60,
        "cells": ["a", "b", "c"],
    });
    AgentProcess::new(name.clone(), root, sql, config)
}

/// PostgreSQL's account must be able to pass through.
fn atoll_world_mode(folder: &std::path::Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755))?;
    Ok(())
}
