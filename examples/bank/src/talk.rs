//! stdout is data, stderr is talk. A reader that went away is no reason to fail.

use std::io::Write as _;

/// Writes one line of data to stdout.
pub fn data(line: &str) {
    writeln!(std::io::stdout(), "{line}").ok();
}

/// Writes one line for people to stderr.
pub fn say(line: &str) {
    writeln!(std::io::stderr(), "{line}").ok();
}
