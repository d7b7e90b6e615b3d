//! From a key to a connection: which shard, whether it may begin now, where its primary is, and a
//! connection that is ready for it.

use std::sync::Arc;

use atoll_pgwire::backend::{Status, put_parameter_status};
use atoll_pgwire::frontend::Bind;
use atoll_pgwire::hint::Hint;
use atoll_routing::{Phase, Table, home};
use atoll_topology::ShardId;
use bytes::{Bytes, BytesMut};
use tokio::time::{Instant, timeout_at};
use tracing::debug;

use crate::backend::{Backend, BackendError};
use crate::error::Refusal;
use crate::gate::{Entry, Pass};
use crate::identify;
use crate::pool::{NoBackend, Place};
use crate::session::{Attached, Purpose, Replay, Session, State, Stop};
use crate::side::{Progress, Reading, Side};

/// Connections that may turn out to be dead when they are prepared for a transaction, before the
/// primary itself is suspected.
const DEAD_CONNECTIONS_MAX: usize = 3;

impl Session {
    /// The shard that a statement means.
    pub(crate) fn shard(
        &self,
        hint: Option<&Hint>,
        bind: Option<(&Bind, &[u32])>,
    ) -> Result<ShardId, Refusal> {
        let hinted = identify::hinted(hint, bind)?;
        match hinted.as_ref().or_else(|| self.keys.current()) {
            Some(user) => identify::shard(&self.shared.gates.table(), user),
            None => match &self.attached {
                Some(attached) if attached.purpose == Purpose::Execute => Ok(attached.shard),
                _ => Err(Refusal::NoKey),
            },
        }
    }

    /// A shard whose tables look like all others': to learn the types of a statement whose key is
    /// not known yet.
    pub(crate) fn any_shard(&self) -> Result<ShardId, Refusal> {
        if let Some(user) = self.keys.current() {
            return identify::shard(&self.shared.gates.table(), user);
        }
        let table = self.shared.gates.table();
        let mine = |active: bool| {
            (0..).zip(&table.shards).find_map(|(number, row)| {
                let fits = row.cell == self.shared.cell && (row.phase == Phase::Active) == active;
                fits.then_some(ShardId(number))
            })
        };
        mine(true).or_else(|| mine(false)).ok_or(Refusal::NoKey)
    }

    /// Has a connection for `shard`, held as long as the transaction lasts.
    pub(crate) async fn attach(&mut self, shard: ShardId, purpose: Purpose) -> Result<(), Stop> {
        match &self.attached {
            Some(_) if purpose == Purpose::Describe => return Ok(()),
            Some(attached) if attached.purpose == Purpose::Execute => {
                let held = attached.shard;
                let same = held == shard;
                let refusal = Refusal::TwoShards { held, asked: shard };
                return if same { Ok(()) } else { Err(refusal.into()) };
            }
            Some(_) => {
                self.finish_describing().await?;
                if self.unit.failed {
                    return Ok(());
                }
            }
            None => {}
        }
        let (backend, pass) = self.ready_connection(shard, purpose).await?;
        self.attached = Some(Attached {
            backend,
            shard,
            purpose,
            expects: std::collections::VecDeque::new(),
            idle_since: Instant::now(),
            _pass: pass,
        });
        if purpose == Purpose::Execute {
            let before = self.state.clone();
            if matches!(before, State::Begun(_)) {
                self.state = State::Open(Status::Transaction);
            }
            self.unit.replay = Some(Replay {
                before,
                sent: Vec::new(),
                bytes: 0,
                tries: 0,
            });
        }
        self.tell_parameters();
        Ok(())
    }

    /// A connection that has the shard's schema, the client's settings and its BEGIN. As long as
    /// nothing of the client's was sent, another connection can be tried.
    async fn ready_connection(
        &mut self,
        shard: ShardId,
        purpose: Purpose,
    ) -> Result<(Backend, Pass), Stop> {
        let shared = Arc::clone(&self.shared);
        let began = Instant::now();
        let mut dead = 0;
        loop {
            let (mut backend, pass) = self.enter(shard, began).await?;
            let place = backend.place.clone();
            let ready = tokio::select! {
                ready = self.make_ready(&mut backend, shard, purpose) => ready,
                () = shared.outdated(place.clone(), shard) => continue,
            };
            match ready {
                Ok(()) => return Ok((backend, pass)),
                Err(Unready::Refused(refusal)) => return Err(refusal.into()),
                Err(Unready::Lost(error)) => {
                    debug!(%shard, %error, "a connection was dead");
                    dead += 1;
                    let silent = matches!(error, BackendError::Silent(_));
                    if silent || dead >= DEAD_CONNECTIONS_MAX {
                        drop(pass);
                        shared.suspect(shard, &place.group);
                        dead = 0;
                    }
                }
            }
        }
    }

    /// Waits until the shard's gate is open and its primary gives a connection.
    async fn enter(&mut self, shard: ShardId, began: Instant) -> Result<(Backend, Pass), Stop> {
        let deadline = began + self.shared.limits.hold();
        let foreign_deadline = began + self.shared.limits.foreign_shard_wait();
        let shared = Arc::clone(&self.shared);
        let mut changes = shared.gates.changes();
        let mut waiting: Option<Pass> = None;
        loop {
            changes.mark_unchanged();
            let (until, late) = match shared.gates.enter(shard) {
                Entry::Go(table, pass) => match self.connection(&table, shard, deadline).await? {
                    Some(backend) => {
                        if waiting.is_some() {
                            shared
                                .metrics
                                .hold_seconds
                                .observe(began.elapsed().as_secs_f64());
                        }
                        return Ok((backend, pass));
                    }
                    None => (
                        deadline,
                        Refusal::Held {
                            shard,
                            waited: began.elapsed(),
                        },
                    ),
                },
                Entry::Wait => (
                    deadline,
                    Refusal::Held {
                        shard,
                        waited: began.elapsed(),
                    },
                ),
                Entry::Unplaced => (deadline, Refusal::Unplaced(shard)),
                Entry::Foreign(owner) => {
                    let here = shared.cell.clone();
                    (foreign_deadline, Refusal::NotOwner { shard, owner, here })
                }
            };
            if waiting.is_none() {
                let limit = shared.limits.held_max;
                shared.metrics.held.inc();
                waiting = Some(shared.gates.hold(shard, limit).ok_or(Refusal::Limit {
                    name: "held_max",
                    limit,
                })?);
            }
            let changed = timeout_at(until, changes.changed());
            match watching(&mut self.client, shared.limits.buffer_bytes, changed).await? {
                Ok(_) => {}
                Err(_) => return Err(late_refusal(late, began).into()),
            }
            if shared.runtime.shutdown().is_requested() {
                return Err(Refusal::ShuttingDown.into());
            }
        }
    }

    /// A connection to the shard's open primary; `None` when it has to be waited for.
    async fn connection(
        &mut self,
        table: &Table,
        shard: ShardId,
        deadline: Instant,
    ) -> Result<Option<Backend>, Stop> {
        let shared = Arc::clone(&self.shared);
        let Ok(home) = home(table, shard) else {
            return Ok(None);
        };
        let place = Place::new(home.group.clone(), home.term, home.primary.clone());
        let take = shared
            .pools
            .take(&place, home.address, Some(shard), deadline);
        let take = async {
            tokio::select! {
                taken = take => Some(taken),
                () = shared.outdated(place.clone(), shard) => None,
            }
        };
        let taken = watching(&mut self.client, shared.limits.buffer_bytes, take).await?;
        let Some(taken) = taken else { return Ok(None) };
        match taken {
            Ok(backend) => Ok(Some(backend)),
            Err(NoBackend::Busy) => {
                let limit = shared.limits.connections_per_group_max;
                Err(Refusal::Limit {
                    name: "connections_per_group_max",
                    limit,
                }
                .into())
            }
            Err(NoBackend::Unreachable(error)) => {
                debug!(%shard, group = %place.group, %error, "the open primary gives no connection");
                shared.suspect(shard, &place.group);
                Ok(None)
            }
        }
    }

    /// Gives the connection the shard's schema, the client's settings and, for a transaction, its
    /// BEGIN. All of it is answered before anything of the client's is sent: were one of them to
    /// fail, a statement would run in another shard or outside of its transaction.
    async fn make_ready(
        &mut self,
        backend: &mut Backend,
        shard: ShardId,
        purpose: Purpose,
    ) -> Result<(), Unready> {
        let limit = self.shared.limits.own_statement();
        let mut statements = Vec::new();
        if backend.shard != Some(shard) {
            statements.push(format!("SET search_path = {}", shard.schema()));
        }
        for name in backend.settings.keys() {
            if !self.settings.session.contains_key(name) {
                statements.push(format!("RESET {}", quoted(name)));
            }
        }
        let changed = |(name, statement): &(&String, &String)| {
            backend.settings.get(*name) != Some(*statement)
        };
        let new: Vec<(String, String)> = (self.settings.session.iter().filter(changed))
            .map(|(name, statement)| (name.clone(), statement.clone()))
            .collect();
        for (name, statement) in new {
            // One by one: only so can the one that fails be told apart and dropped.
            match backend.run(std::slice::from_ref(&statement), limit).await {
                Ok(_) => drop(backend.settings.insert(name, statement)),
                Err(BackendError::Said { sqlstate, message }) => {
                    self.settings.session.remove(&name);
                    let what = "A setting made earlier was refused now";
                    return Err(Unready::Refused(Refusal::Setting {
                        what,
                        sqlstate,
                        message,
                    }));
                }
                Err(error) => return Err(Unready::Lost(error)),
            }
        }
        let mut begins = false;
        if purpose == Purpose::Execute
            && let State::Begun(list) = &self.state
        {
            begins = true;
            statements.extend(list.iter().cloned());
        }
        if !statements.is_empty() {
            let own = match backend.run(&statements, limit).await {
                Ok(own) => own,
                Err(BackendError::Said { sqlstate, message }) => {
                    let what = "The transaction could not be begun";
                    return Err(Unready::Refused(Refusal::Setting {
                        what,
                        sqlstate,
                        message,
                    }));
                }
                Err(error) => return Err(Unready::Lost(error)),
            };
            let expected = if begins {
                Status::Transaction
            } else {
                Status::Idle
            };
            if own.status != expected {
                return Err(Unready::Lost(BackendError::Confused));
            }
        }
        backend.shard = Some(shard);
        backend
            .settings
            .retain(|name, _| self.settings.session.contains_key(name));
        Ok(())
    }

    /// Tells the client what is different about the session that it has now.
    fn tell_parameters(&mut self) {
        let Some(attached) = &self.attached else {
            return;
        };
        for (name, value) in &attached.backend.parameters {
            if !is_ours(name) && self.told.get(name) != Some(value) {
                put_parameter_status(&mut self.client.output, name, value);
                self.told.insert(name.clone(), value.clone());
            }
        }
    }
}

enum Unready {
    Refused(Refusal),
    Lost(BackendError),
}

fn late_refusal(refusal: Refusal, began: Instant) -> Refusal {
    match refusal {
        Refusal::Held { shard, .. } => Refusal::Held {
            shard,
            waited: began.elapsed(),
        },
        other => other,
    }
}

/// A setting's name in SQL: each of its parts in quotes.
pub(crate) fn quoted(name: &str) -> String {
    let parts = name
        .split('.')
        .map(|part| format!("\"{}\"", part.replace('"', "\"\"")));
    parts.collect::<Vec<_>>().join(".")
}

/// Waits for `wait` and meanwhile serves the client's connection: a client that goes away leaves
/// the queue.
async fn watching<T>(
    client: &mut Side,
    limit: usize,
    wait: impl Future<Output = T>,
) -> Result<T, Stop> {
    let gone = async {
        loop {
            let reading = if client.input.len() < limit {
                Reading::Wanted
            } else {
                Reading::Paused
            };
            match client.progress(reading).await {
                Ok(Progress::Read | Progress::Wrote) => {}
                Ok(Progress::Closed) | Err(_) => return,
            }
        }
    };
    tokio::select! {
        biased;
        done = wait => Ok(done),
        () = gone => Err(Stop::Gone),
    }
}

/// A message without a body.
pub(crate) fn empty(tag: u8) -> Bytes {
    let mut out = BytesMut::new();
    atoll_pgwire::backend::put_empty(&mut out, tag);
    out.freeze()
}

/// Parameters of a session that clients are told by the router itself: they are about the client,
/// or change when a connection that was opened ahead becomes a primary's.
pub(crate) fn is_ours(parameter: &str) -> bool {
    matches!(
        parameter,
        "application_name"
            | "session_authorization"
            | "is_superuser"
            | "in_hot_standby"
            | "default_transaction_read_only"
    )
}
