//! The users' side of a gateway: kept connections, and the judgement whether it is alive.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpSocket;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::places::Found;

/// How often each gateway is asked whether it is there.
const PROBE_EVERY: Duration = Duration::from_millis(500);
/// Idle connections kept to one gateway.
const IDLE_MAX: usize = 256;

/// How long users wait.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// For a connection; and without any answer from the gateway on any connection.
    pub(super) silence: Duration,
    /// For an answer from a gateway that answers others.
    pub(super) response: Duration,
}

type Sender = SendRequest<Full<Bytes>>;

pub(super) struct Gateway {
    address: SocketAddr,
    pub(super) region: String,
    idle: Mutex<Vec<Sender>>,
    /// µs since `born` when it last answered anything.
    heard: AtomicU64,
    /// Did not answer lately; users start elsewhere until a probe is answered.
    suspect: AtomicBool,
}

pub(super) struct Gateways {
    all: Vec<Gateway>,
    limits: Limits,
    born: Instant,
    /// Owns the tasks that carry the connections' bytes.
    drivers: Mutex<JoinSet<()>>,
}

/// What came of one attempt.
#[derive(Debug)]
pub(super) enum Attempt {
    /// The application answered, or the gateway for it.
    Answer { status: StatusCode, body: Bytes },
    /// Surely not executed.
    NotSent,
    /// Nobody knows.
    Unknown,
}

impl Gateways {
    pub(super) fn new(found: &[Found], limits: Limits) -> Self {
        let all = found.iter().map(|found| Gateway {
            address: found.address,
            region: found.region.clone(),
            idle: Mutex::default(),
            heard: AtomicU64::new(0),
            suspect: AtomicBool::new(false),
        });
        let drivers = Mutex::default();
        Self {
            all: all.collect(),
            limits,
            born: Instant::now(),
            drivers,
        }
    }

    /// Asks every gateway all the time whether it is there, until what it returns is dropped.
    pub(super) fn probe(self: &Arc<Self>) -> JoinSet<()> {
        let mut probes = JoinSet::new();
        for index in 0..self.all.len() {
            let gateways = Arc::clone(self);
            probes.spawn(async move {
                let mut every = tokio::time::interval(PROBE_EVERY);
                loop {
                    every.tick().await;
                    // Without a user any cell may answer. Whatever it says, it is there.
                    let ask = gateways.request(&Method::GET, "/healthz", None, Bytes::new());
                    let there = gateways.send(index, ask).await;
                    let suspect = !matches!(there, Attempt::Answer { .. });
                    gateways.all[index]
                        .suspect
                        .store(suspect, Ordering::Relaxed);
                }
            });
        }
        probes
    }

    /// The gateways in the order in which a user of `region` tries them: those of its city first,
    /// then the next cities'; suspects only if there are no others. `turn` spreads users over a city's gateways.
    pub(super) fn order(&self, regions: &[String], region: u16, turn: usize) -> Vec<usize> {
        let count = regions.len();
        let mut order = Vec::with_capacity(self.all.len());
        for step in 0..count {
            let city = &regions[(usize::from(region) + step) % count];
            let here: Vec<_> = (0..self.all.len())
                .filter(|g| self.all[*g].region == *city)
                .collect();
            let first = turn % here.len().max(1);
            order.extend(here.iter().cycle().skip(first).take(here.len()));
        }
        // A gateway that answers nobody would only turn a clear "not sent" into an unknown outcome.
        let there = |gateway: &usize| !self.all[*gateway].suspect.load(Ordering::Relaxed);
        if order.iter().any(there) {
            order.retain(there);
        }
        order
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn request(
        &self,
        method: &Method,
        path: &'static str,
        user: Option<&str>,
        body: Bytes,
    ) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method.clone();
        *request.uri_mut() = http::Uri::from_static(path);
        let headers = request.headers_mut();
        headers.insert(
            http::header::HOST,
            http::HeaderValue::from_static("bank.example"),
        );
        if let Some(user) = user.and_then(|user| http::HeaderValue::from_str(user).ok()) {
            headers.insert("x-user-id", user);
        }
        request
    }

    fn now(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// One attempt at one gateway.
    pub(super) async fn send(&self, index: usize, request: Request<Full<Bytes>>) -> Attempt {
        let gateway = &self.all[index];
        let mut request = request;
        loop {
            let (mut sender, kept) = match self.kept(gateway) {
                Some(sender) => (sender, true),
                None => match self.connect(gateway).await {
                    Some(sender) => (sender, false),
                    None => {
                        gateway.suspect.store(true, Ordering::Relaxed);
                        return Attempt::NotSent;
                    }
                },
            };
            let answer = async {
                let answer = sender.try_send_request(request).await;
                match answer {
                    Ok(answer) => {
                        gateway.heard.store(self.now(), Ordering::Relaxed);
                        let (head, body) = answer.into_parts();
                        // A cut answer's head still tells the outcome; its body does not matter
                        // but to those who read the books, who see the missing end.
                        let body = body
                            .collect()
                            .await
                            .map(http_body_util::Collected::to_bytes);
                        Ok((head, body.unwrap_or_default()))
                    }
                    Err(mut error) => Err(error.take_message()),
                }
            };
            let outcome = self.patiently(gateway, answer).await;
            match outcome {
                Some(Ok((head, body))) => {
                    self.keep(gateway, sender);
                    return judge(&head, body);
                }
                // Handed back: not a byte of it was written. An idle connection may well have been
                // closed meanwhile; a fresh one tells more.
                Some(Err(Some(unsent))) if kept => request = unsent,
                Some(Err(Some(_))) => return Attempt::NotSent,
                Some(Err(None)) => return Attempt::Unknown,
                // Alive, and busy with others: it held this request for too long.
                None if !self.silent(gateway) => return Attempt::Unknown,
                None => {
                    gateway.suspect.store(true, Ordering::Relaxed);
                    gateway
                        .idle
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .clear();
                    return Attempt::Unknown;
                }
            }
        }
    }

    /// Waits until the answer, the gateway's silence, or the response limit; none for the latter two.
    async fn patiently<T>(&self, gateway: &Gateway, answer: impl Future<Output = T>) -> Option<T> {
        let mut answer = std::pin::pin!(answer);
        let sent = Instant::now();
        loop {
            let heard = self.born + Duration::from_micros(gateway.heard.load(Ordering::Relaxed));
            let silent = sent.max(heard) + self.limits.silence;
            let until = silent.min(sent + self.limits.response);
            tokio::select! {
                answer = &mut answer => return Some(answer),
                () = sleep_until(until) => {}
            }
            let heard = self.born + Duration::from_micros(gateway.heard.load(Ordering::Relaxed));
            let now = Instant::now();
            if now >= sent + self.limits.response || now >= heard.max(sent) + self.limits.silence {
                return None;
            }
        }
    }

    /// Whether it has answered nothing at all for the limit.
    fn silent(&self, gateway: &Gateway) -> bool {
        let heard = Duration::from_micros(gateway.heard.load(Ordering::Relaxed));
        self.born.elapsed().saturating_sub(heard) >= self.limits.silence
    }

    fn kept(&self, gateway: &Gateway) -> Option<Sender> {
        let mut idle = gateway.idle.lock().unwrap_or_else(PoisonError::into_inner);
        std::iter::from_fn(|| idle.pop()).find(|sender| sender.is_ready() && !sender.is_closed())
    }

    fn keep(&self, gateway: &Gateway, sender: Sender) {
        let mut idle = gateway.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX && !sender.is_closed() {
            idle.push(sender);
        }
    }

    async fn connect(&self, gateway: &Gateway) -> Option<Sender> {
        let connect = async {
            let socket = match gateway.address {
                SocketAddr::V4(_) => TcpSocket::new_v4(),
                SocketAddr::V6(_) => TcpSocket::new_v6(),
            };
            let stream = socket.ok()?.connect(gateway.address).await.ok()?;
            stream.set_nodelay(true).ok()?;
            handshake(TokioIo::new(stream)).await.ok()
        };
        let (sender, driver) = timeout(self.limits.silence, connect).await.ok()??;
        let mut drivers = self.drivers.lock().unwrap_or_else(PoisonError::into_inner);
        while drivers.try_join_next().is_some() {}
        drivers.spawn(async move { drop(driver.await) });
        Some(sender)
    }
}

fn judge(head: &http::response::Parts, body: Bytes) -> Attempt {
    let told = head
        .headers
        .get("atoll-outcome")
        .map(http::HeaderValue::as_bytes);
    match (head.status, told) {
        (_, Some(b"not-sent")) | (StatusCode::TOO_MANY_REQUESTS, None) => Attempt::NotSent,
        (_, Some(_)) => Attempt::Unknown,
        (status, None) if status.is_server_error() => Attempt::Unknown,
        (status, None) => Attempt::Answer { status, body },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str, region: &str) -> Found {
        let address = "127.0.0.1:1".parse().unwrap();
        Found {
            name: name.into(),
            region: region.into(),
            address,
        }
    }

    #[tokio::test]
    async fn users_enter_at_home_and_pass_by_suspects() {
        let limits = Limits {
            silence: Duration::from_secs(2),
            response: Duration::from_secs(15),
        };
        let all = [
            found("a1", "a"),
            found("a2", "a"),
            found("b", "b"),
            found("c", "c"),
        ];
        let gateways = Gateways::new(&all, limits);
        let regions = ["a".to_owned(), "b".to_owned(), "c".to_owned()];
        assert_eq!(gateways.order(&regions, 0, 0), [0, 1, 2, 3]);
        assert_eq!(gateways.order(&regions, 0, 1), [1, 0, 2, 3]);
        assert_eq!(gateways.order(&regions, 1, 0), [2, 3, 0, 1]);
        gateways.all[2].suspect.store(true, Ordering::Relaxed);
        assert_eq!(gateways.order(&regions, 1, 0), [3, 0, 1]);
        for gateway in &gateways.all {
            gateway.suspect.store(true, Ordering::Relaxed);
        }
        assert_eq!(gateways.order(&regions, 1, 0), [2, 3, 0, 1]);
    }

    #[test]
    fn only_a_clear_word_says_not_sent() {
        let of = |status: u16, told: Option<&'static str>| {
            let mut answer = http::Response::builder().status(status);
            if let Some(told) = told {
                answer = answer.header("atoll-outcome", told);
            }
            judge(&answer.body(()).unwrap().into_parts().0, Bytes::new())
        };
        assert!(matches!(of(503, Some("not-sent")), Attempt::NotSent));
        assert!(matches!(of(503, None), Attempt::Unknown));
        assert!(matches!(of(502, Some("unknown")), Attempt::Unknown));
        assert!(matches!(of(504, None), Attempt::Unknown));
        assert!(matches!(of(201, None), Attempt::Answer { .. }));
        assert!(matches!(of(422, None), Attempt::Answer { .. }));
    }
}
