//! How data is printed.

use atoll_api::{Code, Problem};
use serde::Serialize;

use crate::Failure;

/// How data is printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A line each
    #[default]
    Table,
    /// The same with more columns
    Wide,
    /// Everything, for programs
    Json,
    /// Everything, for people
    Yaml,
    /// Names only
    Name,
}

/// Pretty JSON. Our types always have one; what has none is shown as null.
pub(crate) fn json(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).unwrap_or_else(|_| "null".into())
}

/// JSON or YAML; none for the other formats, which each command prints in its own way.
pub(crate) fn whole(value: &impl Serialize, format: Format) -> Result<Option<String>, Failure> {
    match format {
        Format::Json => Ok(Some(json(value))),
        Format::Yaml => match serde_saphyr::to_string(value) {
            Ok(text) => Ok(Some(text.trim_end().to_owned())),
            Err(error) => {
                let what = "this cannot be written as YAML; use -o json";
                Err(Box::new(
                    Problem::new(Code::USAGE, what).why(error.to_string()),
                ))
            }
        },
        Format::Table | Format::Wide | Format::Name => Ok(None),
    }
}
