//! What a statement is to the router: something for PostgreSQL, something it answers itself, or
//! something that would break what it promises. Decided from the first words and the names used,
//! without a parser.

use std::ops::Range;

use atoll_pgwire::hint::{self, Assignment, Hint, KEY_SETTING, Scope};
use atoll_pgwire::sql::{self, Token};

use crate::error::Refusal;
use crate::refuse::{OWNED_SETTINGS, feature, owned, refuse_names, temporary};

/// A statement and what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Analysed {
    /// Where it stands in the text, its leading comments included.
    pub(crate) range: Range<usize>,
    /// What to do with it.
    pub(crate) kind: Kind,
    /// Whose data it means, by its leading comment.
    pub(crate) hint: Option<Hint>,
}

/// What to do with a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Forwarded.
    Data,
    /// BEGIN or START TRANSACTION, in a form that cannot fail.
    Begin(String),
    /// SET TRANSACTION, in a form that cannot fail before the first statement.
    SetTransaction(String),
    /// COMMIT or END.
    Commit,
    /// ROLLBACK or ABORT of the whole transaction.
    Rollback,
    /// `SET [LOCAL] atoll.key`; without a value it is taken back.
    SetKey(Scope, Option<String>),
    /// SHOW atoll.key.
    ShowKey,
    /// A setting for the session: its name, and the statement to give it again elsewhere.
    Set(String, String),
    /// RESET of one setting.
    Reset(String),
    /// RESET ALL.
    ResetAll,
    /// DISCARD ALL.
    DiscardAll,
    /// DEALLOCATE of one prepared statement, or of all.
    Deallocate(Option<String>),
    /// A setting that is the router's: answered, without effect.
    Ignored(&'static str),
}

impl Kind {
    /// Whether it ends the transaction and maybe commits it.
    pub(crate) fn ends_transaction(&self) -> bool {
        matches!(self, Self::Commit | Self::Rollback)
    }
}

/// Cuts a text into statements and says what each one is. The first that is refused refuses all.
pub(crate) fn analyse(text: &[u8]) -> Result<Vec<Analysed>, Refusal> {
    let statements =
        sql::statements(text).map_err(|error| Refusal::Syntax(format!("syntax error: {error}")))?;
    statements
        .into_iter()
        .map(|statement| {
            let range = statement.begins..statement.ends;
            let part = &text[range.clone()];
            refuse_names(&statement.tokens)?;
            let kind = kind(&statement.tokens, part)?;
            Ok(Analysed {
                range,
                kind,
                hint: hint::comment(part),
            })
        })
        .collect()
}

fn kind(tokens: &[Token], text: &[u8]) -> Result<Kind, Refusal> {
    let word = |at: usize| match tokens.get(at) {
        Some(Token::Word(word)) => word.as_str(),
        _ => "",
    };
    let has = |text: &str| tokens.iter().any(|token| token.is(text));
    match word(0) {
        "begin" | "start" => begin(tokens),
        "commit" | "end" | "rollback" | "abort" => Ok(end(tokens)?),
        "set" => set(tokens, text),
        "show" if has_key_name(&tokens[1..]) => Ok(Kind::ShowKey),
        "reset" => reset(tokens),
        "discard" if word(1) == "all" => Ok(Kind::DiscardAll),
        "discard" => Ok(Kind::Ignored("DISCARD")),
        "deallocate" => {
            let name = if word(1) == "prepare" {
                tokens.get(2)
            } else {
                tokens.get(1)
            };
            let name = name.and_then(Token::name).unwrap_or_default().to_owned();
            let all = matches!(tokens.last(), Some(last) if last.is("all"));
            Ok(Kind::Deallocate((!all).then_some(name)))
        }
        "prepare" if word(1) == "transaction" => feature("PREPARE TRANSACTION", ""),
        "prepare" | "execute" => feature(
            "PREPARE and EXECUTE as statements",
            "Prepare by the driver (the extended protocol), which the router follows.",
        ),
        "listen" => feature(
            "LISTEN",
            "Connections are shared between transactions, so notifications would go astray.",
        ),
        "copy" => feature(
            "COPY",
            "It comes later; use INSERT with many rows or SELECT.",
        ),
        "do" => feature(
            "DO",
            "Its text cannot be seen through; send the statements themselves.",
        ),
        "load" => feature("LOAD", ""),
        "alter" if matches!(word(1), "role" | "user" | "database" | "system" | "group") => {
            feature("ALTER of a role, a database or the system", "")
        }
        "create" if has("temp") || has("temporary") => temporary(),
        "declare" if has("hold") && has("with") => {
            feature("a cursor WITH HOLD", "Read it within its transaction.")
        }
        _ if tokens
            .windows(2)
            .any(|pair| pair[0].is("into") && (pair[1].is("temp") || pair[1].is("temporary"))) =>
        {
            temporary()
        }
        _ => Ok(Kind::Data),
    }
}

fn has_key_name(tokens: &[Token]) -> bool {
    matches!(tokens, [a, Token::Punctuation(b'.'), b]
        if a.name().is_some_and(|name| name.eq_ignore_ascii_case("atoll"))
            && b.name().is_some_and(|name| name.eq_ignore_ascii_case("key")))
}

/// Reads transaction modes; `None` when they are not all understood.
fn modes(tokens: &[Token]) -> Option<String> {
    let words: Option<Vec<&str>> = tokens
        .iter()
        .map(|token| match token {
            Token::Word(word) => Some(word.as_str()),
            Token::Punctuation(b',') => Some(","),
            _ => None,
        })
        .collect();
    let text = words?.join(" ");
    let known = [
        "isolation level serializable",
        "isolation level repeatable read",
        "isolation level read committed",
        "isolation level read uncommitted",
        "read write",
        "read only",
        "not deferrable",
        "deferrable",
    ];
    let mut rest = text.as_str();
    while !rest.is_empty() {
        rest = known
            .iter()
            .find_map(|mode| rest.strip_prefix(mode))?
            .trim_start();
        if let Some(more) = rest.strip_prefix(',') {
            rest = more.trim_start();
            if rest.is_empty() {
                return None;
            }
        }
    }
    Some(text)
}

fn begin(tokens: &[Token]) -> Result<Kind, Refusal> {
    let skipped = match tokens {
        [first, second, ..]
            if second.is("transaction") || (second.is("work") && first.is("begin")) =>
        {
            2
        }
        [first, ..] if first.is("begin") => 1,
        _ => return Err(Refusal::Syntax("syntax error after START".to_owned())),
    };
    match modes(&tokens[skipped..]) {
        Some(modes) => Ok(Kind::Begin(format!("BEGIN {modes}").trim_end().to_owned())),
        None => Err(Refusal::Syntax(
            "syntax error in the modes of BEGIN".to_owned(),
        )),
    }
}

fn end(tokens: &[Token]) -> Result<Kind, Refusal> {
    let rest = &tokens[1..];
    let rest = match rest {
        [word, rest @ ..] if word.is("work") || word.is("transaction") => rest,
        rest => rest,
    };
    let commits = tokens[0].is("commit") || tokens[0].is("end");
    let no_chain =
        |rest: &[Token]| matches!(rest, [a, b, c] if a.is("and") && b.is("no") && c.is("chain"));
    match rest {
        rest if rest.is_empty() || no_chain(rest) => Ok(if commits {
            Kind::Commit
        } else {
            Kind::Rollback
        }),
        [word, ..] if word.is("to") && !commits => Ok(Kind::Data),
        [word, ..] if word.is("prepared") => feature("two-phase commit", ""),
        [word, ..] if word.is("and") => {
            feature("AND CHAIN", "Begin the next transaction with BEGIN.")
        }
        _ => Err(Refusal::Syntax(
            "syntax error in the end of a transaction".to_owned(),
        )),
    }
}

fn set(tokens: &[Token], text: &[u8]) -> Result<Kind, Refusal> {
    let word = |at: usize| match tokens.get(at) {
        Some(Token::Word(word)) => word.as_str(),
        _ => "",
    };
    if let Some(Assignment { name, scope, value }) = hint::assignment(tokens) {
        return match (name.as_str(), scope) {
            (KEY_SETTING, scope) => Ok(Kind::SetKey(scope, value)),
            ("client_encoding", _) => encoding(value),
            ("application_name", _) => Ok(Kind::Ignored("SET")),
            (name, _) if OWNED_SETTINGS.contains(&name) => owned(),
            (_, Scope::Transaction) => Ok(Kind::Data),
            (_, Scope::Session) => Ok(Kind::Set(name, String::from_utf8_lossy(text).into_owned())),
        };
    }
    let at = if matches!(word(1), "session" | "local") {
        2
    } else {
        1
    };
    match word(at) {
        "transaction" => match modes(&tokens[at + 1..]) {
            Some(modes) => Ok(Kind::SetTransaction(format!("SET TRANSACTION {modes}"))),
            None => Ok(Kind::Data),
        },
        "constraints" => Ok(Kind::Data),
        "time" if word(1) == "local" => Ok(Kind::Data),
        "time" => Ok(Kind::Set(
            "timezone".to_owned(),
            String::from_utf8_lossy(text).into_owned(),
        )),
        "names" => encoding(match tokens.get(at + 1) {
            Some(Token::Text(name) | Token::Word(name)) => Some(name.clone()),
            _ => None,
        }),
        _ => owned(),
    }
}

/// Only UTF-8 reads the same here and in PostgreSQL. SQL_ASCII is what psql asks for in the C
/// locale and means "do not convert".
pub(crate) fn encoding(name: Option<String>) -> Result<Kind, Refusal> {
    let name = name
        .unwrap_or_else(|| "utf8".to_owned())
        .to_ascii_lowercase();
    match name.replace(['-', '_', '\''], "").as_str() {
        "utf8" | "unicode" | "sqlascii" | "auto" => Ok(Kind::Ignored("SET")),
        _ => feature("an encoding other than UTF8", "Have the driver convert."),
    }
}

fn reset(tokens: &[Token]) -> Result<Kind, Refusal> {
    let rest = &tokens[1..];
    if has_key_name(rest) {
        return Ok(Kind::SetKey(Scope::Session, None));
    }
    match rest {
        [word] if word.is("all") => Ok(Kind::ResetAll),
        [word, ..] if word.is("time") => Ok(Kind::Reset("timezone".to_owned())),
        [Token::Word(name) | Token::Quoted(name)] => {
            let name = name.to_ascii_lowercase();
            if OWNED_SETTINGS.contains(&name.as_str()) {
                owned()
            } else if name == "application_name" || name == "client_encoding" {
                Ok(Kind::Ignored("RESET"))
            } else {
                Ok(Kind::Reset(name))
            }
        }
        [a, Token::Punctuation(b'.'), b] => match (a.name(), b.name()) {
            (Some(a), Some(b)) => Ok(Kind::Reset(format!("{a}.{b}").to_ascii_lowercase())),
            _ => owned(),
        },
        _ => owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Result<Kind, Refusal> {
        analyse(text.as_bytes()).map(|mut found| found.remove(0).kind)
    }

    #[test]
    fn whatever_would_lower_durability_or_leave_the_shard_is_refused() {
        for text in [
            "SET synchronous_commit = off",
            "set local \"synchronous_commit\" to local",
            "/* x */ SET SESSION/**/synchronous_commit=off",
            "SELECT set_config('synchronous_commit', 'off', true)",
            "SELECT set_config($1, 'off', true)",
            "SELECT pg_catalog.\"set_config\"('synchro' || 'nous_commit', 'off', true)",
            "SELECT set_config(E'synchronous\\x5fcommit', 'off', true)",
            "SELECT set_config('work_mem', '1MB', false)",
            "select 1; update pg_settings set setting = 'off' where name = 'x'",
            "with x as (update pg_catalog.pg_settings set setting='off') select 1",
            "ALTER ROLE cell_a SET synchronous_commit = off",
            "ALTER DATABASE x SET work_mem = '1MB'",
            "ALTER SYSTEM SET work_mem = '1MB'",
            "create function f() returns int language sql set synchronous_commit = off as 'select 1'",
            "SET session_replication_role = replica",
            "set default_transaction_read_only = off",
            "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE",
            "set search_path = s00001",
            "SET SCHEMA 's00001'",
            "RESET search_path",
            "SET ROLE postgres",
            "SET SESSION AUTHORIZATION postgres",
            "SET standard_conforming_strings = off",
            "SET client_encoding = 'SJIS'",
            "SET NAMES 'BIG5'",
            "LISTEN x",
            "COPY t FROM STDIN",
            "create temp table t ()",
            "create table pg_temp.t ()",
            "select 1 into temporary t",
            "do $$ begin end $$",
            "select query_to_xml('select set_config(''synchronous_commit'',''off'',false)', true, true, '')",
            "prepare x as select 1",
            "prepare transaction 'x'",
            "commit prepared 'x'",
            "declare c cursor with hold for select 1",
            "select pg_advisory_lock(1)",
            "COMMIT AND CHAIN",
        ] {
            assert!(one(text).is_err(), "{text} passed as {:?}", one(text));
        }
    }

    #[test]
    fn what_only_looks_like_it_passes() {
        for text in [
            "select 'set synchronous_commit = off'",
            "insert into notes values ('LISTEN to me', 'copy')",
            "select set_config('app.user', $1, true)",
            "select current_setting('synchronous_commit')",
            "show synchronous_commit",
            "set local lock_timeout = '1s'",
            "select pg_advisory_xact_lock(1)",
            "rollback to savepoint x",
            "savepoint x",
            "set constraints all deferred",
            "update settings set temp = 1, hold = 2",
        ] {
            assert_eq!(one(text), Ok(Kind::Data), "{text}");
        }
    }

    #[test]
    fn the_statements_of_a_session_are_recognised() {
        let begin = |text: &str| Ok(Kind::Begin(text.to_owned()));
        assert_eq!(one("begin"), begin("BEGIN"));
        assert_eq!(one("BEGIN WORK"), begin("BEGIN"));
        assert_eq!(
            one("START TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"),
            begin("BEGIN isolation level repeatable read , read only")
        );
        assert!(one("begin isolation level whatever").is_err());
        assert_eq!(one("end transaction"), Ok(Kind::Commit));
        assert_eq!(one("commit and no chain"), Ok(Kind::Commit));
        assert_eq!(one("abort"), Ok(Kind::Rollback));
        assert_eq!(one("deallocate all"), Ok(Kind::Deallocate(None)));
        assert_eq!(
            one("DEALLOCATE \"_pg3_0\""),
            Ok(Kind::Deallocate(Some("_pg3_0".into())))
        );
        assert_eq!(one("discard all"), Ok(Kind::DiscardAll));
        assert_eq!(one("show atoll.key"), Ok(Kind::ShowKey));
        assert_eq!(
            one("reset atoll.key"),
            Ok(Kind::SetKey(Scope::Session, None))
        );
        assert_eq!(
            one("set TimeZone to 'UTC'"),
            Ok(Kind::Set("timezone".into(), "set TimeZone to 'UTC'".into()))
        );
        assert_eq!(
            one("set time zone 'UTC'"),
            Ok(Kind::Set("timezone".into(), "set time zone 'UTC'".into()))
        );
        assert_eq!(
            one("set client_encoding to 'UTF8'"),
            Ok(Kind::Ignored("SET"))
        );
        assert_eq!(
            one("set local atoll.key = '7'"),
            Ok(Kind::SetKey(Scope::Transaction, Some("7".into())))
        );
    }
}
