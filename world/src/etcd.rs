//! A node of etcd in a local world: the parent of its process, and the door between it and the
//! world's links.
//!
//! etcd's sockets are its own, so the links (delay, silent cuts) cannot be applied to them. Its ports
//! are therefore inner ones; what comes from outside goes through a relay that applies the links,
//! and so does what it sends to the other nodes: they have names that only a proxy of ours, in its
//! environment, can reach.

mod relay;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use atoll_hosts::{ProcessRef, Running, Spec, below_directory, kill, spawn, terminate, wait_gone};
use atoll_runtime::Runtime;
use atoll_topology::ProcessId;
use serde::Deserialize;
use thiserror::Error;
use tokio::time::sleep;
use tracing::{info, warn};

/// Where the others reach a node.
const PEER_PORT: u16 = 2380;
/// Where etcd itself takes clients.
const INNER_CLIENT_PORT: u16 = 12_379;
/// Where etcd itself takes the other nodes.
const INNER_PEER_PORT: u16 = 12_380;
/// Where it finds the way to the other nodes.
const PROXY_PORT: u16 = 12_381;
/// How often a node that is not ready yet is looked at: it has no way to say that it is.
const LOOK: Duration = Duration::from_millis(20);
/// How long it may take to end.
const DRAIN_LIMIT: Duration = Duration::from_secs(3);

/// What a node is told at its start. Unknown keys are refused.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EtcdConfig {
    /// Its name.
    pub process: ProcessId,
    /// etcd's server program.
    pub program: PathBuf,
    /// Where control's replicas reach it.
    pub client: SocketAddr,
    /// Where the other nodes reach it.
    pub peer: SocketAddr,
    /// Its directory.
    pub data: PathBuf,
    /// Where etcd's own log goes.
    pub log: PathBuf,
    /// All nodes, this one included, with their peer addresses.
    pub members: BTreeMap<ProcessId, SocketAddr>,
}

/// Why a node does not run.
#[derive(Debug, Error)]
pub enum EtcdError {
    /// An address is taken.
    #[error("cannot listen on {at}")]
    Listen {
        /// Where.
        at: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// It does not start.
    #[error(transparent)]
    Start(#[from] atoll_hosts::SpawnError),
    /// A leftover of it, or itself, cannot be ended or waited for.
    #[error("etcd's process cannot be looked after")]
    Process(#[from] std::io::Error),
    /// It ended by itself.
    #[error("etcd {how}; see {}", log.display())]
    Ended {
        /// How.
        how: String,
        /// Its log.
        log: PathBuf,
    },
}

/// Runs one node until the runtime is told to end; `ready` is called once it takes connections. Whether
/// it can answer them depends on how many of the others are there, and it must not wait for those.
pub async fn serve_etcd(
    config: EtcdConfig,
    runtime: Runtime,
    ready: impl FnOnce(&str),
) -> Result<(), EtcdError> {
    clear(&config).await?;
    let ip = config.client.ip();
    relay::inward(
        &runtime,
        config.client,
        SocketAddr::new(ip, INNER_CLIENT_PORT),
    )
    .await?;
    relay::inward(&runtime, config.peer, SocketAddr::new(ip, INNER_PEER_PORT)).await?;
    let members = config.members.iter();
    let ways = members.map(|(name, at)| (name.to_string(), *at)).collect();
    relay::outward(&runtime, SocketAddr::new(ip, PROXY_PORT), ways).await?;
    let mut node = spawn(&spec(&config, ip))?;
    let shutdown = runtime.shutdown();
    let listens = async {
        while runtime
            .connect_plain(SocketAddr::new(ip, INNER_CLIENT_PORT))
            .await
            .is_err()
        {
            sleep(LOOK).await;
        }
    };
    let ended = tokio::select! {
        ended = node.wait() => Some(ended?),
        () = shutdown.requested() => None,
        () = listens => {
            ready(&format!("client={} peer={}", config.client, config.peer));
            info!(process = %config.process, "etcd takes connections");
            tokio::select! {
                ended = node.wait() => Some(ended?),
                () = shutdown.requested() => None,
            }
        }
    };
    match ended {
        Some(how) => Err(EtcdError::Ended {
            how: how.to_string(),
            log: config.log,
        }),
        None => end(node).await,
    }
}

/// Ends what an earlier life left behind: it would hold the data.
async fn clear(config: &EtcdConfig) -> Result<(), EtcdError> {
    let own = ProcessRef::own();
    let mut left = below_directory(&config.data)?;
    left.retain(|process| Some(*process) != own);
    let left = kill(&left)?;
    wait_gone(&left, DRAIN_LIMIT)
        .await
        .map_err(std::io::Error::other)?;
    Ok(())
}

fn spec(config: &EtcdConfig, ip: IpAddr) -> Spec {
    let name = config.process.to_string();
    let url = |port| format!("http://{}", SocketAddr::new(ip, port));
    let peer = |name: &str| format!("http://{name}:{PEER_PORT}");
    let all = config.members.keys();
    let all: Vec<_> = all
        .map(|id| format!("{id}={}", peer(id.as_str())))
        .collect();
    let data = config.data.join("etcd").display().to_string();
    let flags = [
        ("--name", name.clone()),
        ("--data-dir", data),
        ("--listen-client-urls", url(INNER_CLIENT_PORT)),
        (
            "--advertise-client-urls",
            format!("http://{}", config.client),
        ),
        ("--listen-peer-urls", url(INNER_PEER_PORT)),
        ("--initial-advertise-peer-urls", peer(&name)),
        ("--initial-cluster", all.join(",")),
        // Cities are some milliseconds apart; an election is to take about a second.
        ("--heartbeat-interval", "75".to_owned()),
        ("--election-timeout", "750".to_owned()),
        ("--auto-compaction-mode", "revision".to_owned()),
        ("--auto-compaction-retention", "10000".to_owned()),
        ("--log-level", "warn".to_owned()),
    ];
    Spec {
        program: config.program.clone(),
        args: flags
            .into_iter()
            .flat_map(|(flag, value)| [flag.to_owned(), value])
            .collect(),
        env: vec![
            ("HTTP_PROXY".to_owned(), url(PROXY_PORT)),
            ("NO_PROXY".to_owned(), String::new()),
        ],
        directory: config.data.clone(),
        output: config.data.join("etcd.out"),
        log: config.log.clone(),
    }
}

async fn end(mut node: Running) -> Result<(), EtcdError> {
    let process = [node.process()];
    terminate(&process)?;
    if tokio::time::timeout(DRAIN_LIMIT, node.wait())
        .await
        .is_err()
    {
        warn!("etcd did not end in time and is killed");
        kill(&process)?;
        node.wait().await?;
    }
    Ok(())
}
