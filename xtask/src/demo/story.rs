//! The events, in order: a planned switchover, a primary killed, a city lost, and the way back.

use std::time::Duration;

use anyhow::Result;
use bank::analyse::Event;
use tokio::time::sleep;

use crate::stage::{Stage, events};

/// Quiet time before each event: what its figures are compared with, and time for the last one's
/// effects to end.
const QUIET: Duration = Duration::from_secs(10);
/// How long the users are watched after an event is over.
const AFTER: Duration = Duration::from_secs(5);

/// The cell that is switched, and where to.
const SWITCHED: (&str, &str) = ("hz-1", "shanghai");
/// The cell whose primary's PostgreSQL is killed.
const KILLED: &str = "sz-1";
/// The city that is lost; by then it also carries the cell that was switched to it.
const LOST: &str = "shanghai";

/// Plays all events; returns what the figures are made from.
pub(crate) async fn tell(stage: &mut Stage) -> Result<Vec<Event>> {
    sleep(QUIET).await;
    let (cell, to) = SWITCHED;
    let (switchover, _) = events::switchover(stage, cell, to).await?;
    sleep(QUIET).await;
    let (process_kill, _) = events::process_kill(stage, KILLED).await?;
    events::made_good(stage).await?;
    sleep(QUIET).await;
    let (city_loss, _) = events::city_loss(stage, LOST).await?;
    sleep(AFTER).await;
    events::come_back(stage, LOST).await?;
    let (failback, _) = events::failback(stage).await?;
    sleep(AFTER).await;
    Ok(vec![switchover, process_kill, city_loss, failback])
}
