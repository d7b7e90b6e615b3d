//! Answers of ours: `application/problem+json` with a stable code, and `atoll-outcome`, which tells
//! a client whether it may repeat. And why a gateway cannot run.

use atoll_proxy::{Answer, HoldRefused, Violation, WorkerError};
use http::{HeaderValue, Response, StatusCode, header};

use crate::peer;

/// Why a gateway cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration contradicts itself.
    #[error("configuration: {0}")]
    Config(String),
    /// The key for gateways cannot be read.
    #[error("peer key {path}: {reason}")]
    PeerKey {
        /// Its file.
        path: String,
        /// Why.
        reason: String,
    },
    /// An address cannot be listened on.
    #[error("cannot listen on {0}")]
    Listen(std::net::SocketAddr, #[source] std::io::Error),
    /// Metrics could not be registered.
    #[error(transparent)]
    Metrics(#[from] atoll_telemetry::MetricsError),
    /// A worker did not start or died.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// The follower of tables ended.
    #[error("tables: {0}")]
    Tables(String),
}

/// What a client may conclude.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing was executed: it may be repeated.
    NotSent,
    /// It may have been executed.
    Unknown,
}

impl Outcome {
    /// The value of `atoll-outcome`.
    pub fn name(self) -> &'static str {
        match self {
            Self::NotSent => "not-sent",
            Self::Unknown => "unknown",
        }
    }
}

/// Why a request is answered by us.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The request breaks a rule of HTTP.
    #[error("the request breaks a rule of HTTP/1.1: {}", .0.name())]
    Violation(Violation),
    /// The client broke off its body, or sent it too slowly or malformed.
    #[error("the body did not arrive: {0}")]
    Body(String),
    /// A place holds something that is no user id.
    #[error("{extractor} does not hold a user id: {reason}")]
    User {
        /// The place.
        extractor: String,
        /// Why.
        reason: String,
    },
    /// The user has no shard.
    #[error("{0}")]
    NoShard(String),
    /// No route has this path.
    #[error("no route matches this path")]
    NoRoute,
    /// The table does not hold together for this request.
    #[error("this request cannot be routed now: {0}")]
    Unroutable(String),
    /// The peer port was asked by somebody who is no gateway of this world.
    #[error("this port is for gateways of this world: {0}")]
    NotAPeer(String),
    /// This cell does not own the shard.
    #[error("cell {cell} does not own the shard, by table {table}")]
    NotOwner {
        /// This cell.
        cell: String,
        /// The table that says so.
        table: String,
    },
    /// The gate refused.
    #[error("the user's shard is changing hands and this request could not wait: {0}")]
    Hold(HoldRefused),
    /// A gateway with an older table waited in vain for the sender's.
    #[error("table {0} did not arrive here in time")]
    TableBehind(String),
    /// Two gateways disagree about the owner.
    #[error("the owner of the user's shard is not agreed on yet")]
    OwnerUnclear,
    /// A body larger than what is kept cannot be sent a second time.
    #[error("the request was not taken, and its body is too large to be sent again from here")]
    BodyNotKept,
    /// Nobody there, and no shard to wait for.
    #[error("no cell that could answer is reachable")]
    Unreachable,
    /// Too many connections.
    #[error("too many requests are on their way to the cell")]
    Busy,
    /// The connection broke after the request was sent.
    #[error("the connection broke after the request was sent; it may have been executed")]
    Broke,
    /// No answer in time.
    #[error("no answer within the limit; the request may have been executed")]
    Silent,
    /// The cell was lost with the request.
    #[error("the cell was lost after the request was sent; it may have been executed")]
    Lost,
}

impl Problem {
    /// Stable code; see docs/errors.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Violation(_) => "A2000",
            Self::Body(_) => "A2001",
            Self::User { .. } => "A2002",
            Self::NoShard(_) => "A2003",
            Self::NoRoute => "A2004",
            Self::Unroutable(_) => "A2005",
            Self::NotAPeer(_) => "A2010",
            Self::NotOwner { .. } => "A2011",
            Self::TableBehind(_) => "A2012",
            Self::OwnerUnclear => "A2013",
            Self::BodyNotKept => "A2014",
            Self::Hold(HoldRefused::KeyFull) => "A2020",
            Self::Hold(HoldRefused::Full) => "A2021",
            Self::Hold(HoldRefused::TooLong) => "A2022",
            Self::Hold(HoldRefused::Ending) => "A2023",
            Self::Unreachable => "A2030",
            Self::Busy => "A2031",
            Self::Broke => "A2040",
            Self::Silent => "A2041",
            Self::Lost => "A2042",
        }
    }

    /// Its HTTP status.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Violation(violation) => {
                StatusCode::from_u16(violation.status()).unwrap_or(StatusCode::BAD_REQUEST)
            }
            Self::Body(_) | Self::User { .. } | Self::NoShard(_) => StatusCode::BAD_REQUEST,
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::NotAPeer(_) => StatusCode::FORBIDDEN,
            Self::NotOwner { .. } => StatusCode::MISDIRECTED_REQUEST,
            Self::Unroutable(_)
            | Self::TableBehind(_)
            | Self::OwnerUnclear
            | Self::BodyNotKept
            | Self::Hold(_)
            | Self::Unreachable
            | Self::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Self::Broke => StatusCode::BAD_GATEWAY,
            Self::Silent | Self::Lost => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// What the client may conclude.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Broke | Self::Silent | Self::Lost => Outcome::Unknown,
            _ => Outcome::NotSent,
        }
    }

    /// The answer.
    pub fn response(&self, trace: &HeaderValue) -> Response<Answer> {
        let status = self.status();
        let body = serde_json::json!({
            "type": format!("https://atoll.dev/errors/{}", self.code()),
            "title": status.canonical_reason().unwrap_or("error"),
            "status": status.as_u16(),
            "code": self.code(),
            "detail": self.to_string(),
            "outcome": self.outcome().name(),
            "trace": trace.to_str().unwrap_or_default(),
        });
        let mut response = Response::new(Answer::ours(body.to_string()));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        let json = HeaderValue::from_static("application/problem+json");
        headers.insert(header::CONTENT_TYPE, json);
        headers.insert(
            peer::OUTCOME,
            HeaderValue::from_static(self.outcome().name()),
        );
        headers.insert(peer::CODE, HeaderValue::from_static(self.code()));
        headers.insert(peer::TRACE, trace.clone());
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if matches!(self, Self::Violation(_) | Self::Body(_)) {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}
