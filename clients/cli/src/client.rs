//! Asks control over HTTP. Endpoints are tried in turn with a limit each, so a dead region costs
//! two seconds, not a hang; a request that may have been taken is not sent a second time unless
//! that is harmless. A replica that has no majority of the store is passed over: what it shows is
//! shown only where no other one answers.

use std::net::SocketAddr;
use std::time::Duration;

use atoll_api::{AnyObject, Code, List, Problem, WatchEvent};
use atoll_runtime::{Runtime, TaskHandle};
use bytes::{Buf as _, Bytes, BytesMut};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use crate::Failure;
use crate::command::Common;

/// Longest wait for one endpoint's connection, and for its answer to a question.
pub const ENDPOINT_LIMIT: Duration = Duration::from_secs(2);
/// Longest wait for an answer to an order: planning asks agents, a schema goes to every shard.
const ORDER_LIMIT: Duration = Duration::from_secs(120);
/// Longest answer.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

pub(crate) struct Client {
    runtime: Runtime,
    endpoints: Vec<SocketAddr>,
}

/// Whether a request may be asked twice.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Repeat {
    Harmless,
    Never,
}

/// Why one endpoint gave no answer.
enum Missed {
    /// Surely not taken.
    NotSent(String),
    /// It may have been taken.
    Lost(String),
}

/// A watch that is under way.
pub(crate) struct Watch {
    body: Incoming,
    buffer: BytesMut,
    _driver: TaskHandle<()>,
}

impl Client {
    pub(crate) fn new(runtime: &Runtime, common: &Common) -> Result<Self, Failure> {
        Ok(Self {
            runtime: runtime.clone(),
            endpoints: crate::endpoints::find(common)?,
        })
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        read(&self.look(path).await?)
    }

    /// An answer as it is.
    pub(crate) async fn text(&self, path: &str) -> Result<String, Failure> {
        Ok(String::from_utf8_lossy(&self.look(path).await?).into_owned())
    }

    async fn look(&self, path: &str) -> Result<Bytes, Failure> {
        self.ask(&Method::GET, path, Bytes::new(), Repeat::Harmless)
            .await
    }

    pub(crate) async fn list(&self, path: &str) -> Result<List, Failure> {
        self.get(path).await
    }

    pub(crate) async fn one(&self, path: &str) -> Result<AnyObject, Failure> {
        self.get(path).await
    }

    /// An order. It is sent to one replica only, and once.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        self.send(&Method::POST, path, body, Repeat::Never).await
    }

    /// A change that may be made twice: its outcome is the same.
    pub(crate) async fn patch<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        self.send(&Method::PATCH, path, body, Repeat::Harmless)
            .await
    }

    async fn send<T: DeserializeOwned>(
        &self,
        method: &Method,
        path: &str,
        body: &impl Serialize,
        repeat: Repeat,
    ) -> Result<T, Failure> {
        let body = serde_json::to_vec(body).map_err(|e| Problem::unreadable(&e))?;
        read(&self.ask(method, path, body.into(), repeat).await?)
    }

    async fn ask(
        &self,
        method: &Method,
        path: &str,
        body: Bytes,
        repeat: Repeat,
    ) -> Result<Bytes, Failure> {
        let limit = match repeat {
            Repeat::Harmless => ENDPOINT_LIMIT,
            Repeat::Never => ORDER_LIMIT,
        };
        let (mut missed, mut old) = (Vec::new(), None);
        for endpoint in &self.endpoints {
            if repeat == Repeat::Never
                && self.endpoints.len() > 1
                && let Err(why) = self.takes_orders(*endpoint).await
            {
                missed.push(format!("{endpoint}: {why}"));
                continue;
            }
            match self
                .ask_one(*endpoint, method, path, body.clone(), limit)
                .await
            {
                Ok((status, answer)) if status.is_success() => {
                    if path == atoll_api::STATUS && is_read_only(&answer) {
                        old = Some(answer);
                        continue;
                    }
                    return Ok(answer);
                }
                Ok((status, answer)) => {
                    let problem = problem(*endpoint, status, &answer);
                    // Its store did not do it: another replica's may.
                    let told = problem.details.atoll.as_ref();
                    if told.is_some_and(|told| told.code == Code::STORE) {
                        missed.push(format!("{endpoint}: {}", problem.message));
                        continue;
                    }
                    return Err(problem);
                }
                Err(Missed::Lost(why)) if repeat == Repeat::Never => {
                    let lost = Problem::new(Code::LOST_ANSWER, "the answer was lost")
                        .why(why)
                        .place(format!("{method} {path} at {endpoint}"))
                        .effect("it may have been taken");
                    return Err(Box::new(lost));
                }
                Err(Missed::NotSent(why) | Missed::Lost(why)) => {
                    missed.push(format!("{endpoint}: {why}"));
                }
            }
        }
        old.ok_or_else(|| no_endpoint(missed))
    }

    /// Whether a replica is there, and may write: an order that is lost in one that hangs may have
    /// been taken, and could not be given to another.
    async fn takes_orders(&self, endpoint: SocketAddr) -> Result<(), String> {
        let asked = self.ask_one(
            endpoint,
            &Method::GET,
            atoll_api::STATUS,
            Bytes::new(),
            ENDPOINT_LIMIT,
        );
        match asked.await {
            Ok((_, answer)) if is_read_only(&answer) => {
                Err("it has no majority of the store".to_owned())
            }
            Ok(_) => Ok(()),
            Err(Missed::NotSent(why) | Missed::Lost(why)) => Err(why),
        }
    }

    async fn ask_one(
        &self,
        endpoint: SocketAddr,
        method: &Method,
        path: &str,
        body: Bytes,
        limit: Duration,
    ) -> Result<(StatusCode, Bytes), Missed> {
        let request = request(method, path, body)?;
        let (mut sender, _driver) = self.connect(endpoint).await?;
        let answer = async {
            let answer = sender.send_request(request).await.map_err(lost)?;
            let status = answer.status();
            let body = http_body_util::Limited::new(answer.into_body(), ANSWER_BYTES_MAX);
            let body = body
                .collect()
                .await
                .map_err(|error| Missed::Lost(error.to_string()))?;
            Ok((status, body.to_bytes()))
        };
        let late = |_| Missed::Lost(format!("no answer in {} s", limit.as_secs()));
        timeout(limit, answer).await.map_err(late)?
    }

    async fn connect(
        &self,
        endpoint: SocketAddr,
    ) -> Result<
        (
            hyper::client::conn::http1::SendRequest<Full<Bytes>>,
            TaskHandle<()>,
        ),
        Missed,
    > {
        let connect = async {
            let stream = self.runtime.connect(endpoint).await;
            let stream = stream.map_err(|error| Missed::NotSent(error.to_string()))?;
            let shaken = hyper::client::conn::http1::handshake(stream.hyper()).await;
            shaken.map_err(|error| Missed::NotSent(error.to_string()))
        };
        let seconds = ENDPOINT_LIMIT.as_secs();
        let late = |_| Missed::NotSent(format!("no connection in {seconds} s"));
        let (sender, driver) = timeout(ENDPOINT_LIMIT, connect).await.map_err(late)??;
        // Ends with the connection, which ends with the sender.
        let driver = async move { drop(driver.await) };
        Ok((sender, self.runtime.tasks().spawn("api connection", driver)))
    }

    /// Begins a watch at the first endpoint that answers.
    pub(crate) async fn watch(&self, path: &str) -> Result<Watch, Failure> {
        let mut missed = Vec::new();
        for endpoint in &self.endpoints {
            match self.watch_one(*endpoint, path).await {
                Ok(begun) => return begun,
                Err(Missed::NotSent(why) | Missed::Lost(why)) => {
                    missed.push(format!("{endpoint}: {why}"));
                }
            }
        }
        Err(no_endpoint(missed))
    }

    async fn watch_one(
        &self,
        endpoint: SocketAddr,
        path: &str,
    ) -> Result<Result<Watch, Failure>, Missed> {
        let request = request(&Method::GET, path, Bytes::new())?;
        let (mut sender, driver) = self.connect(endpoint).await?;
        let late = |_| Missed::Lost(format!("no answer in {} s", ENDPOINT_LIMIT.as_secs()));
        let answer = timeout(ENDPOINT_LIMIT, sender.send_request(request)).await;
        let answer = answer.map_err(late)?.map_err(lost)?;
        let status = answer.status();
        if status.is_success() {
            let body = answer.into_body();
            return Ok(Ok(Watch {
                body,
                buffer: BytesMut::new(),
                _driver: driver,
            }));
        }
        let body = answer.into_body().collect().await.map_err(lost)?.to_bytes();
        Ok(Err(problem(endpoint, status, &body)))
    }
}

impl Watch {
    /// The next event; none when the server ended the watch or the connection broke.
    pub(crate) async fn next(&mut self) -> Option<Result<WatchEvent, Failure>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end);
                self.buffer.advance(1);
                if line.is_empty() {
                    continue;
                }
                return Some(read(&line));
            }
            let frame = self.body.frame().await?.ok()?;
            if let Ok(bytes) = frame.into_data() {
                if self.buffer.len() + bytes.len() > ANSWER_BYTES_MAX {
                    return None;
                }
                self.buffer.extend_from_slice(&bytes);
            }
        }
    }
}

/// Whether a status says that its replica only shows what it last knew.
fn is_read_only(status: &[u8]) -> bool {
    serde_json::from_slice::<atoll_api::WorldStatus>(status).is_ok_and(|status| status.read_only)
}

fn lost(error: hyper::Error) -> Missed {
    Missed::Lost(std::error::Error::source(&error).map_or(error.to_string(), ToString::to_string))
}

fn request(method: &Method, path: &str, body: Bytes) -> Result<Request<Full<Bytes>>, Missed> {
    Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::HOST, "atoll")
        .header(http::header::CONTENT_TYPE, "application/json")
        .header(http::header::ACCEPT, "application/json")
        .body(Full::new(body))
        .map_err(|error| Missed::NotSent(error.to_string()))
}

fn read<T: DeserializeOwned>(answer: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(answer).map_err(|error| Box::new(Problem::unreadable(&error)))
}

fn problem(endpoint: SocketAddr, status: StatusCode, answer: &[u8]) -> Failure {
    Box::new(serde_json::from_slice(answer).unwrap_or_else(|_| {
        let start: String = String::from_utf8_lossy(answer).chars().take(200).collect();
        Problem::new(
            Code::UNREADABLE_ANSWER,
            format!("{endpoint} answered {status}"),
        )
        .why(format!("not an answer of control: {start:?}"))
    }))
}

fn no_endpoint(missed: Vec<String>) -> Failure {
    let problem = Problem::new(Code::NO_ENDPOINT, "no server answers")
        .effect("data planes serve on without control; no change of ownership begins")
        .next("atoll dev status");
    Box::new(missed.into_iter().fold(problem, Problem::why))
}
