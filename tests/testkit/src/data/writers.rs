//! Writers that go straight to the primary's agent, and the set of what was acknowledged to them.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use atoll_runtime::{Runtime, ScopedTask};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::{Client, Config, NoTls};

/// A writer that gets no answer for so long counts the write as unknown and connects anew.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// Before a refused writer tries again.
const AGAIN: Duration = Duration::from_millis(5);

/// Where writers write.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    /// The primary's client port.
    pub at: SocketAddr,
    /// The owner's role.
    pub role: String,
}

/// What came of the writes.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// Acknowledged ids.
    pub acknowledged: BTreeSet<i64>,
    /// Ids whose outcome nobody told.
    pub unknown: BTreeSet<i64>,
    /// Writes that were refused.
    pub refused: u64,
    /// When the last write was acknowledged.
    pub last: Option<Instant>,
    /// The longest time without any acknowledgement.
    pub longest_gap: Duration,
}

impl Tally {
    /// For people.
    pub fn line(&self) -> String {
        format!(
            "{} acknowledged, {} unknown, {} refused, longest gap {:?}",
            self.acknowledged.len(),
            self.unknown.len(),
            self.refused,
            self.longest_gap
        )
    }
}

/// What a gateway would do with requests.
#[derive(Clone)]
struct Gate {
    held: watch::Sender<bool>,
    under_way: watch::Sender<usize>,
}

/// One request under way.
struct Pass(watch::Sender<usize>);

impl Drop for Pass {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl Gate {
    async fn enter(&self) -> Pass {
        loop {
            self.under_way.send_modify(|count| *count += 1);
            let pass = Pass(self.under_way.clone());
            if !*self.held.borrow() {
                return pass;
            }
            drop(pass);
            // We hold a sender, so the channel cannot close.
            self.held.subscribe().wait_for(|held| !*held).await.ok();
        }
    }
}

/// Sessions that insert single rows into one table.
pub struct Writers {
    tally: Arc<Mutex<Tally>>,
    gate: Gate,
    target: watch::Sender<Target>,
    stop: watch::Sender<bool>,
    tasks: Vec<ScopedTask<()>>,
}

impl Writers {
    /// Starts `count` sessions that insert ids into `table`.
    pub fn start(runtime: &Runtime, count: i64, table: &str, at: SocketAddr, role: &str) -> Self {
        let tally = Arc::new(Mutex::new(Tally::default()));
        let target = watch::Sender::new(Target {
            at,
            role: role.into(),
        });
        let stop = watch::Sender::new(false);
        let gate = Gate {
            held: watch::Sender::new(false),
            under_way: watch::Sender::new(0),
        };
        let tasks = (0..count)
            .map(|number| {
                let writer = Writer {
                    runtime: runtime.clone(),
                    statement: format!("INSERT INTO {table} (id) VALUES ($1)"),
                    tally: tally.clone(),
                    gate: gate.clone(),
                    target: target.subscribe(),
                    stop: stop.subscribe(),
                };
                // Far apart: ids of different writers never meet.
                let first = (number + 1) * 1_000_000_000;
                runtime.tasks().spawn("writer", writer.run(first)).scoped()
            })
            .collect();
        Self {
            tally,
            gate,
            target,
            stop,
            tasks,
        }
    }

    /// P2: holds new writes, and waits until none is under way.
    pub async fn hold(&self) {
        self.gate.held.send_replace(true);
        // We hold a sender, so the channel cannot close.
        let mut under_way = self.gate.under_way.subscribe();
        under_way.wait_for(|count| *count == 0).await.ok();
    }

    /// Lets the held writes go.
    pub fn release(&self) {
        self.gate.held.send_replace(false);
    }

    /// Sends the writers elsewhere.
    pub fn point(&self, at: SocketAddr, role: &str) {
        self.target.send_replace(Target {
            at,
            role: role.into(),
        });
    }

    /// What was acknowledged so far.
    pub fn tally(&self) -> Tally {
        self.tally.lock().expect("no panic").clone()
    }

    /// Waits until `more` further writes are acknowledged.
    pub async fn progress(&self, more: usize, limit: Duration) -> anyhow::Result<()> {
        let acknowledged = |tally: &Tally| tally.acknowledged.len();
        self.until(acknowledged, more, limit).await
    }

    /// Waits until `more` further writes are refused.
    pub async fn refusals(&self, more: usize, limit: Duration) -> anyhow::Result<()> {
        let refused = |tally: &Tally| usize::try_from(tally.refused).unwrap_or(usize::MAX);
        self.until(refused, more, limit).await
    }

    async fn until(
        &self,
        count: impl Fn(&Tally) -> usize,
        more: usize,
        limit: Duration,
    ) -> anyhow::Result<()> {
        let now = || count(&self.tally.lock().expect("no panic"));
        let (from, started) = (now(), Instant::now());
        while now() < from + more {
            if started.elapsed() > limit {
                let tally = self.tally().line();
                anyhow::bail!("not {more} more within {limit:?}: {tally}");
            }
            sleep(AGAIN).await;
        }
        Ok(())
    }

    /// Stops, and waits for the writes under way.
    pub async fn stop(mut self) -> Tally {
        self.release();
        self.stop.send_replace(true);
        for task in &mut self.tasks {
            task.join().await.ok();
        }
        self.tally()
    }
}

/// An error of the statement itself; what ends a session (class 57) may come after a commit.
fn is_refusal(error: &tokio_postgres::Error) -> bool {
    error
        .code()
        .is_some_and(|code| !code.code().starts_with("57"))
}

struct Writer {
    runtime: Runtime,
    statement: String,
    tally: Arc<Mutex<Tally>>,
    gate: Gate,
    target: watch::Receiver<Target>,
    stop: watch::Receiver<bool>,
}

impl Writer {
    async fn run(mut self, first: i64) {
        let mut id = first;
        while !*self.stop.borrow() {
            let target = self.target.borrow_and_update().clone();
            let Some((client, _connection)) = self.connect(&target).await else {
                self.tally.lock().expect("no panic").refused += 1;
                sleep(AGAIN).await;
                continue;
            };
            while !*self.stop.borrow() && !self.target.has_changed().unwrap_or(true) {
                let _pass = self.gate.enter().await;
                id += 1;
                if !self.write(&client, id).await {
                    sleep(AGAIN).await;
                    break;
                }
            }
        }
    }

    /// One write; false: connect anew.
    async fn write(&self, client: &Client, id: i64) -> bool {
        let answer = timeout(
            ANSWER_LIMIT,
            client.execute(self.statement.as_str(), &[&id]),
        )
        .await;
        let mut tally = self.tally.lock().expect("no panic");
        match answer {
            Ok(Ok(_)) => {
                tally.acknowledged.insert(id);
                let now = Instant::now();
                if let Some(last) = tally.last.replace(now) {
                    tally.longest_gap = tally.longest_gap.max(now - last);
                }
                true
            }
            // PostgreSQL said no: surely not written.
            Ok(Err(error)) if is_refusal(&error) => {
                tally.refused += 1;
                false
            }
            Ok(Err(_)) | Err(_) => {
                tally.unknown.insert(id);
                false
            }
        }
    }

    async fn connect(&self, target: &Target) -> Option<(Client, ScopedTask<()>)> {
        let mut config = Config::new();
        config
            .host(target.at.ip().to_string())
            .port(target.at.port());
        config.user(&target.role).dbname("atoll");
        let (client, connection) = timeout(ANSWER_LIMIT, config.connect(NoTls))
            .await
            .ok()?
            .ok()?;
        let task = self.runtime.tasks().spawn("writer-connection", async move {
            connection.await.ok();
        });
        Some((client, task.scoped()))
    }
}
