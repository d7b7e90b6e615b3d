//! The stream to control: tables down, the receivers' reports up.

use std::sync::Arc;

use atoll_proxy::table::{Held, Uplink};
use atoll_runtime::Runtime;
use atoll_streams::proto::table::table_source_client::TableSourceClient;
use atoll_streams::proto::table::{MeshReport as WireMeshReport, TableUpdate};
use atoll_streams::{MESSAGE_BYTES_MAX, MeshReport};
use atoll_topology::{ProcessId, RegionId};
use futures::stream;
use tonic::transport::Channel;
use tonic::{Response, Status, Streaming};

use crate::board::Board;

/// How a mesh follows control.
pub(crate) struct ToControl {
    pub(crate) runtime: Runtime,
    pub(crate) process: ProcessId,
    pub(crate) region: RegionId,
    pub(crate) board: Arc<Board>,
}

impl Uplink for ToControl {
    async fn open(
        &mut self,
        channel: Channel,
        held: Held,
    ) -> Result<Streaming<TableUpdate>, Status> {
        let (runtime, board) = (self.runtime.clone(), self.board.clone());
        let (process, region) = (self.process.clone(), self.region.clone());
        let say = move |held, after| {
            let (reports, at) = board.after(after);
            let (process, region) = (process.clone(), region.clone());
            let unix_ms = runtime.wall_clock().0;
            let report = MeshReport {
                process,
                region,
                held,
                reports,
                unix_ms,
            };
            (WireMeshReport::from(&report), at)
        };
        // A new stream begins with all that is known: control may be another process than before.
        let start = (self.board.pace(), say, held, 0);
        let reports = stream::unfold(start, |(mut pace, say, mut held, after)| async move {
            if !pace.due().await {
                return None;
            }
            let (report, at) = say(held.named(), after);
            Some((report, (pace, say, held, at)))
        });
        let mut client =
            TableSourceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        client
            .follow_as_mesh(reports)
            .await
            .map(Response::into_inner)
    }
}
