//! Proofs, as they were sealed, and the key that they were sealed with.

use std::sync::Arc;

use atoll_api::{Code, Kind, Problem, PublicKey};
use axum::Json;
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};

use super::Failed;
use crate::app::Control;
use crate::{proof, reconcile::execution};

/// The text itself: it is what was signed.
pub(crate) async fn get(
    State(control): State<Arc<Control>>,
    Path(name): Path<String>,
) -> Result<Response, Failed> {
    if let Some(text) = proof::load(&control, &name).await? {
        return Ok(([(header::CONTENT_TYPE, "application/json")], text).into_response());
    }
    let known = execution::load(&control, &name).await?;
    let (what, next) = match known.map(|(stored, _)| stored.phase.is_over()) {
        Some(false) => (
            format!("execution {name} is not over, so it has no proof yet"),
            format!("atoll switch watch {name}"),
        ),
        Some(true) => (
            format!("execution {name} is over, and its proof could not be made"),
            format!("atoll get execution {name} -o yaml"),
        ),
        None => (
            format!("there is no execution {name}"),
            "atoll get executions".to_owned(),
        ),
    };
    Err(Failed::from(
        Problem::new(Code::NOT_FOUND, what)
            .about(Kind::Execution, name)
            .next(next),
    ))
}

pub(crate) async fn key(State(control): State<Arc<Control>>) -> Json<PublicKey> {
    Json(PublicKey {
        algorithm: "Ed25519".to_owned(),
        public_key: control.key.public(),
    })
}
