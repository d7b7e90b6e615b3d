//! The open loop: at its due time each transfer starts on its own, however slow the others are.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use bytes::Bytes;
use futures::StreamExt as _;
use http::{Method, StatusCode};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::gateway::{Attempt, Gateways};
use super::live::Live;
use super::users::{OPENED, User, Users};
use super::{Options, Orders};
use crate::oracle::{Fate, Meant};
use crate::report::Request;

/// Transfers under way at most; beyond it a due one is not started, and counted so.
const UNDER_WAY_MAX: usize = 20_000;
/// Accounts opened at once.
const OPENING_AT_ONCE: usize = 32;
/// Rounds through all gateways for an account.
const OPENING_ROUNDS_MAX: u32 = 30;
/// Pause between them.
const OPENING_PAUSE: Duration = Duration::from_millis(500);
/// Pause before the next gateway after one that said `not-sent`.
const NEXT_GATEWAY_PAUSE: Duration = Duration::from_millis(50);
/// The most that one transfer moves, in cents.
const AMOUNT_MAX: i64 = 100;

#[derive(Debug)]
pub(super) struct Driven {
    pub(super) requests: Vec<Request>,
    pub(super) meant: Vec<Meant>,
    pub(super) offered: u64,
    pub(super) not_started: u64,
    pub(super) lasted: Duration,
}

/// Opens every account; safe to repeat, so unknown outcomes are simply asked again.
pub(super) async fn open_accounts(gateways: &Gateways, users: &Users) -> anyhow::Result<()> {
    let open = async |user: &User| {
        let body = Bytes::from(json!({ "initial": OPENED }).to_string());
        let mut last = None;
        for round in 0..OPENING_ROUNDS_MAX {
            if round > 0 {
                sleep(OPENING_PAUSE).await;
            }
            for gateway in 0..gateways.len() {
                let ask =
                    gateways.request(&Method::POST, "/accounts", Some(&user.id), body.clone());
                match gateways.send(gateway, ask).await {
                    Attempt::Answer {
                        status: StatusCode::CREATED | StatusCode::OK,
                        ..
                    } => {
                        return Ok(());
                    }
                    other => last = Some(other),
                }
            }
        }
        bail!(
            "account {} could not be opened; last answer: {last:?}",
            user.id
        )
    };
    let mut opening = futures::stream::iter(users.all())
        .map(open)
        .buffer_unordered(OPENING_AT_ONCE);
    while let Some(opened) = opening.next().await {
        opened?;
    }
    Ok(())
}

/// Offers transfers until the time is over or `stop`, then waits for the last answer.
pub(super) async fn drive(
    options: &Options,
    run: &str,
    gateways: &Arc<Gateways>,
    users: &Users,
    regions: &[String],
    mut orders: watch::Receiver<Orders>,
) -> Driven {
    let mut random = StdRng::seed_from_u64(options.seed);
    let regions: Arc<[String]> = regions.into();
    let started = Instant::now();
    let wanted = options.seconds.saturating_mul(u64::from(options.rate));
    let mut live = Live::new(&regions);
    let mut under_way = JoinSet::new();
    let mut all = Noted::default();
    let mut next = 0_u64;
    loop {
        let due = started + Duration::from_secs(1).mul_f64(to_f64(next) / f64::from(options.rate));
        tokio::select! {
            biased;
            _ = sleep_until(due), if next < wanted => {
                let order = order(run, next, due, users, &mut random);
                next += 1;
                if under_way.len() < UNDER_WAY_MAX {
                    all.meant.insert(order.number, order.meant.clone());
                    under_way.spawn(pay(Arc::clone(gateways), Arc::clone(&regions), order, started));
                } else {
                    all.not_started += 1;
                }
            }
            Some(done) = under_way.join_next(), if !under_way.is_empty() => {
                if let Ok(done) = done { all.note(done, &mut live); }
            }
            told = orders.changed() => {
                let told = told.is_ok().then(|| orders.borrow_and_update().clone());
                live.marks(told.as_ref().map_or(&[], |told| &told.marks));
                if told.is_none_or(|told| told.stop) { break }
            }
            () = live.tick() => {}
            else => break,
        }
        if next >= wanted && under_way.is_empty() {
            break;
        }
    }
    let lasted = started.elapsed();
    while let Some(done) = under_way.join_next().await {
        if let Ok(done) = done {
            all.note(done, &mut live);
        }
    }
    live.finish();
    all.into_driven(next, lasted)
}

/// For due times: exact up to 2^52 transfers.
fn to_f64(n: u64) -> f64 {
    let high = u32::try_from(n >> 32).unwrap_or(u32::MAX);
    let low = u32::try_from(n & 0xFFFF_FFFF).unwrap_or(u32::MAX);
    f64::from(high) * 4_294_967_296.0 + f64::from(low)
}

struct Order {
    number: u64,
    due: Instant,
    user: User,
    meant: Meant,
    turn: usize,
}

fn order(run: &str, number: u64, due: Instant, users: &Users, random: &mut StdRng) -> Order {
    let index = random.random_range(0..users.all().len());
    let user = users.all()[index].clone();
    let neighbours = users.neighbours(index);
    let mut payee = &neighbours[random.random_range(0..neighbours.len())];
    while payee.id == user.id {
        payee = &neighbours[random.random_range(0..neighbours.len())];
    }
    let meant = Meant {
        id: format!("{run}{number}"),
        payer: user.id.clone(),
        payee: payee.id.clone(),
        amount: random.random_range(1..=AMOUNT_MAX),
        // Until an answer says otherwise. A transfer whose task dies stays so.
        fate: Fate::Unknown,
    };
    Order {
        number,
        due,
        user,
        meant,
        turn: index,
    }
}

/// One user's transfer: at home first, then elsewhere, as the module `load` says.
async fn pay(
    gateways: Arc<Gateways>,
    regions: Arc<[String]>,
    order: Order,
    started: Instant,
) -> (u64, Request) {
    let Order {
        number,
        due,
        user,
        meant,
        turn,
    } = order;
    let body = json!({ "id": meant.id, "to": meant.payee, "amount": meant.amount });
    let body = Bytes::from(body.to_string());
    let (mut attempts, mut unknown) = (0_u16, 0_u16);
    let mut fate = None;
    let mut answered_by = 0;
    for gateway in gateways.order(&regions, user.region, turn) {
        if attempts > unknown {
            sleep(NEXT_GATEWAY_PAUSE).await;
        }
        attempts += 1;
        answered_by = gateway;
        let ask = gateways.request(&Method::POST, "/transfers", Some(&user.id), body.clone());
        match gateways.send(gateway, ask).await {
            Attempt::Answer {
                status: StatusCode::OK | StatusCode::CREATED,
                ..
            } => {
                fate = Some(Fate::Acknowledged);
                break;
            }
            // A no after an unknown attempt does not tell what came of that one.
            Attempt::Answer { .. } if unknown == 0 => {
                fate = Some(Fate::Refused);
                break;
            }
            Attempt::Answer { .. } => break,
            Attempt::NotSent => {}
            Attempt::Unknown => {
                unknown += 1;
                if unknown > 1 {
                    break;
                }
            }
        }
    }
    let without_success = if unknown > 0 {
        Fate::Unknown
    } else {
        Fate::Failed
    };
    let micros = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
    let request = Request {
        start_us: micros(due - started),
        took_us: micros(due.elapsed()),
        shard: user.shard,
        region: user.region,
        gateway: u16::try_from(answered_by).unwrap_or(u16::MAX),
        attempts,
        fate: fate.unwrap_or(without_success),
        unknown_attempts: unknown,
    };
    (number, request)
}

/// What the users noted so far, by number.
#[derive(Default)]
struct Noted {
    meant: BTreeMap<u64, Meant>,
    requests: BTreeMap<u64, Request>,
    not_started: u64,
}

impl Noted {
    fn note(&mut self, (number, request): (u64, Request), live: &mut Live) {
        if let Some(meant) = self.meant.get_mut(&number) {
            meant.fate = request.fate;
        }
        live.count(&request);
        self.requests.insert(number, request);
    }

    fn into_driven(self, offered: u64, lasted: Duration) -> Driven {
        Driven {
            requests: self.requests.into_values().collect(),
            meant: self.meant.into_values().collect(),
            offered,
            not_started: self.not_started,
            lasted,
        }
    }
}
