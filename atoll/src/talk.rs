//! Standard output is data, standard error is talk.

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

/// Data, for people and for programs. A reader that went away is not an error.
pub(crate) fn data(text: &str) {
    writeln!(io::stdout(), "{text}").ok();
}

/// Talk, for people.
pub(crate) fn say(text: &str) {
    writeln!(io::stderr(), "{text}").ok();
}

/// Says what failed and why, each cause on a line of its own.
pub(crate) fn fail(error: &(dyn Error + 'static)) -> ExitCode {
    say(&format!("error: {error}"));
    let mut source = error.source();
    let mut told = error.to_string();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !told.contains(&text) {
            say(&format!("  why  {text}"));
        }
        told = text;
        source = cause.source();
    }
    ExitCode::FAILURE
}
