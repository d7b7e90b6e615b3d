//! Log lines: one JSON object a line on stderr, the process's own fields in each.

use std::io;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::json::JsonLines;

/// The environment variable with the filter, in the syntax of `tracing_subscriber`.
const FILTER_VARIABLE: &str = "ATOLL_LOG";
/// The filter when there is none: our own events, and warnings of libraries.
const FILTER_DEFAULT: &str = "info,h2=warn,hyper=warn,tonic=warn,tower=warn,redb=warn";

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The filter is not one.
    #[error("the log filter {filter:?} is not valid")]
    Filter {
        /// As given in the environment.
        filter: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// It was set up before.
    #[error("logging is set up already")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
}

/// Sends this process's events to stderr, filtered by `ATOLL_LOG`. `fields` (`region`, `cell`,
/// `process`, …) are in every line, beside `role`. Once per process, first thing in `main`.
#[expect(clippy::disallowed_methods, reason = "read once, in `main`")]
pub fn init(role: &str, fields: &[(&str, &str)]) -> Result<(), InitError> {
    let filter = std::env::var(FILTER_VARIABLE).unwrap_or_else(|_| FILTER_DEFAULT.to_owned());
    init_filtered(role, fields, &filter)
}

/// As [`init`], with the filter given instead of read from the environment.
pub fn init_filtered(role: &str, fields: &[(&str, &str)], filter: &str) -> Result<(), InitError> {
    let parsed = EnvFilter::try_new(filter).map_err(|source| InitError::Filter {
        filter: filter.to_owned(),
        source,
    })?;
    tracing_subscriber::registry()
        .with(parsed)
        .with(JsonLines::new(role, fields, io::stderr))
        .try_init()?;
    Ok(())
}
