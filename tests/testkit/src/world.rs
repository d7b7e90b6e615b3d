//! A world of real processes, started by the very command that a newcomer types.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use atoll_runtime::LinksFile;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::data::binary;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);
/// Longest wait for any fact.
const LIMIT: Duration = Duration::from_secs(90);

/// Two cores carry one world: what its users and its judges may wait for is not stretched by another.
static ALONE: Mutex<()> = Mutex::new(());

/// One world; its drop takes it down.
pub struct World {
    dir: PathBuf,
    atoll: PathBuf,
    bank: PathBuf,
    /// Something was not as it should be: its logs stay.
    failed: AtomicBool,
    _alone: MutexGuard<'static, ()>,
}

/// The bank's users at work.
pub struct Load {
    child: Child,
    report: PathBuf,
    control: PathBuf,
}

/// A node of etcd, as it sees itself and who leads.
struct EtcdNode {
    name: String,
    client: String,
    member: u64,
    leader: u64,
}

impl World {
    /// Three cities, four cells, four data groups, the bank; control is one process with a file.
    pub fn up(name: &str) -> Result<Self> {
        Self::up_with(name, &three_cities(), &[])
    }

    /// The same with three replicas of control on three nodes of etcd, one of each a city.
    pub fn up_on_etcd(name: &str) -> Result<Self> {
        Self::up_on_etcd_as(name, &three_cities())
    }

    /// The same, but one replica and one node stand in a region of their own, `alone`, with nothing
    /// else in it: what is cut off with that region is they.
    pub fn up_on_etcd_with_one_alone(name: &str) -> Result<Self> {
        let cities = std::fs::read_to_string(three_cities())?;
        let mut topology = tempfile::NamedTempFile::with_suffix(".yaml")?;
        // The store takes the first three regions by name.
        for (kind, name, spec) in [
            (
                "Region",
                "alone",
                "roundTripMs: {hangzhou: 10, shanghai: 10, shenzhen: 10}",
            ),
            ("Zone", "alone-a", "region: alone"),
        ] {
            write!(
                topology,
                "apiVersion: atoll.dev/v1\nkind: {kind}\nmetadata: {{name: {name}}}\n\
                 spec:\n  {spec}\n---\n"
            )?;
        }
        topology.write_all(cities.as_bytes())?;
        Self::up_on_etcd_as(name, topology.path())
    }

    fn up_on_etcd_as(name: &str, topology: &Path) -> Result<Self> {
        let etcd = atoll_programs::etcd()?;
        let program = etcd.etcd.display().to_string();
        // One part after the other is lost there.
        let window = ["--guard-window", "5"];
        let store = ["--store", "etcd", "--etcd", &program];
        Self::up_with(name, topology, &[store.as_slice(), &window].concat())
    }

    fn up_with(name: &str, topology: &Path, more: &[&str]) -> Result<Self> {
        let atoll = binary()?;
        let bank = atoll.with_file_name("bank");
        let me = std::process::id();
        let dir = PathBuf::from(format!("/var/tmp/atoll-test-{name}-{me}"));
        let world = Self {
            dir,
            atoll,
            bank,
            failed: AtomicBool::new(false),
            _alone: ALONE.lock().unwrap_or_else(PoisonError::into_inner),
        };
        let said = Command::new(&world.atoll)
            .args(["dev", "up", "-f"])
            .arg(topology)
            .arg("--dir")
            .arg(&world.dir)
            .arg("--schema")
            .arg(example("bank/schema.sql"))
            .args(more)
            .output()?;
        let text = String::from_utf8_lossy(&said.stderr).into_owned();
        ensure!(said.status.success(), "the world did not come up:\n{text}");
        Ok(world)
    }

    /// `atoll dev VERB WHAT` in this world.
    pub fn dev(&self, verb: &str, what: &[&str]) -> Result<()> {
        let said = Command::new(&self.atoll)
            .args(["dev", verb])
            .args(what)
            .arg("--dir")
            .arg(&self.dir)
            .output()?;
        let text = String::from_utf8_lossy(&said.stderr).into_owned();
        ensure!(said.status.success(), "dev {verb} {what:?}: {text}");
        Ok(())
    }

    /// Cuts a region off from all others and from outside, silently: nobody is told, and its own
    /// processes go on among themselves.
    pub fn cut_off(&self, region: &str) -> Result<()> {
        self.border("cut", region)
    }

    /// Heals what `cut_off` cut.
    pub fn heal(&self, region: &str) -> Result<()> {
        self.border("heal", region)
    }

    fn border(&self, verb: &str, region: &str) -> Result<()> {
        let text = std::fs::read(self.dir.join("run/links.json"))?;
        let links: LinksFile = serde_json::from_slice(&text)?;
        for other in links.regions.iter().filter(|other| *other != region) {
            self.dev(verb, &[region, other])?;
        }
        Ok(())
    }

    /// A verb of the command line with `-o json`; its value.
    pub fn ask(&self, words: &[&str]) -> Result<Value> {
        let said = Command::new(&self.atoll)
            .args(words)
            .args(["-o", "json", "--world"])
            .arg(&self.dir)
            .output()?;
        let text = String::from_utf8_lossy(&said.stderr).into_owned();
        // 10: done, with warnings; nobody has said what a cell of this world can carry.
        let done = matches!(said.status.code(), Some(0 | 10));
        ensure!(done, "{words:?}: {text}");
        Ok(serde_json::from_slice(&said.stdout)?)
    }

    /// Which replica of control acts.
    pub fn acting(&self) -> Result<String> {
        let status = self.ask(&["status"])?;
        let acting = status.get("acting").and_then(Value::as_str);
        Ok(acting.context("no replica acts")?.to_owned())
    }

    /// Waits until a node of etcd leads, as it says itself; its name.
    pub async fn etcd_leader(&self) -> Result<String> {
        Ok(self.etcd_leading().await?.name)
    }

    /// Gives the lead of etcd to a node.
    pub async fn let_etcd_lead(&self, name: &str) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let leader = self.etcd_leading().await?;
            if leader.name == name {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{} leads", leader.name);
            if let Some(node) = self.etcd_nodes()?.iter().find(|node| node.name == name) {
                // It may fail in an election; what counts is who leads then.
                Command::new(atoll_programs::etcd()?.etcdctl)
                    .args(["move-leader", &format!("{:x}", node.member)])
                    .args(["--endpoints", &leader.client])
                    .output()?;
            }
            sleep(LOOK).await;
        }
    }

    async fn etcd_leading(&self) -> Result<EtcdNode> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let mut nodes = self.etcd_nodes()?.into_iter();
            if let Some(leader) = nodes.find(|node| node.leader == node.member) {
                return Ok(leader);
            }
            ensure!(Instant::now() < deadline, "no node of etcd leads");
            sleep(LOOK).await;
        }
    }

    /// The nodes of etcd that answer.
    fn etcd_nodes(&self) -> Result<Vec<EtcdNode>> {
        let etcdctl = atoll_programs::etcd()?.etcdctl;
        let text = std::fs::read(self.dir.join("run/processes.json"))?;
        let processes: Value = serde_json::from_slice(&text)?;
        let processes = processes.get("processes").and_then(Value::as_array);
        let mut nodes = Vec::new();
        for node in processes.into_iter().flatten() {
            let client = node.pointer("/addresses/client").and_then(Value::as_str);
            let (Some(client), true) = (client, node["role"] == "etcd") else {
                continue;
            };
            let said = Command::new(&etcdctl)
                .args(["endpoint", "status", "-w", "json", "--command-timeout=2s"])
                .args(["--endpoints", client])
                .output()?;
            let said: Value = serde_json::from_slice(&said.stdout).unwrap_or_default();
            let number = |path| said.pointer(path).and_then(Value::as_u64);
            let member = number("/0/Status/header/member_id");
            if let (Some(member), Some(leader)) = (member, number("/0/Status/leader")) {
                nodes.push(EtcdNode {
                    name: node["name"].as_str().context("a name")?.to_owned(),
                    client: client.to_owned(),
                    member,
                    leader,
                });
            }
        }
        Ok(nodes)
    }

    /// Plans, and begins exactly that plan; does not wait for its end.
    pub fn switch(&self, plan: &[&str]) -> Result<Child> {
        let words: Vec<&str> = ["switch", "plan"].iter().chain(plan).copied().collect();
        let plan = self.ask(&words)?;
        let hash = plan.pointer("/status/hash").and_then(Value::as_str);
        let hash = hash.context("the plan has no hash")?.to_owned();
        let mut run = Command::new(&self.atoll);
        run.args(["switch", "run", "--plan", &hash, "--world"])
            .arg(&self.dir);
        Ok(run.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?)
    }

    /// Waits until the state of the world holds; on failure, says what it last was.
    pub async fn until(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Result<Value> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let last = match self.ask(&["status"]) {
                Ok(status) if holds(&status) => return Ok(status),
                Ok(status) => serde_json::to_string_pretty(&status)?,
                Err(error) => error.to_string(),
            };
            if Instant::now() > deadline {
                self.failed.store(true, Ordering::Relaxed);
                bail!(
                    "not {what}; logs in {}; last seen:\n{last}",
                    self.dir.display()
                );
            }
            sleep(LOOK).await;
        }
    }

    /// Users at work until they are told to stop; returns once their accounts are open.
    pub async fn load(&self, rate: u32) -> Result<Load> {
        let report = self.dir.join("load.json");
        let (control, started) = (self.dir.join("load.orders"), self.dir.join("load.started"));
        let words = self.dir.join("load.log");
        std::fs::write(&control, "")?;
        // Of the load before this one, which would speak for it.
        for old in [&started, &report] {
            if old.try_exists()? {
                std::fs::remove_file(old)?;
            }
        }
        let child = Command::new(&self.bank)
            .args([
                "load",
                "--seconds",
                "300",
                "--rate",
                &rate.to_string(),
                "--world",
            ])
            .arg(&self.dir)
            .arg("--report")
            .arg(&report)
            .arg("--control")
            .arg(&control)
            .arg("--started")
            .arg(&started)
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&words)?)
            .spawn()?;
        let deadline = Instant::now() + LIMIT;
        let mut load = Load {
            child,
            report,
            control,
        };
        while !started.try_exists()? {
            let ended = load.child.try_wait()?;
            if let Some(ended) = ended {
                let words = std::fs::read_to_string(&words)?;
                self.failed.store(true, Ordering::Relaxed);
                bail!(
                    "the users did not begin, {ended}; logs in {}: {words}",
                    self.dir.display()
                );
            }
            ensure!(Instant::now() < deadline, "the users did not begin");
            sleep(LOOK).await;
        }
        Ok(load)
    }
}

impl Load {
    /// Lets the users finish, and gives the report with its verdict.
    pub async fn stop(mut self) -> Result<Value> {
        std::fs::write(&self.control, "stop\n")?;
        let deadline = Instant::now() + LIMIT;
        let ended = loop {
            if let Some(ended) = self.child.try_wait()? {
                break ended;
            }
            ensure!(Instant::now() < deadline, "the books were not read");
            sleep(LOOK).await;
        };
        let report = std::fs::read(&self.report)
            .with_context(|| format!("the users left no report ({ended})"))?;
        let report = serde_json::from_slice(&report)?;
        // It fails where its own verdict is bad, so a report from elsewhere does not stand for it.
        ensure!(ended.success(), "the users' load {ended}: {report}");
        Ok(report)
    }
}

fn example(path: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    root.join("examples").join(path)
}

fn three_cities() -> PathBuf {
    example("topologies/three-cities.yaml")
}

/// A data group in the state of a world.
pub fn group<'a>(status: &'a Value, name: &str) -> Option<&'a Value> {
    let groups = status.get("groups")?.as_array()?;
    groups.iter().find(|group| group["name"] == name)
}

/// Every data group is open, and none has an op.
pub fn quiet(status: &Value) -> bool {
    let all = status.get("groups").and_then(Value::as_array);
    all.is_some_and(|all| {
        let still = |g: &Value| g.get("open").is_some() && g.get("op").is_none();
        !all.is_empty() && all.iter().all(still)
    })
}

/// Quiet, and every member is where it should be.
pub fn complete(status: &Value) -> bool {
    let warnings = status.get("warnings").and_then(Value::as_array);
    quiet(status) && warnings.is_some_and(Vec::is_empty)
}

/// Whether all shards of a group belong to a cell, and nothing is under way.
pub fn owned_by(status: &Value, name: &str, cell: &str) -> bool {
    let owners = group(status, name).and_then(|group| group.get("owners")?.as_array());
    let all = owners.is_some_and(|owners| {
        let its = |owner: &Value| owner.as_str().is_some_and(|text| text.contains(cell));
        !owners.is_empty() && owners.iter().all(its)
    });
    all && quiet(status)
}

/// Whether a city's cells own nothing any more, and nothing is under way.
pub fn served_elsewhere(status: &Value, city: &str) -> bool {
    let cells = status["cells"].as_array();
    cells.is_some_and(|cells| {
        let owner = |cell: &Value| cell["region"] == *city && cell["shards"] != "";
        quiet(status) && !cells.is_empty() && !cells.iter().any(owner)
    })
}

/// Gives the shards of group g1 to a cell by an order, does something while that goes on, and waits
/// for the order's end.
pub async fn switch_meanwhile(
    world: &World,
    order: &[&str],
    cell: &str,
    meanwhile: impl AsyncFnOnce() -> Result<()>,
) -> Result<()> {
    let mut run = world.switch(order)?;
    let begun = |status: &Value| {
        let op = group(status, "g1").and_then(|group| group.get("op"));
        op.is_some() || owned_by(status, "g1", cell)
    };
    world.until("the switch has begun", begun).await?;
    meanwhile().await?;
    world
        .until(&format!("g1 owned by {cell}"), |status| {
            owned_by(status, "g1", cell)
        })
        .await?;
    // What was done may have ended the command's own connection; the facts are what counts.
    run.kill().ok();
    run.wait()?;
    Ok(())
}

/// Nothing acknowledged is lost or doubled, and something was acknowledged.
pub fn sound(report: &Value) -> Result<()> {
    let number = |name: &str| report.get(name).and_then(Value::as_u64);
    for name in ["lost", "duplicated", "altered", "strangers"] {
        ensure!(number(name) == Some(0), "{name}: {report}");
    }
    ensure!(report["conserved"] == true, "not conserved: {report}");
    let acknowledged = number("acknowledged");
    ensure!(acknowledged > Some(20), "too little was done: {report}");
    ensure!(
        number("present") == acknowledged,
        "not all is there: {report}"
    );
    Ok(())
}

impl Drop for Load {
    fn drop(&mut self) {
        // After `stop` there is nothing left to kill.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // A world that does not end is found by the next test's failure; its logs stay for a look.
        let down = self.dev("down", &[]);
        let failed = std::thread::panicking() || self.failed.load(Ordering::Relaxed);
        if down.is_ok() && !failed {
            std::fs::remove_dir_all(&self.dir).ok();
        }
    }
}
