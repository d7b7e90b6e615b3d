//! Where a session or a statement says which user it serves: `options=-c atoll.key=…`,
//! `SET [LOCAL] atoll.key = …`, a leading comment `/*key=123*/` or `/*key=$1*/`.

use crate::frontend::Value;
use crate::sql::{Token, leading_comments};

/// The setting's name.
pub const KEY_SETTING: &str = "atoll.key";

/// What a leading comment says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hint {
    /// The key itself.
    Key(String),
    /// The key is the value of this parameter, counted from 1.
    Parameter(u16),
}

/// Reads the first leading comment of the form `key=…`; white space around its parts is allowed.
pub fn comment(text: &[u8]) -> Option<Hint> {
    leading_comments(text).into_iter().find_map(|comment| {
        let comment = std::str::from_utf8(comment).ok()?.trim();
        let value = comment
            .strip_prefix("key")?
            .trim_start()
            .strip_prefix('=')?
            .trim();
        match value.strip_prefix('$').map(str::parse) {
            Some(Ok(number)) if number > 0 => Some(Hint::Parameter(number)),
            _ => Some(Hint::Key(value.to_owned())),
        }
    })
}

/// How long a `SET` lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// For the session.
    Session,
    /// For the transaction.
    Transaction,
}

/// A `SET` or `RESET` of one setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// The setting, in lower case.
    pub name: String,
    /// How long it lasts.
    pub scope: Scope,
    /// The value if it is one plain constant; `None` for DEFAULT, lists and everything else.
    pub value: Option<String>,
}

/// Reads `SET [SESSION | LOCAL] name { = | TO } value`; other forms of SET are none.
pub fn assignment(tokens: &[Token]) -> Option<Assignment> {
    let (first, mut rest) = tokens.split_first()?;
    if !first.is("set") {
        return None;
    }
    let mut scope = Scope::Session;
    if let [word, next, ..] = rest
        && (word.is("session") || word.is("local"))
        && next.name().is_some()
    {
        scope = if word.is("local") {
            Scope::Transaction
        } else {
            Scope::Session
        };
        rest = &rest[1..];
    }
    let (mut name, mut rest) = (rest.first()?.name()?.to_owned(), &rest[1..]);
    while let [Token::Punctuation(b'.'), next, ..] = rest {
        name = format!("{name}.{}", next.name()?);
        rest = &rest[2..];
    }
    let (sign, value) = rest.split_first()?;
    if !(sign.is("to") || *sign == Token::Punctuation(b'=')) || value.is_empty() {
        return None;
    }
    let value = match value {
        [word] if word.is("default") => None,
        [Token::Text(text) | Token::Quoted(text) | Token::Number(text) | Token::Word(text)] => {
            Some(text.clone())
        }
        _ => None,
    };
    Some(Assignment {
        name: name.to_ascii_lowercase(),
        scope,
        value,
    })
}

/// Reads the `options` of a startup message: `-c name=value`, `-cname=value` and `--name=value`,
/// cut at white space, where a backslash takes the next character as it is. Anything else is
/// returned as an error.
pub fn options(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut words = words(text).into_iter();
    let mut settings = Vec::new();
    while let Some(word) = words.next() {
        let wrong = || format!("{word:?} in the startup options is not understood");
        let pair = if word == "-c" {
            words.next().ok_or_else(wrong)?
        } else if let Some(rest) = word.strip_prefix("--").or_else(|| word.strip_prefix("-c")) {
            rest.to_owned()
        } else {
            return Err(wrong());
        };
        let (name, value) = pair.split_once('=').ok_or_else(wrong)?;
        settings.push((
            name.replace('-', "_").to_ascii_lowercase(),
            value.to_owned(),
        ));
    }
    Ok(settings)
}

fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        if letter.is_ascii_whitespace() {
            words.extend(word.take());
        } else {
            let letter = if letter == '\\' {
                letters.next()
            } else {
                Some(letter)
            };
            word.get_or_insert_default().extend(letter);
        }
    }
    words.extend(word);
    words
}

/// Reads a bound value as a key, given its type (0 = not known): texts as they are, integers in
/// decimal, UUIDs with hyphens. `None` for NULL, for types that no key has, and for a binary value
/// of unknown type, which could be read in two ways.
pub fn key_value(value: &Value, oid: u32) -> Option<String> {
    let bytes = match value {
        Value::Null => return None,
        Value::Text(text) => return std::str::from_utf8(text).ok().map(str::to_owned),
        Value::Binary(bytes) => bytes.as_ref(),
    };
    match oid {
        // name, text, bpchar, varchar
        19 | 25 | 1042 | 1043 => std::str::from_utf8(bytes).ok().map(str::to_owned),
        20 => Some(i64::from_be_bytes(bytes.try_into().ok()?).to_string()),
        21 => Some(i16::from_be_bytes(bytes.try_into().ok()?).to_string()),
        23 => Some(i32::from_be_bytes(bytes.try_into().ok()?).to_string()),
        2950 => {
            let number = u128::from_be_bytes(bytes.try_into().ok()?);
            let hex = format!("{number:032x}");
            let parts = [
                &hex[..8],
                &hex[8..12],
                &hex[12..16],
                &hex[16..20],
                &hex[20..],
            ];
            Some(parts.join("-"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::sql::statements;

    fn set(text: &str) -> Option<Assignment> {
        assignment(
            &statements(text.as_bytes())
                .expect("statements")
                .remove(0)
                .tokens,
        )
    }

    #[test]
    fn a_leading_comment_names_the_key_or_the_parameter_that_holds_it() {
        let key = |text: &str| Some(Hint::Key(text.into()));
        assert_eq!(comment(b"/*key=123*/ select 1"), key("123"));
        assert_eq!(comment(b"\n/* key = u-1:x@y */select 1"), key("u-1:x@y"));
        assert_eq!(comment(b"/* app */ /*key=7*/ select 1"), key("7"));
        assert_eq!(comment(b"-- key=7\nselect 1"), key("7"));
        assert_eq!(comment(b"/*key=$12*/select $12"), Some(Hint::Parameter(12)));
        assert_eq!(comment(b"/*key=$0*/select 1"), key("$0"));
        assert_eq!(comment(b"select /*key=1*/ 1"), None);
        assert_eq!(comment(b"/*keys=1*/ select 1"), None);
        assert_eq!(comment(b"select '/*key=1*/'"), None);
    }

    #[test]
    fn set_names_the_key_in_every_spelling() {
        for text in [
            "SET atoll.key = '17'",
            "set session atoll.key to '17'",
            "SET \"atoll\".\"key\" = 17",
            "set ATOLL.Key='17'",
            "/* x */ set \"atoll.key\" = \"17\"",
        ] {
            let scope = Scope::Session;
            let value = Some("17".to_owned());
            let expected = Assignment {
                name: KEY_SETTING.into(),
                scope,
                value,
            };
            assert_eq!(set(text), Some(expected), "{text}");
        }
        assert_eq!(
            set("set local atoll.key = 'a'").map(|a| a.scope),
            Some(Scope::Transaction)
        );
        assert_eq!(set("set atoll.key to default").map(|a| a.value), Some(None));
        assert_eq!(set("set atoll.key = 'a', 'b'").map(|a| a.value), Some(None));
        assert_eq!(set("set time zone 'UTC'"), None);
        assert_eq!(set("set local = 3").map(|a| a.name), Some("local".into()));
    }

    #[test]
    fn startup_options_are_read_with_their_escapes() {
        let pair = |n: &str, v: &str| (n.to_owned(), v.to_owned());
        assert_eq!(
            options("-c atoll.key=17  -cwork_mem=4MB --search-path=a\\ b\\\\"),
            Ok(vec![
                pair("atoll.key", "17"),
                pair("work_mem", "4MB"),
                pair("search_path", "a b\\")
            ])
        );
        assert_eq!(options(""), Ok(vec![]));
        assert!(options("-c").is_err() && options("-x 1").is_err() && options("-c a").is_err());
    }

    #[test]
    fn a_bound_value_is_a_key_only_when_its_type_leaves_no_doubt() {
        let binary = |bytes: &[u8]| Value::Binary(Bytes::copy_from_slice(bytes));
        assert_eq!(key_value(&Value::Text("17".into()), 0), Some("17".into()));
        assert_eq!(
            key_value(&binary(&17_i64.to_be_bytes()), 20),
            Some("17".into())
        );
        assert_eq!(
            key_value(&binary(&(-17_i32).to_be_bytes()), 23),
            Some("-17".into())
        );
        assert_eq!(key_value(&binary(b"1234"), 25), Some("1234".into()));
        assert_eq!(key_value(&binary(b"1234"), 0), None);
        assert_eq!(key_value(&binary(b"123"), 23), None);
        assert_eq!(key_value(&Value::Null, 25), None);
        assert_eq!(
            key_value(&binary(&[0x11; 16]), 2950),
            Some("11111111-1111-1111-1111-111111111111".into())
        );
    }
}
