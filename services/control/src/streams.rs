//! The gRPC side: agents and meshes dial in; orders and tables go down, reports come up.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use atoll_proxy::table::{Collect, StreamId, table_service};
use atoll_streams::agent::AgentReport;
use atoll_streams::proto::agent as wire;
use atoll_streams::proto::agent::control_server::{Control as ControlApi, ControlServer};
use atoll_streams::{MeshReport, Report};
use futures::{Stream, StreamExt};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::{info, warn};

use crate::app::Control;
use crate::error::Error;

/// Serves agents and meshes; gives the address that it listens on.
pub(crate) async fn listen(control: Arc<Control>, at: SocketAddr) -> Result<SocketAddr, Error> {
    let runtime = control.runtime.clone();
    let listener = runtime
        .listen(at)
        .await
        .map_err(|source| Error::Listen { at, source })?;
    let address = listener.local_addr();
    let agents = ControlServer::new(AgentStreams(control.clone()));
    let reports = Arc::new(Reports(control.clone()));
    let tables = control.publisher.tables();
    let tables = table_service(&runtime, tables, reports, Arc::new(|| 0));
    let shutdown = runtime.shutdown();
    runtime.tasks().spawn("streams", async move {
        let served = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(std::time::Duration::from_secs(1)))
            .http2_keepalive_timeout(Some(std::time::Duration::from_secs(2)))
            .tcp_nodelay(true)
            .add_service(agents)
            .add_service(tables)
            .serve_with_incoming_shutdown(listener.incoming(), shutdown.requested_owned())
            .await;
        if let Err(error) = served {
            warn!(%error, "the stream server ended");
        }
    });
    Ok(address)
}

/// Where the reports of data planes go, through meshes or from themselves.
struct Reports(Arc<Control>);

impl Collect for Reports {
    fn data_plane(&self, _: StreamId, report: Report) {
        self.0.planes.heard(report);
    }

    fn mesh(&self, _: StreamId, report: MeshReport) {
        self.0.planes.mesh(&report.process, &report.region);
        for report in report.reports {
            self.0.planes.heard(report);
        }
    }

    /// A data plane that falls silent is noticed by its silence.
    fn ended(&self, _: StreamId) {}
}

struct AgentStreams(Arc<Control>);

type Orders = Pin<Box<dyn Stream<Item = Result<wire::AgentOrder, Status>> + Send>>;

#[tonic::async_trait]
impl ControlApi for AgentStreams {
    type AgentStream = Orders;

    async fn agent(
        &self,
        request: Request<Streaming<wire::AgentReport>>,
    ) -> Result<Response<Orders>, Status> {
        let mut reports = request.into_inner();
        // The first report says who it is.
        let first = reports
            .message()
            .await?
            .ok_or_else(|| Status::invalid_argument("the stream ended before a report"))?;
        let first = read(first)?;
        let member = first.member.clone();
        let (number, orders) = self.0.agents.connected(&member);
        self.0.agents.heard(first);
        info!(%member, "agent connected");
        let control = self.0.clone();
        self.0
            .runtime
            .tasks()
            .spawn(format!("reports of {member}"), async move {
                loop {
                    match reports.message().await {
                        Ok(Some(message)) => match read(message) {
                            Ok(report) => control.agents.heard(report),
                            Err(error) => warn!(%member, %error, "a report that is none"),
                        },
                        Ok(None) => break,
                        Err(error) => {
                            info!(%member, %error, "agent lost");
                            break;
                        }
                    }
                }
                control.agents.disconnected(&member, number);
            });
        let orders = ReceiverStream::new(orders).map(|order| Ok(wire::AgentOrder::from(&order)));
        Ok(Response::new(Box::pin(orders)))
    }
}

fn read(message: wire::AgentReport) -> Result<AgentReport, Status> {
    AgentReport::try_from(message).map_err(|error| Status::invalid_argument(error.to_string()))
}
