//! When it goes wrong: what the client hears, and what the primary must be told, when a statement is
//! refused, a primary is lost, or a shard has moved.

use atoll_pgwire::backend::{Severity, Status};
use atoll_pgwire::frontend;
use atoll_routing::Phase;
use atoll_topology::{Epoch, ShardId};
use bytes::{Bytes, BytesMut};
use tracing::info;

use crate::error::Refusal;
use crate::forward::Weight;
use crate::identify::Committed;
use crate::session::{Expect, Purpose, Replay, Sent, Session, State, Stop, Unit};
use crate::side::Progress;

/// What we send to make a transaction fail on the primary as it has failed here. It is a syntax
/// error, and nothing else.
const FAIL: &[u8] = b"atoll: refused by the router";

/// How often one unit is sent again after its shard.
const TRIES_MAX: u8 = 3;

impl Session {
    /// The connection to the primary is gone.
    pub(crate) fn on_lost(&mut self, why: &str) {
        let Some(attached) = self.attached.take() else {
            return;
        };
        let why = format!("The primary was lost: {why}.");
        info!(shard = %attached.shard, group = %attached.backend.place.group, %why, "primary lost");
        drop(attached);
        if self.unit.may_commit && !self.unit.failed {
            self.shared.metrics.unknown.inc();
            self.unit.unknown = false;
            self.finish(&Refusal::OutcomeUnknown(why));
            return;
        }
        let repeat = Refusal::Repeat(why);
        let explicit = matches!(self.state, State::Begun(_) | State::Open(_));
        if !self.unit.sent && !self.unit.waiting {
            if explicit {
                self.state = State::Failed {
                    untold: Some(repeat),
                };
            }
            return;
        }
        self.no_replay();
        if !self.unit.failed || self.unit.denied.is_some() {
            repeat.put(&mut self.client.output, Severity::Error);
        }
        if explicit && !self.unit.may_commit {
            self.state = State::Failed { untold: None };
        } else {
            self.end_transaction(Committed::No);
        }
        if self.unit.waiting {
            self.put_ready();
            self.unit = Unit::default();
        } else {
            self.unit = Unit {
                failed: true,
                ..Unit::default()
            };
        }
    }

    /// Before something is sent on a connection that was left alone: is it still there? What is
    /// not sent on a dead one is not of unknown outcome.
    pub(crate) fn notice_loss(&mut self) {
        loop {
            self.take_answers();
            let Some(attached) = &mut self.attached else {
                return;
            };
            match attached.backend.side.progress_now() {
                None => return,
                Some(Ok(Progress::Read | Progress::Wrote)) => {}
                Some(Ok(Progress::Closed)) => self.on_lost("the connection was closed"),
                Some(Err(error)) => self.on_lost(&error.to_string()),
            }
        }
    }

    /// Tells the refusal and ends the unit, outside of any transaction.
    pub(crate) fn finish(&mut self, refusal: &Refusal) {
        self.no_replay();
        self.end_transaction(Committed::No);
        refusal.put(&mut self.client.output, Severity::Error);
        if self.unit.waiting {
            self.put_ready();
            self.unit = Unit::default();
        } else {
            self.unit = Unit {
                failed: true,
                ..Unit::default()
            };
        }
    }

    /// Refuses a Query. Where a primary is in a transaction it must fail there too.
    pub(crate) fn refuse_query(&mut self, refusal: Refusal) {
        if self.is_engaged() {
            let mut bytes = BytesMut::new();
            frontend::put_query(&mut bytes, FAIL);
            self.unit.instead = Some(refusal);
            self.unit.waiting = true;
            self.send(Sent {
                needs: None,
                bytes: bytes.freeze(),
                expects: vec![Expect::Query],
            });
        } else {
            refusal.put(&mut self.client.output, Severity::Error);
            self.fail_begun();
            self.put_ready();
            self.unit = Unit::default();
        }
    }

    /// Refuses a message of a unit that goes on until its Sync.
    pub(crate) fn refuse_message(&mut self, refusal: Refusal) {
        if self.is_engaged() {
            let mut bytes = BytesMut::new();
            frontend::put_parse(&mut bytes, b"", FAIL, &[]);
            self.unit.instead = Some(refusal);
            let expects = vec![Expect::Parse(u64::MAX)];
            self.send(Sent {
                needs: None,
                bytes: bytes.freeze(),
                expects,
            });
        } else {
            self.reply(error(&refusal));
            self.fail_begun();
        }
        self.unit.failed = true;
    }

    /// "permission denied" for something in a shard: has the shard moved? Then what was not
    /// executed is sent to where it is now, and the rest may be repeated by the client.
    pub(crate) async fn after_denial(&mut self) -> Result<(), Stop> {
        let Some(denied) = self.unit.denied.take() else {
            return Ok(());
        };
        let State::Open(status) = self.state else {
            return Ok(());
        };
        let Some(attached) = &self.attached else {
            return Ok(());
        };
        let (shard, place) = (attached.shard, attached.backend.place.clone());
        let address = attached.backend.address;
        let owner = self.shared.owner(&place, address, shard).await;
        let moved = owner.filter(|(_, epoch)| self.has_moved(shard, *epoch));
        let Some((cell, epoch)) = moved else {
            self.emit(&denied, Weight::Result);
            self.end_unit(status);
            return Ok(());
        };
        info!(%shard, owner = %cell, %epoch, "the shard has moved; its table is behind");
        self.shared.gates.await_epoch(shard, epoch);
        let replay = self
            .unit
            .replay
            .take()
            .filter(|replay| replay.tries < TRIES_MAX);
        let Some(Replay {
            before,
            sent,
            tries,
            ..
        }) = replay
        else {
            let why = format!("Shard {shard} has moved to cell {cell}.");
            self.emit(&error(&Refusal::Repeat(why)), Weight::Result);
            self.end_unit(status);
            return Ok(());
        };
        self.unit.staged.clear();
        self.unit.failed = false;
        if status == Status::Idle {
            self.release();
        } else {
            self.roll_back_attached().await;
        }
        self.state = before;
        match self.attach(shard, Purpose::Execute).await {
            Ok(()) => {
                if let Some(replay) = &mut self.unit.replay {
                    replay.tries = tries + 1;
                }
                sent.into_iter().for_each(|sent| self.send(sent));
                Ok(())
            }
            Err(Stop::Refused(refusal)) => {
                refusal.put(&mut self.client.output, Severity::Error);
                self.fail_begun();
                if !matches!(self.state, State::Failed { .. }) {
                    self.end_transaction(Committed::No);
                }
                self.put_ready();
                self.unit = Unit::default();
                Ok(())
            }
            Err(Stop::Gone) => Err(Stop::Gone),
        }
    }

    /// Whether the table is behind the database, or on its way: otherwise "permission denied" has
    /// nothing to do with owners.
    fn has_moved(&self, shard: ShardId, epoch: Epoch) -> bool {
        let table = self.shared.gates.table();
        table.shard(shard).is_some_and(|row| {
            epoch.supersedes(row.epoch)
                || row.phase != Phase::Active
                || row.cell != self.shared.cell
        })
    }

    async fn roll_back_attached(&mut self) {
        let Some(mut attached) = self.attached.take() else {
            return;
        };
        let limit = self.shared.limits.own_statement();
        let rolled_back = attached.backend.run(&["ROLLBACK".to_owned()], limit).await;
        if rolled_back.is_ok() {
            self.shared.pools.give_back(attached.backend);
        }
    }
}

/// The refusal as a message.
pub(crate) fn error(refusal: &Refusal) -> Bytes {
    let mut out = BytesMut::new();
    refusal.put(&mut out, Severity::Error);
    out.freeze()
}
