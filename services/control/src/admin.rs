//! Health and metrics of a replica of control.

use std::net::SocketAddr;
use std::sync::Arc;

use atoll_telemetry::{Admin, Metrics, admin};

use crate::app::Control;
use crate::error::Error;
use crate::seat::Standing;

/// Serves the admin endpoint; ready once a table has been published, and while there is a majority
/// of the store behind this replica.
pub(crate) async fn listen(control: Arc<Control>, at: SocketAddr) -> Result<SocketAddr, Error> {
    let ready = control.clone();
    let table = control.clone();
    let admin = Admin::new(Metrics::new(&[]))
        .ready(move || match ready.seat.standing() {
            Standing::ReadOnly { reason } => Err(format!(
                "read-only, without a majority of the store: {reason}"
            )),
            Standing::Acts | Standing::Waits { .. } => match ready.publisher.current() {
                Some(_) => Ok(()),
                None => Err("no table has been published yet".to_owned()),
            },
        })
        .debug("table", move || {
            table
                .publisher
                .current()
                .map_or_else(|| "none".to_owned(), |table| format!("{table:#?}"))
        });
    admin::serve(&control.runtime, at, admin)
        .await
        .map_err(|source| Error::Listen { at, source })
}
