//! All clients of a run, from their beginning to the last look at what they left.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::client::{Client, Connection, Noted};
use crate::deeds::{Key, Wish};
use crate::history::{Deed, Final, History};

/// How long a key may take to be read at the end.
const READ_LIMIT: Duration = Duration::from_secs(60);
/// Between two rounds through the routers.
const AGAIN: Duration = Duration::from_millis(500);

/// Who does what.
#[derive(Debug, Clone)]
pub struct Options {
    /// The SQL routers of all cells.
    pub routers: Vec<SocketAddr>,
    /// One key in each of these shards; numbered by the digits of users' ids.
    pub shards: Vec<u16>,
    /// Clients of one key.
    pub clients_per_key: u64,
    /// Between two transactions of one client, on average.
    pub pause: Duration,
    /// Of all chance.
    pub seed: u64,
}

/// Clients at work.
pub struct Load {
    keys: Vec<Key>,
    routers: Vec<SocketAddr>,
    stop: watch::Sender<bool>,
    clients: JoinSet<Noted>,
}

impl Load {
    /// Lets them begin. The tables of `workloads.sql` must be there.
    pub fn begin(options: &Options) -> Result<Self> {
        ensure!(!options.routers.is_empty(), "a world without SQL routers");
        let keys: Vec<Key> = options.shards.iter().map(|s| Key::of_shard(*s)).collect();
        let stop = watch::Sender::new(false);
        let mut clients = JoinSet::new();
        let begun = Instant::now();
        let each = keys
            .iter()
            .flat_map(|key| (0..options.clients_per_key).map(move |_| key.clone()));
        for (number, key) in (1..).zip(each) {
            let client = Client {
                number,
                key,
                routers: options.routers.clone(),
                pause: options.pause,
                seed: options.seed,
                begun,
                stop: stop.subscribe(),
            };
            clients.spawn(client.run());
        }
        Ok(Self {
            keys,
            routers: options.routers.clone(),
            stop,
            clients,
        })
    }

    /// Lets them stop, and reads every key.
    pub async fn end(mut self) -> Result<History> {
        self.stop.send_replace(true);
        let mut history = History {
            keys: self.keys.iter().map(|key| key.name.clone()).collect(),
            ..History::default()
        };
        while let Some(noted) = self.clients.join_next().await {
            let Noted { events, refusals } = noted?;
            history.events.extend(events);
            for (why, count) in refusals {
                *history.refusals.entry(why).or_default() += count;
            }
        }
        for key in &self.keys {
            if let Some(last) = self.last_look(key).await {
                history.finals.insert(key.name.clone(), last);
            }
        }
        Ok(history)
    }

    async fn last_look(&self, key: &Key) -> Option<Final> {
        let until = Instant::now() + READ_LIMIT;
        while Instant::now() < until {
            for router in &self.routers {
                if let Some(last) = look(*router, key).await {
                    return Some(last);
                }
            }
            sleep(AGAIN).await;
        }
        None
    }
}

async fn look(router: SocketAddr, key: &Key) -> Option<Final> {
    let connection = Connection::open(router).await?;
    let ask = async |wish: Wish| {
        let answer = connection.ask(&wish.sql(key)).await.ok()?;
        Some(wish.answered(&answer)?.0)
    };
    let Deed::ReadList { tail: list } = ask(Wish::ReadList { from: 1 }).await? else {
        return None;
    };
    let Deed::ReadRegister { version } = ask(Wish::ReadRegister).await? else {
        return None;
    };
    Some(Final { list, version })
}
