//! A simulated member's stream to control: the real agents' wire.

use std::net::SocketAddr;
use std::sync::Arc;

use atoll_runtime::Runtime;
use atoll_streams::agent::{
    AgentReport, MemberStatus, Order, PostgresExit, ReportBody, RowsHashed, SchemaApplied,
};
use atoll_streams::proto::agent as wire;
use atoll_streams::proto::agent::control_client::ControlClient;
use atoll_topology::{Lsn, ProcessId};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::{Duration, MissedTickBehavior, interval, sleep};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::actor::{Command, Handle};
use super::beats::{BEAT_INTERVAL, Beats};
use super::driving::Driving;
use super::leading::Cascade;
use super::port::Port;

/// Before the next control is tried.
const AGAIN: Duration = Duration::from_millis(200);
/// Reports that wait for the streams.
const OUTBOX_MAX: usize = 64;
/// Reports that wait for a slow stream.
const REPORTS_WAITING_MAX: usize = 16;

/// Everything that a report is made of and an order acts upon.
pub(crate) struct ToControl {
    pub(crate) runtime: Runtime,
    pub(crate) process: ProcessId,
    pub(crate) actor: Handle,
    pub(crate) beats: Arc<Beats>,
    pub(crate) port: Arc<Port>,
    pub(crate) driving: Arc<Driving>,
    pub(crate) reports: mpsc::Sender<ReportBody>,
    pub(crate) cascade: Cascade,
    pub(crate) exit: watch::Receiver<Option<PostgresExit>>,
}

impl ToControl {
    /// A stream to each replica, for ever: any of them may act.
    pub(crate) fn run(
        self: Arc<Self>,
        controls: Vec<SocketAddr>,
        mut outbox: mpsc::Receiver<ReportBody>,
    ) {
        let (all, _) = broadcast::channel(OUTBOX_MAX);
        for at in controls {
            let (this, mut reports) = (self.clone(), all.subscribe());
            self.runtime
                .tasks()
                .spawn(format!("to-control {at}"), async move {
                    loop {
                        let client = ControlClient::new(this.runtime.grpc_channel(at));
                        this.connected(client, &mut reports).await;
                        sleep(AGAIN).await;
                        reports = reports.resubscribe();
                    }
                });
        }
        self.runtime.tasks().spawn("reports", async move {
            while let Some(report) = outbox.recv().await {
                // Nobody may be there to hear it.
                drop(all.send(report));
            }
        });
    }

    async fn connected(
        &self,
        mut client: ControlClient<Channel>,
        outbox: &mut broadcast::Receiver<ReportBody>,
    ) {
        let (sender, reports) = mpsc::channel(REPORTS_WAITING_MAX);
        if sender.try_send(self.report(self.status())).is_err() {
            return;
        }
        let Ok(orders) = client.agent(ReceiverStream::new(reports)).await else {
            return;
        };
        let mut orders = orders.into_inner();
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
                    Ok(Some(message)) => if let Ok(order) = Order::try_from(message) {
                        self.obey(order).await;
                    },
                    Ok(None) | Err(_) => return,
                },
                body = outbox.recv() => next = match body {
                    Ok(body) => Some(body),
                    // It was slow: the last step of the op is what counts.
                    Err(_) => self.driving.last(),
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
            group: self.beats.group.clone(),
            member: self.beats.member.clone(),
            unix_ms: self.runtime.wall_clock().0,
            body,
        })
    }

    fn status(&self) -> ReportBody {
        let view = self.actor.view.borrow().clone();
        ReportBody::Status(MemberStatus {
            promise: view.promise,
            role: view.role,
            volume: view.volume,
            position: self.beats.database.end(),
            led: view.led,
            open: self.port.open_term(),
            upstream: view.upstream,
            heard: self.beats.heard(),
            exit: self.exit.borrow().clone(),
            replay_lag_bytes: 0,
            oldest_transaction_ms: 0,
            broken_privilege: None,
        })
    }

    async fn obey(&self, order: Order) {
        match order {
            Order::Admit {
                group,
                member,
                volume,
            } => {
                if group == self.beats.group && member == self.beats.member {
                    // The actor is gone only when the process ends.
                    drop(self.actor.commands.send(Command::Admit { volume }).await);
                }
            }
            Order::Drive(order) => self.driving.drive(order),
            Order::StandDown { group, term, op } => {
                if group == self.beats.group {
                    self.driving.stand_down(term, &op);
                }
            }
            Order::Cascade {
                group,
                term,
                through,
            } => {
                if group == self.beats.group {
                    self.cascade.order(term, through);
                }
            }
            Order::ApplySchema { id, .. } => {
                let body = ReportBody::SchemaApplied(SchemaApplied {
                    id,
                    shards: vec![],
                    error: Some("there is no schema in a simulation".to_owned()),
                });
                drop(self.reports.try_send(body));
            }
            Order::HashRows { id, .. } => {
                let body = ReportBody::RowsHashed(RowsHashed {
                    id,
                    lsn: Lsn(0),
                    tables: vec![],
                    error: Some("there are no tables in a simulation".to_owned()),
                });
                drop(self.reports.try_send(body));
            }
        }
    }
}
