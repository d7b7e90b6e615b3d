//! P8's witness: for shards that come to this cell, reads on the primary that opens for them which
//! epoch it holds, and tells. Control publishes `Active` only after it has been told.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use atoll_routing::{Phase, Table};
use atoll_runtime::ScopedTask;
use atoll_streams::Opening;
use atoll_topology::{CellId, Epoch, GroupId, MemberId, ShardId, Term};
use bytes::Bytes;
use tokio::sync::watch;
use tracing::{debug, info};

use crate::app::Shared;
use crate::backend::{Backend, BackendError};
use crate::pool::Place;

/// What was read, by group.
type Read = BTreeMap<GroupId, Opening>;

/// Reads openings for as long as the table shows shards on their way to this cell.
pub(crate) struct Openings {
    shared: Arc<Shared>,
    read: watch::Sender<Read>,
    readers: Mutex<BTreeMap<GroupId, Reader>>,
}

struct Reader {
    awaited: Awaited,
    _task: ScopedTask<()>,
}

/// What is waited for in a group.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Awaited {
    group: GroupId,
    term: Term,
    member: MemberId,
    address: SocketAddr,
    shards: Vec<(ShardId, Epoch)>,
}

impl Openings {
    pub(crate) fn new(shared: Arc<Shared>) -> Arc<Self> {
        let (read, readers) = (watch::Sender::default(), Mutex::default());
        Arc::new(Self {
            shared,
            read,
            readers,
        })
    }

    pub(crate) fn changes(&self) -> watch::Receiver<Read> {
        self.read.subscribe()
    }

    /// A newer table.
    pub(crate) fn follow(self: &Arc<Self>, table: &Table) {
        let awaited = self.awaited(table);
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        readers.retain(|group, reader| awaited.get(group) == Some(&reader.awaited));
        self.read.send_if_modified(|read| {
            let before = read.len();
            read.retain(|group, _| readers.contains_key(group));
            read.len() != before
        });
        for (group, awaited) in awaited {
            readers.entry(group).or_insert_with(|| {
                let name = format!("opening-{}", awaited.group);
                let reading = witness(Arc::downgrade(self), awaited.clone());
                let task = self.shared.runtime.tasks().spawn(name, reading).scoped();
                Reader {
                    awaited,
                    _task: task,
                }
            });
        }
    }

    fn awaited(&self, table: &Table) -> BTreeMap<GroupId, Awaited> {
        let mut all: BTreeMap<GroupId, Awaited> = BTreeMap::new();
        for (number, row) in (0..).zip(&table.shards) {
            if row.phase == Phase::Active || row.cell != self.shared.cell {
                continue;
            }
            let shard = (ShardId(number), row.epoch);
            if let Some(awaited) = all.get_mut(&row.group) {
                awaited.shards.push(shard);
                continue;
            }
            let Some(group) = table.groups.get(&row.group) else {
                continue;
            };
            // Without a coming term it is an owner change in place, on the primary that is open.
            let Some((term, member)) = group.coming.as_ref().or(group.open.as_ref()) else {
                continue;
            };
            let Some(address) = group.members.get(member) else {
                continue;
            };
            let awaited = Awaited {
                group: row.group.clone(),
                term: *term,
                member: member.clone(),
                address: *address,
                shards: vec![shard],
            };
            all.insert(row.group.clone(), awaited);
        }
        all
    }
}

/// Reads until the primary holds what is waited for. Reads again at an interval, because nothing
/// tells a client of PostgreSQL that a row of another table has changed.
async fn witness(openings: Weak<Openings>, awaited: Awaited) {
    let Some(shared) = openings
        .upgrade()
        .map(|openings| Arc::clone(&openings.shared))
    else {
        return;
    };
    let place = Place::new(awaited.group.clone(), awaited.term, awaited.member.clone());
    let mut connection: Option<Backend> = None;
    loop {
        let mut backend = match connection.take() {
            Some(backend) => backend,
            // Without a limit of time: the member answers when it opens.
            None => match shared
                .pools
                .connect_patiently(&place, awaited.address)
                .await
            {
                Ok(backend) => backend,
                Err(error) => {
                    debug!(group = %awaited.group, %error, "the primary does not answer yet");
                    tokio::time::sleep(shared.limits.probe_interval()).await;
                    continue;
                }
            },
        };
        match read(&mut backend, &shared).await {
            Ok(found) => {
                connection = Some(backend);
                if found.is_enough(&awaited, &shared.cell) {
                    let Some(openings) = openings.upgrade() else {
                        return;
                    };
                    openings.tell(&awaited, found);
                    break;
                }
            }
            Err(error) => debug!(group = %awaited.group, %error, "the owners could not be read"),
        }
        tokio::time::sleep(shared.limits.probe_interval()).await;
    }
    if let Some(backend) = connection {
        shared.pools.give_back(backend);
    }
}

/// What a primary's log says.
struct Found {
    term: Term,
    primary: String,
    shards: BTreeMap<ShardId, (Epoch, String)>,
}

impl Found {
    fn is_enough(&self, awaited: &Awaited, cell: &CellId) -> bool {
        let older = |have: Epoch, want: Epoch| want.supersedes(have);
        self.term == awaited.term
            && self.primary == awaited.member.as_str()
            && awaited.shards.iter().all(|(shard, epoch)| {
                self.shards
                    .get(shard)
                    .is_some_and(|(have, owner)| !older(*have, *epoch) && owner == cell.as_str())
            })
    }
}

async fn read(backend: &mut Backend, shared: &Shared) -> Result<Found, BackendError> {
    // A member answers a start-up before it is open, and statements after: that is the wait.
    let limit = shared.limits.hold();
    let text = |bytes: Option<&Option<Bytes>>| {
        let bytes = bytes.and_then(Option::as_ref).map(|bytes| bytes.to_vec());
        bytes
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .unwrap_or_default()
    };
    let term = "SELECT term, \"primary\" FROM atoll.term ORDER BY term DESC LIMIT 1".to_owned();
    let own = backend.run(&[term], limit).await?;
    let row = own.rows.first();
    let term = text(row.and_then(|row| row.first())).parse().unwrap_or(0);
    let primary = text(row.and_then(|row| row.get(1)));
    let owners = "SELECT shard, epoch, cell FROM atoll.shard_owner".to_owned();
    let own = backend.run(&[owners], limit).await?;
    let mut shards = BTreeMap::new();
    for row in &own.rows {
        let shard = text(row.first()).parse();
        let epoch = text(row.get(1)).parse();
        if let (Ok(shard), Ok(epoch)) = (shard, epoch) {
            shards.insert(ShardId(shard), (Epoch::new(epoch), text(row.get(2))));
        }
    }
    Ok(Found {
        term: Term::new(term),
        primary,
        shards,
    })
}

impl Openings {
    fn tell(&self, awaited: &Awaited, found: Found) {
        let cell = self.shared.cell.as_str();
        let mine = found
            .shards
            .into_iter()
            .filter(|(_, (_, owner))| owner == cell);
        let opening = Opening {
            group: awaited.group.clone(),
            term: found.term,
            member: awaited.member.clone(),
            shards: mine.map(|(shard, (epoch, _))| (shard, epoch)).collect(),
        };
        info!(
            group = %opening.group, term = %opening.term, member = %opening.member,
            shards = opening.shards.len(), "read on the open primary"
        );
        self.read.send_modify(|read| {
            read.insert(opening.group.clone(), opening);
        });
    }
}
