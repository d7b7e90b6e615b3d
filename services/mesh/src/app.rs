//! Wiring: follow control, publish what it says, serve data planes, show it all.

use std::sync::Arc;
use std::time::Duration;

use atoll_proxy::table::{Age, FollowConfig, Publisher, follow_all, serve_tables};
use atoll_runtime::Runtime;
use atoll_streams::EncodedTable;
use atoll_telemetry::{Admin, IntGauge, Metrics, MetricsError, admin};
use serde_json::json;
use tracing::info;

use crate::board::Board;
use crate::config::Config;
use crate::error::Error;
use crate::uplink::ToControl;

/// How often the gauges are set: the loss of control must show as a growing age.
const MEASURE_INTERVAL: Duration = Duration::from_secs(1);

/// Runs a mesh until shutdown is requested; `ready` gets its addresses once it serves, with or
/// without a table.
pub async fn serve(
    config: Config,
    runtime: Runtime,
    ready: impl FnOnce(&str),
) -> Result<(), Error> {
    if config.control.is_empty() {
        return Err(Error::NoControl);
    }
    let publisher = Publisher::default();
    let board = Arc::new(Board::default());
    let to_control = || ToControl {
        runtime: runtime.clone(),
        process: config.process.clone(),
        region: config.region.clone(),
        board: board.clone(),
    };
    let from = FollowConfig {
        sources: config.control.clone(),
        file: config.table_file.clone(),
    };
    let publish = publisher.clone();
    // What it cannot read it passes on: its receivers may be newer than it is.
    let accept = move |table: &Arc<EncodedTable>| publish.publish(table.clone());
    let followed = follow_all(&runtime, from, to_control, accept);

    let at = config.listen;
    let listener = runtime
        .listen(at)
        .await
        .map_err(|source| Error::Listen { at, source })?;
    let listen = listener.local_addr();
    let view = View {
        publisher: publisher.clone(),
        board: board.clone(),
        age: followed.age.clone(),
    };
    let at = config.admin;
    let shown = view.admin(&runtime, &config)?;
    let admin = admin::serve(&runtime, at, shown)
        .await
        .map_err(|source| Error::Listen { at, source })?;
    ready(&format!("tables={listen} admin=http://{admin}"));
    info!(process = %config.process, %listen, "mesh serves");

    let age = followed.age.clone();
    let age_ms = Arc::new(move || age.now_ms());
    serve_tables(&runtime, listener, publisher, board, age_ms).await?;
    Ok(())
}

/// What people are shown.
#[derive(Clone)]
struct View {
    publisher: Publisher,
    board: Arc<Board>,
    age: Age,
}

struct Gauges {
    age: IntGauge,
    version: IntGauge,
    receivers: IntGauge,
}

impl Gauges {
    fn new(metrics: &Metrics) -> Result<Self, MetricsError> {
        Ok(Self {
            age: metrics.gauge(
                "table_age_ms",
                "Time since control confirmed that the table in hand is its newest, in \
                 milliseconds.",
            )?,
            version: metrics.gauge("table_version", "Number of the table that is served.")?,
            receivers: metrics.gauge("mesh_receivers", "Data planes that follow this mesh.")?,
        })
    }
}

impl View {
    fn admin(self, runtime: &Runtime, config: &Config) -> Result<Admin, Error> {
        let cell = config
            .cell
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default();
        let metrics = Metrics::new(&[
            ("process", config.process.as_str()),
            ("region", config.region.as_str()),
            ("cell", &cell),
        ]);
        let gauges = Gauges::new(&metrics)?;
        let (measured, shutdown) = (self.clone(), runtime.shutdown());
        runtime.tasks().spawn("measure", async move {
            while !shutdown.is_requested() {
                measured.measure(&gauges);
                tokio::select! {
                    () = tokio::time::sleep(MEASURE_INTERVAL) => {}
                    () = shutdown.requested() => {}
                }
            }
        });
        let publisher = self.publisher.clone();
        let has_table = move || match publisher.current() {
            Some(_) => Ok(()),
            None => Err("no table yet: neither from control nor on disk".to_owned()),
        };
        Ok(Admin::new(metrics)
            .ready(has_table)
            .debug("table", move || self.table()))
    }

    fn measure(&self, gauges: &Gauges) {
        let number = self
            .publisher
            .current()
            .map_or(0, |table| table.version().number);
        gauges
            .version
            .set(i64::try_from(number).unwrap_or(i64::MAX));
        gauges
            .age
            .set(i64::try_from(self.age.now_ms()).unwrap_or(i64::MAX));
        gauges
            .receivers
            .set(i64::try_from(self.board.receivers().len()).unwrap_or(i64::MAX));
    }

    fn table(&self) -> String {
        let table = self.publisher.current();
        let receivers: Vec<_> = self
            .board
            .receivers()
            .iter()
            .map(|report| {
                json!({
                    "process": report.process,
                    "held": report.held.as_ref().map(ToString::to_string),
                    "in_use": report.in_use.as_ref().map(ToString::to_string),
                    "draining": report.draining,
                })
            })
            .collect();
        let shown = json!({
            "version": table.as_ref().map(|table| table.version().to_string()),
            "hash": table.as_ref().map(|table| format!("{:016x}", table.hash())),
            "age_ms": self.age.now().map(|_| self.age.now_ms()),
            "entries": table.as_ref().map(|table| table.entries().keys().collect::<Vec<_>>()),
            "receivers": receivers,
        });
        format!("{shown:#}\n")
    }
}
