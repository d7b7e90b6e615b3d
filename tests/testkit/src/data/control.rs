//! Control's end of the agents' streams: keeps what they say, sends what the test orders.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use atoll_ownership::Progress;
use atoll_runtime::{Listener, Runtime, ScopedTask};
use atoll_streams::agent::{
    AgentReport, MemberStatus, Order, ReportBody, RowsHashed, SchemaApplied,
};
use atoll_streams::proto::agent as wire;
use atoll_streams::proto::agent::control_server::{Control, ControlServer};
use atoll_topology::{GroupId, MemberId};
use futures::{Stream, StreamExt};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Orders that may wait for one agent.
const ORDERS_WAITING_MAX: usize = 64;

/// What the agents said.
#[derive(Debug, Default)]
struct Heard {
    status: BTreeMap<MemberId, MemberStatus>,
    orders: BTreeMap<MemberId, mpsc::Sender<Order>>,
    progress: Vec<(String, Progress)>,
    applied: BTreeMap<String, SchemaApplied>,
    hashed: BTreeMap<(MemberId, String), RowsHashed>,
}

/// Control, as far as agents can tell.
#[derive(Clone)]
pub struct ControlStub {
    runtime: Runtime,
    group: GroupId,
    volumes: Arc<BTreeMap<MemberId, String>>,
    heard: Arc<Mutex<Heard>>,
    changed: watch::Sender<u64>,
    stopping: watch::Sender<bool>,
    serving: Arc<Mutex<Option<ScopedTask<()>>>>,
}

impl ControlStub {
    /// Serves agents; each is admitted with its volume when it connects.
    pub fn serve(
        runtime: &Runtime,
        listener: Listener,
        group: GroupId,
        volumes: BTreeMap<MemberId, String>,
    ) -> Self {
        let stub = Self {
            runtime: runtime.clone(),
            group,
            volumes: Arc::new(volumes),
            heard: Arc::default(),
            changed: watch::Sender::new(0),
            stopping: watch::Sender::new(false),
            serving: Arc::default(),
        };
        let (service, mut stopping) = (stub.clone(), stub.stopping.subscribe());
        let serving = runtime.tasks().spawn("control-stub", async move {
            let stopped = async move {
                stopping.wait_for(|stop| *stop).await.ok();
            };
            tonic::transport::Server::builder()
                .add_service(ControlServer::new(service))
                .serve_with_incoming_shutdown(listener.incoming(), stopped)
                .await
                .ok();
        });
        *stub.serving.lock().expect("no panic") = Some(serving.scoped());
        stub
    }

    /// Ends it: every agent's stream breaks, and nobody listens any more.
    pub async fn stop(&self) {
        self.stopping.send_replace(true);
        self.heard.lock().expect("no panic").orders.clear();
        let serving = self.serving.lock().expect("no panic").take();
        if let Some(mut serving) = serving {
            serving.join().await.ok();
        }
    }

    /// Another one for the same group, which has heard nothing yet.
    pub(crate) fn successor(&self, listener: Listener) -> Self {
        let (group, volumes) = (self.group.clone(), (*self.volumes).clone());
        Self::serve(&self.runtime, listener, group, volumes)
    }

    /// What a member last said about itself.
    pub fn status(&self, member: &MemberId) -> Option<MemberStatus> {
        self.heard
            .lock()
            .expect("no panic")
            .status
            .get(member)
            .cloned()
    }

    /// Forgets what a member said: the next status is news.
    pub fn forget(&self, member: &MemberId) {
        let mut heard = self.heard.lock().expect("no panic");
        heard.status.remove(member);
        heard.orders.remove(member);
    }

    /// The last progress of this op.
    pub fn progress(&self, op: &str) -> Option<Progress> {
        let heard = self.heard.lock().expect("no panic");
        heard
            .progress
            .iter()
            .rfind(|(of, _)| of == op)
            .map(|(_, step)| step.clone())
    }

    /// Sends an order; waits for the agent to be connected.
    pub async fn order(&self, member: &MemberId, order: Order) -> Result<()> {
        let connected = self
            .until(
                Duration::from_secs(20),
                &format!("{member} connected"),
                |stub| {
                    stub.heard
                        .lock()
                        .expect("no panic")
                        .orders
                        .get(member)
                        .cloned()
                },
            )
            .await?;
        connected
            .send(order)
            .await
            .context("the agent's stream is gone")
    }

    /// Waits until `fact` gives something, at most for `limit`.
    pub async fn until<T>(
        &self,
        limit: Duration,
        what: &str,
        mut fact: impl FnMut(&Self) -> Option<T>,
    ) -> Result<T> {
        let mut changed = self.changed.subscribe();
        let wait = async {
            loop {
                if let Some(found) = fact(self) {
                    return found;
                }
                if changed.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        if let Ok(found) = timeout(limit, wait).await {
            return Ok(found);
        }
        let heard = self.heard.lock().expect("no panic");
        bail!(
            "{what}: not within {limit:?}; last seen {:#?} {:?}",
            heard.status,
            heard.progress.last()
        )
    }

    /// Runs a schema file on this primary.
    pub async fn apply(&self, primary: &MemberId, id: &str, sql: &str) -> Result<SchemaApplied> {
        let order = Order::ApplySchema {
            id: id.into(),
            sql: sql.into(),
            shards: vec![],
        };
        self.order(primary, order).await?;
        self.until(Duration::from_secs(20), "the schema applied", |stub| {
            stub.heard
                .lock()
                .expect("no panic")
                .applied
                .get(id)
                .cloned()
        })
        .await
    }

    /// Hashes a member's rows, once it has replayed `at_least`.
    pub async fn hash(
        &self,
        member: &MemberId,
        id: &str,
        at_least: atoll_topology::Lsn,
    ) -> Result<RowsHashed> {
        let order = Order::HashRows {
            id: id.into(),
            shards: vec![],
            at_least,
        };
        self.order(member, order).await?;
        let key = (member.clone(), id.to_owned());
        self.until(Duration::from_secs(40), "the rows hashed", |stub| {
            stub.heard
                .lock()
                .expect("no panic")
                .hashed
                .get(&key)
                .cloned()
        })
        .await
    }

    fn note(&self, report: AgentReport) {
        let mut heard = self.heard.lock().expect("no panic");
        let member = report.member;
        match report.body {
            ReportBody::Status(status) => {
                heard.status.insert(member, status);
            }
            ReportBody::Progress { op, progress, .. } => {
                heard.progress.push((op, progress));
            }
            ReportBody::SchemaApplied(applied) => {
                heard.applied.insert(applied.id.clone(), applied);
            }
            ReportBody::RowsHashed(hashed) => {
                heard.hashed.insert((member, hashed.id.clone()), hashed);
            }
        }
        drop(heard);
        self.changed.send_modify(|number| *number += 1);
    }
}

type Orders = Pin<Box<dyn Stream<Item = Result<wire::AgentOrder, Status>> + Send>>;

#[tonic::async_trait]
impl Control for ControlStub {
    type AgentStream = Orders;

    async fn agent(
        &self,
        request: Request<Streaming<wire::AgentReport>>,
    ) -> Result<Response<Orders>, Status> {
        let mut reports = request.into_inner();
        let invalid = |error: &dyn std::fmt::Display| Status::invalid_argument(error.to_string());
        let first = reports
            .message()
            .await?
            .ok_or_else(|| Status::invalid_argument("empty"))?;
        let first = AgentReport::try_from(first).map_err(|error| invalid(&error))?;
        let member = first.member.clone();
        let (sender, orders) = mpsc::channel(ORDERS_WAITING_MAX);
        let volume = self.volumes.get(&member).cloned().unwrap_or_default();
        let (group, admitted) = (self.group.clone(), member.clone());
        let admit = Order::Admit {
            group,
            member: admitted,
            volume,
        };
        sender.try_send(admit).map_err(|error| invalid(&error))?;
        self.heard
            .lock()
            .expect("no panic")
            .orders
            .insert(member, sender);
        self.note(first);
        let (stub, mut stopping) = (self.clone(), self.stopping.subscribe());
        self.runtime
            .tasks()
            .spawn("control-stub-reports", async move {
                let hear = async {
                    while let Ok(Some(message)) = reports.message().await {
                        if let Ok(report) = AgentReport::try_from(message) {
                            stub.note(report);
                        }
                    }
                };
                tokio::select! {
                    () = hear => {}
                    _ = stopping.wait_for(|stop| *stop) => {}
                }
            });
        let orders = ReceiverStream::new(orders).map(|order| Ok(wire::AgentOrder::from(&order)));
        Ok(Response::new(Box::pin(orders)))
    }
}

/// Where the stub listens in a world.
pub(crate) fn address(world: u8) -> SocketAddr {
    SocketAddr::from(([127, world, 0, 1], 7601))
}
