//! Three nodes of a real etcd, each with an address of its own, as three cities of a world that no
//! `atoll dev` ever takes (its number is past the last).

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use atoll_runtime::{LinkRule, LinksFile, RealOptions, Runtime};
use atoll_store::{Etcd, Store};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep};

/// Two cores carry so many clusters at once.
static ROOM: Semaphore = Semaphore::const_new(2);
const WORLD: u8 = 251;
const NODES: u8 = 3;
/// Longest wait for any fact.
const LIMIT: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(50);

pub(crate) struct Cluster {
    dir: tempfile::TempDir,
    programs: atoll_programs::Etcd,
    nodes: Vec<Node>,
    _room: SemaphorePermit<'static>,
}

struct Node {
    client: SocketAddr,
    peer: SocketAddr,
    child: Option<Child>,
}

fn free(region: u8) -> SocketAddr {
    let ip = Ipv4Addr::new(127, WORLD, 16 * region, 1);
    let listener = TcpListener::bind((ip, 0)).unwrap();
    listener.local_addr().unwrap()
}

impl Cluster {
    /// Three nodes that serve.
    pub(crate) async fn start() -> Self {
        let room = ROOM.acquire().await.unwrap();
        let node = |at| Node {
            client: free(at + 1),
            peer: free(at + 1),
            child: None,
        };
        let mut cluster = Self {
            dir: tempfile::tempdir().unwrap(),
            programs: atoll_programs::etcd().expect("etcd"),
            nodes: (0..NODES).map(node).collect(),
            _room: room,
        };
        cluster.links(&[]);
        for at in 0..cluster.nodes.len() {
            cluster.run(at);
        }
        cluster.serves().await;
        cluster
    }

    /// Starts a node, or starts it again on what it has on disk.
    pub(crate) fn run(&mut self, at: usize) {
        let peer = |(at, node): (usize, &Node)| format!("n{at}=http://{}", node.peer);
        let all: Vec<_> = self.nodes.iter().enumerate().map(peer).collect();
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join(format!("n{at}.log")))
            .unwrap();
        let node = &mut self.nodes[at];
        let (client, peer) = (
            format!("http://{}", node.client),
            format!("http://{}", node.peer),
        );
        let data = self.dir.path().join(format!("n{at}"));
        let child = Command::new(&self.programs.etcd)
            .args(["--name", &format!("n{at}"), "--log-level", "warn"])
            .arg("--data-dir")
            .arg(data)
            .args(["--listen-client-urls", &client])
            .args(["--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &all.join(",")])
            .args(["--heartbeat-interval", "75", "--election-timeout", "750"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        node.child = Some(child);
    }

    fn signal(&self, at: usize, signal: Signal) {
        let child = self.nodes[at].child.as_ref().expect("it runs");
        kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
    }

    pub(crate) fn freeze(&self, at: usize) {
        self.signal(at, Signal::SIGSTOP);
    }

    pub(crate) fn thaw(&self, at: usize) {
        self.signal(at, Signal::SIGCONT);
    }

    pub(crate) fn kill(&mut self, at: usize) {
        let mut child = self.nodes[at].child.take().expect("it runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// As after a power loss of all cities.
    pub(crate) async fn crash(&mut self) {
        for at in 0..self.nodes.len() {
            self.kill(at);
        }
        for at in 0..self.nodes.len() {
            self.run(at);
        }
        self.serves().await;
    }

    fn links_file(&self) -> PathBuf {
        self.dir.path().join("links.json")
    }

    /// Cuts, silently, what these nodes send to the client; everything else arrives.
    pub(crate) fn links(&self, cut: &[usize]) {
        let region = |at: usize| format!("r{at}");
        let mut regions = vec!["outside".to_owned()];
        regions.extend((0..self.nodes.len()).map(region));
        let link = |at: &usize| LinkRule {
            from: region(*at),
            to: "outside".to_owned(),
            delay_ms: 0.0,
            jitter_ms: 0.0,
            cut: true,
        };
        let links = LinksFile {
            regions,
            links: cut.iter().map(link).collect(),
        };
        let half = self.dir.path().join("links.half");
        fs::write(&half, serde_json::to_vec(&links).unwrap()).unwrap();
        fs::rename(half, self.links_file()).unwrap();
    }

    /// A client outside the cities, node `first` its nearest.
    pub(crate) fn client(&self, first: usize) -> Etcd {
        let runtime = Runtime::real(RealOptions {
            source: Some(Ipv4Addr::new(127, WORLD, 0, 1).into()),
            links_file: Some(self.links_file()),
            ..RealOptions::default()
        });
        let mut endpoints: Vec<_> = self.nodes.iter().map(|node| node.client).collect();
        endpoints.rotate_left(first);
        Etcd::new(&runtime, &endpoints)
    }

    /// Waits until the cluster takes transactions.
    pub(crate) async fn serves(&self) {
        let (client, until) = (self.client(0), Instant::now() + LIMIT);
        while let Err(error) = client.get("/").await {
            assert!(Instant::now() < until, "{error}; {}", self.logs());
            sleep(LOOK).await;
        }
    }

    fn logs(&self) -> String {
        let log = |at| fs::read_to_string(self.dir.path().join(format!("n{at}.log")));
        (0..self.nodes.len())
            .filter_map(|at| log(at).ok())
            .collect()
    }

    /// Which node leads, as the nodes themselves say.
    pub(crate) async fn leader(&self) -> usize {
        let until = Instant::now() + LIMIT;
        loop {
            for (at, node) in self.nodes.iter().enumerate() {
                let output = tokio::process::Command::new(&self.programs.etcdctl)
                    .args(["endpoint", "status", "-w", "json", "--command-timeout=1s"])
                    .args(["--endpoints", &node.client.to_string()])
                    .output()
                    .await
                    .unwrap();
                let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
                let status = said.pointer("/0/Status");
                let leader = status.and_then(|status| status.get("leader"));
                let own = status.and_then(|status| status.pointer("/header/member_id"));
                if leader.is_some() && leader == own {
                    return at;
                }
            }
            assert!(Instant::now() < until, "no leader; {}", self.logs());
            sleep(LOOK).await;
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            if let Some(child) = &mut node.child {
                // Also one that is frozen.
                child.kill().ok();
                child.wait().ok();
            }
        }
    }
}
