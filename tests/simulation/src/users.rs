//! Users: each writes its numbers one after the other, never one twice, and reads them back.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use atoll_runtime::Runtime;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::time::{Duration, sleep};
use tracing::info;

use crate::http::{self, NoAnswer};
use crate::oracle::{Oracle, Outcome};

/// How long a user waits for an answer: longer than the gate may hold it.
const PATIENCE: Duration = Duration::from_secs(12);
/// Between two requests, at most.
const PAUSE_MAX_MS: u64 = 150;
/// Every so many requests one is a read.
const READ_EVERY: u64 = 4;

/// One user.
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) seed: u64,
    /// Gateways, the nearest first.
    pub(crate) gateways: Vec<SocketAddr>,
    pub(crate) runtime: Runtime,
    pub(crate) oracle: Oracle,
    /// While it is set, nobody asks for anything.
    pub(crate) quiet: Arc<AtomicBool>,
}

impl User {
    /// Writes and reads for ever.
    pub(crate) async fn live(self) {
        let mut random = SmallRng::seed_from_u64(self.seed);
        let mut number = 0;
        let mut gateway = 0;
        loop {
            sleep(Duration::from_millis(random.random_range(10..PAUSE_MAX_MS))).await;
            if self.quiet.load(Ordering::Relaxed) {
                continue;
            }
            let at = self.gateways[gateway % self.gateways.len()];
            number += 1;
            let answered = if number % READ_EVERY == 0 {
                self.read(at).await
            } else {
                self.write(at, number).await
            };
            if !answered {
                gateway += 1;
            }
        }
    }

    async fn write(&self, at: SocketAddr, number: u64) -> bool {
        self.oracle.sends(&self.name, number);
        let head = format!("POST /write?user={}&number={number} HTTP/1.1", self.name);
        let answer = http::ask(&self.runtime, at, &head, "", PATIENCE).await;
        let (outcome, why) = match &answer {
            Ok(answer) => {
                let said = (
                    answer.header("bank-outcome"),
                    answer.header("atoll-outcome"),
                );
                let outcome = match (answer.status(), said) {
                    (200, _) => Outcome::Acknowledged,
                    (_, ("failed", _) | ("", "not-sent")) => Outcome::Failed,
                    (400..=499, _) => Outcome::Failed,
                    _ => Outcome::Unknown,
                };
                (outcome, format!("{} {}", answer.first, answer.body))
            }
            Err(NoAnswer::NotSent) => (Outcome::Failed, "not connected".to_owned()),
            Err(NoAnswer::Lost) => (Outcome::Unknown, "no answer".to_owned()),
        };
        self.oracle.told(&self.name, number, outcome);
        if outcome != Outcome::Acknowledged {
            info!(user = self.name, number, ?outcome, why, "write");
        }
        outcome == Outcome::Acknowledged
    }

    async fn read(&self, at: SocketAddr) -> bool {
        let before = self.oracle.acknowledged_of(&self.name);
        let head = format!("GET /read?user={} HTTP/1.1", self.name);
        match http::ask(&self.runtime, at, &head, "", PATIENCE).await {
            Ok(answer) if answer.status() == 200 => {
                let numbers = answer.body.split(' ').filter_map(|n| n.parse().ok());
                let numbers: Vec<u64> = numbers.collect();
                self.oracle.read(&self.name, &before, &numbers);
                true
            }
            _ => false,
        }
    }
}
