//! The streams to control, one to each replica: orders come down, reports go up. Any replica may
//! order, and all of them hear everything. Without control the member goes on as it is; each stream
//! is opened again for ever.

use std::sync::Arc;

use atoll_ownership::OpKind;
use atoll_runtime::Runtime;
use atoll_streams::agent::{AgentReport, MemberStatus, Order, ReportBody};
use atoll_streams::proto::agent as wire;
use atoll_streams::proto::agent::control_client::ControlClient;
use atoll_topology::{GroupId, MemberId, ProcessId};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::{Duration, MissedTickBehavior, interval, sleep};
use tokio_stream::wrappers::ReceiverStream;
use tracing::{debug, info, warn};

use crate::actor::{Command, Handle};
use crate::beats::{BEAT_INTERVAL, Beats};
use crate::config::Config;
use crate::driving::Driving;
use crate::gate::Gate;
use crate::leading::Cascade;
use crate::postgres::Postgres;
use crate::protocol::Seen;

/// Before a replica that was lost is dialed again.
const AGAIN: Duration = Duration::from_millis(200);

/// Reports that wait for a slow stream.
const REPORTS_WAITING_MAX: usize = 16;
/// Reports that wait for the slowest replica; beyond it, that one misses the oldest.
const OUTBOX_WAITING_MAX: usize = 64;

/// Everything that a report is made of and an order acts upon.
pub(crate) struct ToControl {
    pub(crate) runtime: Runtime,
    pub(crate) process: ProcessId,
    pub(crate) group: GroupId,
    pub(crate) member: MemberId,
    pub(crate) actor: Handle,
    pub(crate) seen: watch::Receiver<Seen>,
    pub(crate) beats: Arc<Beats>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) postgres: Arc<dyn Postgres>,
    pub(crate) driving: Arc<Driving>,
    pub(crate) cascade: Cascade,
    /// Into the channel that `run` empties.
    pub(crate) reports: mpsc::Sender<ReportBody>,
}

impl ToControl {
    /// Dials every replica until shutdown.
    pub(crate) fn run(self: Arc<Self>, config: &Config, outbox: mpsc::Receiver<ReportBody>) {
        let (all, _) = broadcast::channel(OUTBOX_WAITING_MAX);
        for at in config.control.clone() {
            let (this, mut reports) = (self.clone(), all.subscribe());
            self.until_shutdown(format!("to-control {at}"), async move {
                loop {
                    let client = ControlClient::new(this.runtime.grpc_channel(at));
                    this.connected(client, &mut reports).await;
                    sleep(AGAIN).await;
                    // The next stream begins with status and the last progress; other answers that
                    // were missed are lost, and control asks again.
                    reports = reports.resubscribe();
                }
            });
        }
        let mut outbox = outbox;
        self.until_shutdown("reports".to_owned(), async move {
            while let Some(report) = outbox.recv().await {
                // Nobody may be there to hear it.
                drop(all.send(report));
            }
        });
    }

    fn until_shutdown(&self, name: String, work: impl Future<Output = ()> + Send + 'static) {
        let shutdown = self.runtime.shutdown();
        self.runtime.tasks().spawn(name, async move {
            tokio::select! {
                () = work => {}
                () = shutdown.requested() => {}
            }
        });
    }

    /// One stream, from its first report to its loss.
    async fn connected(
        &self,
        mut client: ControlClient<tonic::transport::Channel>,
        outbox: &mut broadcast::Receiver<ReportBody>,
    ) {
        let (sender, reports) = mpsc::channel(REPORTS_WAITING_MAX);
        if sender.try_send(self.report(self.status())).is_err() {
            return;
        }
        let mut orders = match client.agent(ReceiverStream::new(reports)).await {
            Ok(orders) => orders.into_inner(),
            Err(error) => {
                debug!(%error, "control cannot be reached");
                return;
            }
        };
        info!(member = %self.member, "connected to control");
        let mut ticks = interval(BEAT_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut view = self.actor.view.clone();
        let mut next = self.driving.last();
        loop {
            if let Some(body) = next.take()
                && sender.send(self.report(body)).await.is_err()
            {
                return;
            }
            tokio::select! {
                order = orders.message() => match order {
                    Ok(Some(message)) => match Order::try_from(message) {
                        Ok(order) => self.obey(order).await,
                        Err(error) => warn!(%error, "an order that is none"),
                    },
                    Ok(None) => return,
                    Err(error) => {
                        info!(%error, "control lost");
                        return;
                    }
                },
                body = outbox.recv() => match body {
                    Ok(body) => next = Some(body),
                    // It was slow: the last step of the op is what counts.
                    Err(broadcast::error::RecvError::Lagged(_)) => next = self.driving.last(),
                    Err(broadcast::error::RecvError::Closed) => return,
                },
                changed = view.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    next = Some(self.status());
                }
                _ = ticks.tick() => next = Some(self.status()),
            }
        }
    }

    fn report(&self, body: ReportBody) -> wire::AgentReport {
        wire::AgentReport::from(&AgentReport {
            process: self.process.clone(),
            group: self.group.clone(),
            member: self.member.clone(),
            unix_ms: self.runtime.wall_clock().0,
            body,
        })
    }

    fn status(&self) -> ReportBody {
        let view = self.actor.view.borrow().clone();
        let (seen, hindrances) = (*self.seen.borrow(), self.postgres.hindrances());
        ReportBody::Status(MemberStatus {
            promise: view.promise,
            role: view.role,
            volume: view.volume,
            position: seen.end,
            led: view.led,
            open: self.gate.open_term(),
            upstream: view.upstream,
            heard: self.beats.heard(),
            exit: view.exit,
            replay_lag_bytes: seen.replay_lag_bytes,
            oldest_transaction_ms: hindrances.oldest_transaction_ms,
            broken_privilege: hindrances.broken_privilege,
        })
    }

    async fn obey(&self, order: Order) {
        match order {
            Order::Admit {
                group,
                member,
                volume,
            } => {
                if group == self.group && member == self.member {
                    // The actor is gone only when the process ends.
                    drop(self.actor.send(Command::Admit { volume }).await);
                }
            }
            Order::Drive(order) => {
                if order.kind == OpKind::CallOff {
                    self.cascade.end();
                }
                self.driving.drive(order);
            }
            Order::StandDown { group, term, op } => {
                if group == self.group {
                    self.driving.stand_down(term, &op);
                }
            }
            Order::Cascade {
                group,
                term,
                through,
            } => {
                if group == self.group {
                    self.cascade.order(term, through);
                }
            }
            Order::ApplySchema { id, sql, shards } => {
                let (postgres, reports) = (self.postgres.clone(), self.reports.clone());
                self.runtime.tasks().spawn("apply-schema", async move {
                    let applied = postgres.apply_schema(id, sql, shards).await;
                    // Lost with the stream: control orders it again.
                    drop(reports.send(ReportBody::SchemaApplied(applied)).await);
                });
            }
            Order::HashRows {
                id,
                shards,
                at_least,
            } => {
                let (postgres, reports) = (self.postgres.clone(), self.reports.clone());
                self.runtime.tasks().spawn("hash-rows", async move {
                    let hashed = postgres.hash_rows(id, shards, at_least).await;
                    drop(reports.send(ReportBody::RowsHashed(hashed)).await);
                });
            }
        }
    }
}
