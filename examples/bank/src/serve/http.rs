//! HTTP in, HTTP out. Each handler is three lines: read, do, answer.

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use serde_json::json;

use super::Options;
use super::accounts::{Done, Transfer, is_user};
use super::outcome::{Failure, Refusal};
use super::sql::Sql;

/// Longest request body.
const BODY_BYTES_MAX: usize = 16 * 1024;
/// Longest idempotency key.
const ID_BYTES_MAX: usize = 100;
/// The most that one account or transfer may hold, in cents.
const AMOUNT_MAX: i64 = 1_000_000_000_000;

pub(crate) struct Bank {
    sql: Sql,
    cell: Option<HeaderValue>,
}

type Answer = Response<Full<Bytes>>;

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Opening {
    initial: i64,
}

impl Bank {
    pub(crate) fn new(options: &Options) -> Self {
        let cell = options
            .cell
            .as_deref()
            .and_then(|name| HeaderValue::from_str(name).ok());
        Self {
            sql: Sql::new(options),
            cell,
        }
    }

    pub(crate) async fn answer(&self, request: Request<Incoming>) -> Answer {
        let mut answer = match self.route(request).await {
            Ok(answer) => answer,
            Err(Said::Answer(answer)) => *answer,
            Err(Said::Failure(failure)) => failed(&failure),
        };
        if let Some(cell) = &self.cell {
            answer.headers_mut().insert("bank-cell", cell.clone());
        }
        answer
    }

    async fn route(&self, request: Request<Incoming>) -> Result<Answer, Said> {
        let path = request.uri().path().to_owned();
        match (request.method().clone(), path.as_str()) {
            (Method::GET, "/healthz") => Ok(text(StatusCode::OK, "ok\n".into())),
            (Method::POST, "/accounts") => {
                let user = user(&request)?;
                let opening: Opening = body(request).await?;
                in_range(opening.initial, 0)?;
                let done = self.sql.open(&user, opening.initial).await?;
                Ok(done_answer(
                    done,
                    &json!({ "user": user, "opened": opening.initial }),
                ))
            }
            (Method::POST, "/transfers") => {
                let user = user(&request)?;
                let order: Transfer = body(request).await?;
                check(&user, &order)?;
                let done = self.sql.transfer(&user, &order).await?;
                Ok(done_answer(done, &json!({ "id": order.id })))
            }
            (Method::POST, "/canary") => {
                let n = self.sql.canary(&user(&request)?).await?;
                Ok(json_answer(StatusCode::OK, &json!({ "n": n })))
            }
            (Method::GET, "/statement") => self.statement(&user(&request)?).await,
            (Method::GET, "/ledger") => self.ledger(&user(&request)?).await,
            (Method::GET, path) if path.starts_with("/accounts/") => {
                let account = &path["/accounts/".len()..];
                let balance = self.sql.balance(&user(&request)?, account).await?;
                Ok(json_answer(
                    StatusCode::OK,
                    &json!({ "user": account, "balance": balance }),
                ))
            }
            _ => Err(problem(StatusCode::NOT_FOUND, "no such resource")),
        }
    }

    async fn statement(&self, user: &str) -> Result<Answer, Said> {
        let balance = self.sql.balance(user, user).await?;
        let lines = self.sql.statement(user).await?;
        let line = |(id, payer, payee, amount, at_ms): &(String, String, String, i64, i64)| json!({ "id": id, "from": payer, "to": payee, "amount": amount, "at_ms": at_ms });
        let lines: Vec<_> = lines.iter().map(line).collect();
        let statement = json!({ "user": user, "balance": balance, "transfers": lines });
        Ok(json_answer(StatusCode::OK, &statement))
    }

    /// For auditors: everything in the user's shard, one tab-separated line each, and a last line
    /// with their number, so that a cut answer is seen.
    async fn ledger(&self, user: &str) -> Result<Answer, Said> {
        let lines = self.sql.ledger(user).await?;
        let mut all = String::new();
        for line in &lines {
            all.push_str(line.join("\t").trim_end_matches('\t'));
            all.push('\n');
        }
        all.push_str(&format!("end\t{}\n", lines.len()));
        Ok(text(StatusCode::OK, all))
    }
}

/// Why a handler stopped early.
enum Said {
    Answer(Box<Answer>),
    Failure(Failure),
}

impl From<Failure> for Said {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

fn user(request: &Request<Incoming>) -> Result<String, Said> {
    let user = request
        .headers()
        .get("x-user-id")
        .and_then(|value| value.to_str().ok());
    match user {
        Some(user) if is_user(user) => Ok(user.to_owned()),
        Some(_) => Err(problem(
            StatusCode::BAD_REQUEST,
            "header x-user-id is not a user id",
        )),
        None => Err(problem(
            StatusCode::BAD_REQUEST,
            "header x-user-id is missing",
        )),
    }
}

fn in_range(amount: i64, least: i64) -> Result<(), Said> {
    if (least..=AMOUNT_MAX).contains(&amount) {
        Ok(())
    } else {
        Err(problem(
            StatusCode::BAD_REQUEST,
            "the amount is out of range",
        ))
    }
}

fn check(user: &str, order: &Transfer) -> Result<(), Said> {
    in_range(order.amount, 1)?;
    if order.id.is_empty() || order.id.len() > ID_BYTES_MAX || !order.id.is_ascii() {
        return Err(problem(
            StatusCode::BAD_REQUEST,
            "id: 1 to 100 ASCII characters",
        ));
    }
    if !is_user(&order.to) || order.to == user {
        return Err(problem(StatusCode::BAD_REQUEST, "to: another user"));
    }
    Ok(())
}

async fn body<T: serde::de::DeserializeOwned>(request: Request<Incoming>) -> Result<T, Said> {
    let bytes = Limited::new(request.into_body(), BODY_BYTES_MAX)
        .collect()
        .await;
    let bytes = bytes
        .map_err(|e| problem(StatusCode::BAD_REQUEST, &e.to_string()))?
        .to_bytes();
    serde_json::from_slice(&bytes).map_err(|e| problem(StatusCode::BAD_REQUEST, &e.to_string()))
}

fn failed(failure: &Failure) -> Answer {
    let (status, outcome) = match failure {
        Failure::Again(_) | Failure::NotExecuted(_) => {
            (StatusCode::SERVICE_UNAVAILABLE, Some("not-sent"))
        }
        Failure::Unknown(_) => (StatusCode::BAD_GATEWAY, Some("unknown")),
        Failure::Refused(Refusal::Insufficient) => (StatusCode::UNPROCESSABLE_ENTITY, None),
        Failure::Refused(Refusal::NoAccount) => (StatusCode::NOT_FOUND, None),
        Failure::Refused(Refusal::Conflict) => (StatusCode::CONFLICT, None),
    };
    let mut answer = problem_answer(status, &failure.to_string());
    if let Some(outcome) = outcome {
        answer
            .headers_mut()
            .insert("atoll-outcome", HeaderValue::from_static(outcome));
    }
    answer
}

fn problem(status: StatusCode, detail: &str) -> Said {
    Said::Answer(Box::new(problem_answer(status, detail)))
}

fn problem_answer(status: StatusCode, detail: &str) -> Answer {
    let title = status.canonical_reason().unwrap_or("error");
    let problem = json!({ "title": title, "status": status.as_u16(), "detail": detail });
    with_type(status, "application/problem+json", problem.to_string())
}

fn done_answer(done: Done, value: &serde_json::Value) -> Answer {
    let status = match done {
        Done::Now => StatusCode::CREATED,
        Done::Before => StatusCode::OK,
    };
    json_answer(status, value)
}

fn json_answer(status: StatusCode, value: &serde_json::Value) -> Answer {
    with_type(status, "application/json", value.to_string())
}

fn text(status: StatusCode, body: String) -> Answer {
    with_type(status, "text/plain; charset=utf-8", body)
}

fn with_type(status: StatusCode, kind: &'static str, body: String) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}
