//! Reads every shard's books after the load, by two ways.

use std::net::SocketAddr;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use http::{Method, StatusCode};
use tokio::net::TcpSocket;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_postgres::{NoTls, SimpleQueryMessage};

use super::gateway::{Attempt, Gateways};
use super::users::{User, Users};
use crate::oracle::{Account, Booked, Books};
use crate::serve::LEDGER;
use crate::talk;

/// Rounds through all sources for one shard.
const ROUNDS_MAX: u32 = 20;
/// Pause between them.
const ROUND_PAUSE: Duration = Duration::from_millis(500);
/// Shards read at once.
const AT_ONCE: usize = 8;
/// Longest wait for one router's connection or books.
const SQL_LIMIT: Duration = Duration::from_secs(10);

/// One user of each shard, who asks for the books.
fn one_of_each(users: &Users) -> Vec<User> {
    let mut one = users.all().to_vec();
    one.dedup_by_key(|user| user.shard);
    one
}

/// Through the front door. Shards that nobody could give are missing in the answer.
pub(super) async fn through_gateways(gateways: &Gateways, users: &Users) -> Vec<Books> {
    let read = async |user: User| {
        for round in 0..ROUNDS_MAX {
            if round > 0 {
                sleep(ROUND_PAUSE).await;
            }
            for gateway in 0..gateways.len() {
                let ask =
                    gateways.request(&Method::GET, "/ledger", Some(&user.id), bytes::Bytes::new());
                let answer = gateways.send(gateway, ask).await;
                let Attempt::Answer {
                    status: StatusCode::OK,
                    body,
                } = answer
                else {
                    continue;
                };
                if let Some(books) = parse(user.shard, &String::from_utf8_lossy(&body)) {
                    return Some(books);
                }
            }
        }
        talk::say(&format!(
            "no gateway gave the books of shard {}",
            user.shard
        ));
        None
    };
    let reads = futures::stream::iter(one_of_each(users))
        .map(read)
        .buffer_unordered(AT_ONCE);
    reads.filter_map(|books| async { books }).collect().await
}

fn parse(shard: u16, text: &str) -> Option<Books> {
    let mut books = Books {
        shard,
        ..Books::default()
    };
    let mut lines = text.lines().peekable();
    let mut count = 0_usize;
    while let Some(line) = lines.next() {
        let fields: Vec<_> = line.split('\t').collect();
        match fields[..] {
            ["end", number] => {
                let whole = number.parse() == Ok(count) && lines.peek().is_none();
                return whole.then_some(books);
            }
            ref fields => books.add(fields)?,
        }
        count += 1;
    }
    None
}

impl Books {
    fn add(&mut self, fields: &[&str]) -> Option<()> {
        match *fields {
            ["account", user, opened, balance] => self.accounts.push(Account {
                user: user.into(),
                opened: opened.parse().ok()?,
                balance: balance.parse().ok()?,
            }),
            ["transfer", id, payer, payee, amount] => self.transfers.push(Booked {
                id: id.into(),
                payer: payer.into(),
                payee: payee.into(),
                amount: amount.parse().ok()?,
            }),
            _ => return None,
        }
        Some(())
    }
}

/// From the databases, without the bank and the gateways. All routers are asked for a shard at once:
/// one that does not own it takes its time to be sure before it says so.
pub(super) async fn through_sql(routers: &[SocketAddr], users: &Users) -> Vec<Books> {
    let read = async |user: User| {
        for round in 0..ROUNDS_MAX {
            if round > 0 {
                sleep(ROUND_PAUSE).await;
            }
            let mut answers: FuturesUnordered<_> = routers
                .iter()
                .map(|router| timeout(SQL_LIMIT, ask(*router, &user)))
                .collect();
            while let Some(answer) = answers.next().await {
                if let Ok(Some(books)) = answer {
                    return Some(books);
                }
            }
        }
        talk::say(&format!("no router gave the books of shard {}", user.shard));
        None
    };
    let reads = futures::stream::iter(one_of_each(users))
        .map(read)
        .buffer_unordered(AT_ONCE);
    reads.filter_map(|books| async { books }).collect().await
}

async fn ask(router: SocketAddr, user: &User) -> Option<Books> {
    let mut drivers = JoinSet::new();
    let client = connect(router, &mut drivers).await?;
    books(&client, user).await
}

async fn connect(router: SocketAddr, drivers: &mut JoinSet<()>) -> Option<tokio_postgres::Client> {
    let socket = match router {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    };
    let stream = socket.ok()?.connect(router).await.ok()?;
    let mut config = tokio_postgres::Config::new();
    config
        .user("bank")
        .dbname("bank")
        .application_name("bank-oracle");
    let (client, driver) = config.connect_raw(stream, NoTls).await.ok()?;
    drivers.spawn(async move { drop(driver.await) });
    Some(client)
}

async fn books(client: &tokio_postgres::Client, user: &User) -> Option<Books> {
    let lines = client
        .simple_query(&format!("/*key={}*/ {LEDGER}", user.id))
        .await
        .ok()?;
    let mut books = Books {
        shard: user.shard,
        ..Books::default()
    };
    for line in lines {
        if let SimpleQueryMessage::Row(row) = line {
            let fields: Option<Vec<&str>> = (0..row.len()).map(|i| row.get(i)).collect();
            let mut fields = fields?;
            while fields.last() == Some(&"") {
                fields.pop();
            }
            books.add(&fields)?;
        }
    }
    Some(books)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn books_are_taken_whole_or_not_at_all() {
        let text = "account\t1001\t100\t95\ntransfer\tr-1\t1001\t1002\t5\nend\t2\n";
        let books = parse(7, text).unwrap();
        assert_eq!(
            (books.shard, books.accounts.len(), books.transfers.len()),
            (7, 1, 1)
        );
        assert_eq!(parse(7, &text.replace("end\t2\n", "")), None);
        assert_eq!(parse(7, &text.replace("end\t2", "end\t3")), None);
        assert_eq!(parse(7, &text.replace("95", "x")), None);
    }
}
