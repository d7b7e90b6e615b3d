//! The text of a query, as the router splits it.
#![no_main]

use atoll_pgwire::sql::{leading_comments, statements};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    let _ = statements(text);
    let _ = leading_comments(text);
});
