//! Intent that comes in and answers that go out, over HTTP: handlers translate, they decide
//! nothing.

pub(crate) mod automatic;
pub(crate) mod executions;
mod explain;
mod order;
mod proof;
mod rows;
pub(crate) mod status;
mod topology;
pub(crate) mod watch;

pub(crate) use order::object;
pub(crate) use topology::remember;

use std::net::SocketAddr;
use std::sync::Arc;

use atoll_api::{Code, Problem};
use atoll_store::StoreError;
use atoll_telemetry::admin::Incoming;
use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tracing::warn;

use crate::app::Control;
use crate::error::Error;
use crate::records::ChangeError;

/// Serves the resources; gives the address that it listens on.
pub(crate) async fn listen(control: Arc<Control>, at: SocketAddr) -> Result<SocketAddr, Error> {
    let runtime = control.runtime.clone();
    let listener = runtime
        .listen(at)
        .await
        .map_err(|source| Error::Listen { at, source })?;
    let address = listener.local_addr();
    let one = get(order::get).patch(executions::patch);
    let routes = Router::new()
        .route(atoll_api::STATUS, get(status::get))
        .route(atoll_api::EXPLAIN, get(explain::explain))
        .route(atoll_api::LOCATE, get(explain::locate))
        .route(
            atoll_api::AUTOMATIC,
            get(automatic::get).post(automatic::post),
        )
        .route(atoll_api::KEY, get(proof::key))
        .route(
            &format!("{}/executions/{{name}}/proof", atoll_api::RESOURCES),
            get(proof::get),
        )
        .route(atoll_api::SCHEMA, post(rows::schema))
        .route(atoll_api::ROWS, get(rows::rows))
        .route(
            &format!("{}/{{plural}}", atoll_api::RESOURCES),
            get(order::list).post(order::create),
        )
        .route(
            &format!("{}/{{plural}}/{{name}}", atoll_api::RESOURCES),
            one,
        )
        .fallback(async || Failed::from(Problem::new(Code::NOT_FOUND, "there is no such path")))
        .with_state(control);
    let shutdown = runtime.shutdown();
    runtime.tasks().spawn("api", async move {
        tokio::select! {
            served = axum::serve(Incoming(listener), routes).into_future() => {
                if let Err(error) = served {
                    warn!(%error, "the API ended");
                }
            }
            // Watches never end by themselves, so the end is plain.
            () = shutdown.requested() => {}
        }
    });
    Ok(address)
}

/// A problem as an answer.
pub(crate) struct Failed(Box<Problem>);

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_string(&self.0).unwrap_or_default();
        (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
    }
}

impl From<Problem> for Failed {
    fn from(problem: Problem) -> Self {
        Self(Box::new(problem))
    }
}

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Self {
        let code = match &error {
            StoreError::OutcomeUnknown { .. } => Code::STORE_UNKNOWN,
            StoreError::Conflict { .. } => Code::CONFLICT,
            _ => Code::STORE,
        };
        Self::from(Problem::new(code, "the store did not do it").why(error.to_string()))
    }
}

impl From<ChangeError> for Failed {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::Refused(refusal) => Self::from(
                Problem::new(Code::GUARD, "the change was refused").why(refusal.to_string()),
            ),
            ChangeError::Store(error) => error.into(),
            error @ (ChangeError::Raced { .. } | ChangeError::Unknown { .. }) => {
                Self::from(Problem::new(Code::CONFLICT, error.to_string()))
            }
        }
    }
}
