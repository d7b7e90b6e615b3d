//! What would break a promise: settings, names and functions that no statement may use, wherever
//! they stand. There is a way round every list of places; where a name alone cannot tell, it is no.

use atoll_pgwire::hint::KEY_SETTING;
use atoll_pgwire::sql::Token;

use crate::error::Refusal;

/// Settings on which safety or pooling rests.
pub(crate) const OWNED_SETTINGS: [&str; 9] = [
    "synchronous_commit",
    "session_replication_role",
    "default_transaction_read_only",
    "search_path",
    "schema",
    "role",
    "session_authorization",
    "standard_conforming_strings",
    "backslash_quote",
];

/// Names that no statement may contain, wherever they stand: there is a way round every list of
/// places. SHOW is told apart by its first word.
pub(crate) const NAMES_NEVER: [&str; 2] = ["synchronous_commit", "session_replication_role"];

/// Functions that run a text as a statement, or keep something in the session.
pub(crate) const FUNCTIONS_NEVER: [&str; 8] = [
    "query_to_xml",
    "query_to_xmlschema",
    "query_to_xml_and_xmlschema",
    "ts_stat",
    "pg_advisory_lock",
    "pg_advisory_lock_shared",
    "pg_try_advisory_lock",
    "pg_try_advisory_lock_shared",
];

pub(crate) fn feature<T>(what: &'static str, hint: &'static str) -> Result<T, Refusal> {
    Err(Refusal::Feature { what, hint })
}

pub(crate) fn owned<T>() -> Result<T, Refusal> {
    feature(
        "a setting that the router owns",
        "synchronous_commit, session_replication_role, default_transaction_read_only, search_path, \
         role, session_authorization and the reading of strings are the router's.",
    )
}

pub(crate) fn refuse_names(tokens: &[Token]) -> Result<(), Refusal> {
    if tokens.first().is_some_and(|first| first.is("show")) {
        return Ok(());
    }
    let name = |at: usize| {
        tokens
            .get(at)
            .and_then(Token::name)
            .map(str::to_ascii_lowercase)
    };
    for at in 0..tokens.len() {
        let Some(name) = name(at) else { continue };
        let name = name.as_str();
        let called = tokens.get(at + 1) == Some(&Token::Punctuation(b'('));
        if NAMES_NEVER.contains(&name) {
            return owned();
        }
        if name == "pg_settings" && tokens.iter().any(|token| token.is("update")) {
            return owned();
        }
        if name == "pg_temp" || name.starts_with("pg_temp_") {
            return temporary();
        }
        if called && name == "set_config" && !is_harmless_set_config(&tokens[at + 2..]) {
            return feature(
                "set_config in this form",
                "Only set_config('name', value, true) with a plain constant as the name; or use SET.",
            );
        }
        if called && FUNCTIONS_NEVER.contains(&name) {
            return feature(
                "a function that runs text as SQL or outlives its transaction",
                "Advisory locks are taken with the pg_advisory_xact_ functions.",
            );
        }
    }
    Ok(())
}

/// Whether the arguments are a plain name that is nobody's, a value, and `true`.
pub(crate) fn is_harmless_set_config(arguments: &[Token]) -> bool {
    let [Token::Text(name), Token::Punctuation(b','), rest @ ..] = arguments else {
        return false;
    };
    let name = name.to_ascii_lowercase();
    if OWNED_SETTINGS.contains(&name.as_str()) || name == KEY_SETTING || name == "client_encoding" {
        return false;
    }
    matches!(
        rest,
        [Token::Text(_) | Token::Parameter(_), Token::Punctuation(b','), last, Token::Punctuation(b')'), ..]
            if last.is("true")
    )
}

pub(crate) fn temporary<T>() -> Result<T, Refusal> {
    feature(
        "a temporary object",
        "Connections are shared between transactions; use a common table expression or a table.",
    )
}

/// Whether a client may give this setting in its startup message or options.
pub(crate) fn may_be_set_at_startup(name: &str) -> bool {
    !OWNED_SETTINGS.contains(&name) && !NAMES_NEVER.contains(&name)
}
