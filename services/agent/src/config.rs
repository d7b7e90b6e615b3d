//! What an agent is told at its start. Unknown keys are refused.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use atoll_topology::{CellId, GroupId, MemberId, ProcessId};
use serde::Deserialize;

use crate::error::Error;

/// An agent's configuration file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Its name, `<group>-agent-<n>`.
    pub process: ProcessId,
    /// Its data group.
    pub group: GroupId,
    /// Its member.
    pub member: MemberId,
    /// The client port.
    pub sql: SocketAddr,
    /// Where other members call.
    pub calls: SocketAddr,
    /// Where other members take the log.
    pub replication: SocketAddr,
    /// Health and metrics.
    pub admin: SocketAddr,
    /// Its directory: promise, PostgreSQL's data, sockets.
    pub data: PathBuf,
    /// All replicas of control; each is dialed.
    pub control: Vec<SocketAddr>,
    /// All members of the group, this one included.
    pub members: BTreeMap<MemberId, Peer>,
    /// How many standbys a commit waits for.
    pub k: u8,
    /// Every cell of the world; their roles exist in every group.
    #[serde(default)]
    pub cells: Vec<CellId>,
    /// PostgreSQL's programs; the newest of Debian's when absent.
    #[serde(default)]
    pub postgres_bin: Option<PathBuf>,
    /// Where the template of an empty database is kept between members and worlds.
    #[serde(default)]
    pub templates: Option<PathBuf>,
    /// PostgreSQL's `shared_buffers`, in MiB.
    #[serde(default = "shared_buffers")]
    pub shared_buffers_mb: u32,
    /// PostgreSQL's sessions.
    #[serde(default = "connections")]
    pub connections_max: u32,
    /// For tests of crashes: the process kills itself when it gets there.
    #[serde(default)]
    pub fail_after: Option<FailPoint>,
}

/// Where another member is reached.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// Its calls port.
    pub calls: SocketAddr,
    /// Its replication port.
    pub replication: SocketAddr,
}

/// A place at which an agent can be made to die.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum FailPoint {
    /// As a member: a promise is durable, and not answered.
    #[serde(rename = "promise")]
    Promise,
    /// As a driver: the old primary is demoted.
    P3,
    /// As a driver: the target has replayed everything.
    P4,
    /// As a driver: the target is promoted.
    P5,
    /// As a driver: the opening transaction is acknowledged.
    P6,
    /// As a driver: the port is open, and control does not know.
    P7,
}

fn shared_buffers() -> u32 {
    16
}

fn connections() -> u32 {
    100
}

impl Config {
    /// Checks what one field cannot show.
    pub fn check(&self) -> Result<(), Error> {
        let wrong = |why: String| Err(Error::Config(why));
        if !self.members.contains_key(&self.member) {
            return wrong(format!(
                "`members` does not name this member, {}",
                self.member
            ));
        }
        if usize::from(self.k) >= self.members.len() {
            let others = self.members.len() - 1;
            return wrong(format!(
                "`k` is {}, and there are {others} other members",
                self.k
            ));
        }
        if self.control.is_empty() {
            return wrong("`control` is empty".into());
        }
        Ok(())
    }

    /// All members but this one.
    pub fn others(&self) -> Vec<MemberId> {
        self.members
            .keys()
            .filter(|id| **id != self.member)
            .cloned()
            .collect()
    }
}
