//! One data group: three agents in three regions with a delay between them, and the record.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use atoll_ownership::record::{Begin, GroupRecord, Move, Opened};
use atoll_ownership::{Admitted, DriveOrder, OpKind, Progress};
use atoll_runtime::{LinkRule, LinksFile, Listener, RealOptions, Runtime};
use atoll_streams::agent::{MemberRole, MemberStatus, Order};
use atoll_topology::{CellId, GroupId, MemberId, ShardId, Term};
use tokio_postgres::{Client, NoTls};

use super::control::{ControlStub, address};
use super::ground::Ground;
use super::processes::AgentProcess;
use super::record::Recorded;
use super::setup::{agent, claim_world, passable};
use super::writers::Writers;

/// An op on this machine, however busy it is.
const OP_LIMIT: Duration = Duration::from_secs(30);

/// Two beats, and the time that a change of the links takes.
const UNHEARD_MS: u64 = 500;

/// A re-join by clone, and PostgreSQL's start.
pub(super) const JOIN_LIMIT: Duration = Duration::from_secs(60);

/// What a group is made of.
#[derive(Debug, Clone)]
pub struct GroupOptions {
    /// One-way delay between two members, in milliseconds.
    pub delay_ms: f64,
    /// Awaited standbys.
    pub k: u8,
    /// What the agents' configurations say as their k; another one is a fault that is planted.
    pub agents_k: Option<u8>,
    /// What each agent stands on.
    pub grounds: [Ground; 3],
}

impl Default for GroupOptions {
    fn default() -> Self {
        Self {
            delay_ms: 15.0,
            k: 1,
            agents_k: None,
            grounds: [Ground::Plain; 3],
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
    /// The record as the present control knows it.
    pub record: GroupRecord,
    /// The record as the next one will find it.
    pub recorded: Recorded,
    world: u8,
    /// Whoever listens there has the world.
    _claim: Listener,
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
        let begin = group.begin(OpKind::Failover, 0, &moves, None).await?;
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
        let (world, claim, listener) = claim_world(&runtime).await?;
        let folder = tempfile::Builder::new()
            .prefix("atoll-data-")
            .tempdir_in("/var/tmp")?;
        passable(folder.path())?;
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
        let recorded = Recorded::default();
        recorded.write(None, &record).await?;
        let mut group = Self {
            runtime,
            agents,
            control,
            record,
            recorded,
            world,
            _claim: claim,
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

    /// Control ends: its streams break, and what it knew is gone.
    pub async fn control_dies(&mut self) {
        self.control.stop().await;
    }

    /// Another control comes, and has nothing but the record.
    pub async fn another_control(&mut self) -> Result<()> {
        self.control_dies().await;
        let listener = self.runtime.listen(address(self.world)).await?;
        (self.record, _) = self.recorded.read().await?;
        self.control = self.control.successor(listener);
        Ok(())
    }

    /// The order of the op that the record says is running.
    pub fn running(&self) -> Result<DriveOrder> {
        self.record.drive_order().context("no op is running")
    }

    /// Begins an op in the record: P1. `moves`: first shard, last shard, to which cell.
    pub async fn begin(
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
        let begun = self.record.begin(&begin)?;
        self.recorded.write(Some(&self.record), &begun).await?;
        self.record = begun;
        self.running()
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

    /// Waits until the driver says something of which `fact` makes something.
    pub async fn until_step<T>(
        &self,
        order: &DriveOrder,
        what: &str,
        mut fact: impl FnMut(Progress) -> Option<T>,
    ) -> Result<T> {
        let op = order.op.clone();
        let found = self.control.until(OP_LIMIT, what, |control| {
            control.progress(&op).and_then(&mut fact)
        });
        found.await.map_err(|error| error.context(self.logs()))
    }

    /// P3 to P8.
    pub async fn finish_op(&mut self, order: &DriveOrder) -> Result<()> {
        self.drive(order).await?;
        self.opens(order).await
    }

    /// P7 and P8 of an order that was sent: waits until it is open, and finishes it.
    pub async fn opens(&mut self, order: &DriveOrder) -> Result<()> {
        self.until_open(order).await?;
        self.finish(order).await
    }

    /// P8.
    pub async fn finish(&mut self, order: &DriveOrder) -> Result<()> {
        let opened = Opened {
            op: order.op.clone(),
            primary: order.target.clone(),
        };
        let finished = self.record.finish(&opened)?;
        self.recorded.write(Some(&self.record), &finished).await?;
        self.record = finished;
        Ok(())
    }

    /// A whole op.
    pub async fn op(
        &mut self,
        kind: OpKind,
        target: usize,
        moves: &[(u16, u16, &str)],
    ) -> Result<()> {
        let order = self.begin(kind, target, moves, None).await?;
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

    /// Writers of cell `a` on shard 0 at the present primary.
    pub fn writers(&self, count: i64) -> Writers {
        let at = self.agents[self.primary()].sql;
        Writers::start(&self.runtime, count, "s00000.t", at, "cell_a")
    }

    /// Sends the writers to the present primary, as this cell.
    pub fn point(&self, writers: &Writers, cell: &str) {
        writers.point(self.agents[self.primary()].sql, &format!("cell_{cell}"));
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

    /// Cuts what flows from one member to another, silently; returns when it is felt.
    pub async fn cut(&self, from: usize, to: usize) -> Result<()> {
        self.cuts.lock().expect("no panic").push((from, to));
        self.write_links()?;
        self.until_unheard(from, to).await
    }

    /// Cuts what flows between two members, both ways; returns when it is felt.
    pub async fn part(&self, one: usize, other: usize) -> Result<()> {
        self.cuts
            .lock()
            .expect("no panic")
            .extend([(one, other), (other, one)]);
        self.write_links()?;
        tokio::try_join!(
            self.until_unheard(one, other),
            self.until_unheard(other, one)
        )?;
        Ok(())
    }

    /// Waits until two beats in a row did not arrive.
    async fn until_unheard(&self, from: usize, to: usize) -> Result<()> {
        let (from, to) = (self.member(from), self.member(to));
        let what = format!("{to} not hearing {from}");
        let unheard = self.control.until(OP_LIMIT, &what, |control| {
            let status = control.status(&to)?;
            let heard = status.heard.iter().find(|heard| heard.member == from);
            heard
                .is_none_or(|heard| heard.ago_ms >= UNHEARD_MS)
                .then_some(())
        });
        unheard.await
    }

    /// Heals what was cut between two members.
    pub fn mend(&self, one: usize, other: usize) -> Result<()> {
        let between = |cut: &(usize, usize)| [(one, other), (other, one)].contains(cut);
        self.cuts
            .lock()
            .expect("no panic")
            .retain(|cut| !between(cut));
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
