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
    let metrics = Metrics::new(&[]);
    measure(&control, &metrics)?;
    let admin = Admin::new(metrics)
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

/// What a person is paged by: automation that a person or a verdict has stopped.
fn measure(control: &Arc<Control>, metrics: &Metrics) -> Result<(), Error> {
    let off = metrics.gauge(
        "automatic_off",
        "1 while automation is switched off: no verdict begins anything.",
    )?;
    let frozen = metrics.gauge(
        "automatic_frozen",
        "1 while owner changes are frozen: a person must look, and thaw them.",
    )?;
    let (control, shutdown) = (control.clone(), control.runtime.shutdown());
    let tasks = control.runtime.clone();
    tasks.tasks().spawn("measuring the guard", async move {
        let mut guard = control.guard.subscribe();
        loop {
            guard.borrow_and_update();
            let now = crate::guard::seen(&control);
            off.set(i64::from(now.killed.is_some()));
            frozen.set(i64::from(now.frozen.is_some()));
            tokio::select! {
                changed = guard.changed() => if changed.is_err() {
                    return;
                },
                () = shutdown.requested() => return,
            }
        }
    });
    Ok(())
}
