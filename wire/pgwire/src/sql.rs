//! SQL as tokens: enough to see where a statement ends, what it begins with and which names it
//! uses, with exactly PostgreSQL's rules for comments, strings and identifiers, so that nothing
//! hides from the router in a place that PostgreSQL reads as code. `standard_conforming_strings`
//! is on and the encoding is UTF-8: the router refuses to have it otherwise.

use thiserror::Error;

/// One token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Token {
    /// A keyword or plain identifier, in lower case as PostgreSQL folds it.
    Word(String),
    /// A quoted identifier, as it is meant.
    Quoted(String),
    /// A plain string constant, as it is meant.
    Text(String),
    /// Any other string constant: escapes, Unicode, bits, dollar quotes. Its value is not computed.
    OtherText,
    /// A number as written.
    Number(String),
    /// A parameter: `$1`.
    Parameter(u16),
    /// Any other byte.
    Punctuation(u8),
}

impl Token {
    /// Whether this is the plain word `text` (given in lower case).
    pub fn is(&self, text: &str) -> bool {
        matches!(self, Self::Word(word) if word == text)
    }

    /// The name that this token spells, if it can be one.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Word(name) | Self::Quoted(name) => Some(name),
            _ => None,
        }
    }
}

/// One statement of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// Where it begins in the text, leading white space and comments included.
    pub begins: usize,
    /// Where it ends, without its semicolon.
    pub ends: usize,
    /// Its tokens, never empty.
    pub tokens: Vec<Token>,
}

/// Why a text cannot be cut into tokens; PostgreSQL would call each of these a syntax error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SqlError {
    /// A comment, string or quoted identifier that does not end.
    #[error("unterminated {0}")]
    Unterminated(&'static str),
    /// `U&"…"`, whose meaning depends on a clause that may follow much later.
    #[error("identifiers in U&\"…\" form are not taken")]
    UnicodeIdentifier,
    /// A parameter number above 65,535.
    #[error("there is no parameter with such a number")]
    Parameter,
}

/// Cuts a text into its statements; empty ones are left out.
pub fn statements(text: &[u8]) -> Result<Vec<Statement>, SqlError> {
    let mut lexer = Lexer { text, at: 0 };
    let mut statements = Vec::new();
    let mut begins = 0;
    let mut tokens = Vec::new();
    while let Some(token) = lexer.next()? {
        if token == Token::Punctuation(b';') {
            if !tokens.is_empty() {
                let ends = lexer.at - 1;
                statements.push(Statement {
                    begins,
                    ends,
                    tokens: std::mem::take(&mut tokens),
                });
            }
            begins = lexer.at;
        } else {
            tokens.push(token);
        }
    }
    if !tokens.is_empty() {
        statements.push(Statement {
            begins,
            ends: text.len(),
            tokens,
        });
    }
    Ok(statements)
}

/// The comments before a statement's first token, without their marks.
pub fn leading_comments(text: &[u8]) -> Vec<&[u8]> {
    let mut lexer = Lexer { text, at: 0 };
    let mut comments = Vec::new();
    loop {
        lexer.skip_space();
        let from = lexer.at;
        match lexer.skip_comment() {
            Ok(true) => {
                let comment = &text[from..lexer.at];
                let inner = comment.strip_prefix(b"--").or_else(|| {
                    comment
                        .strip_prefix(b"/*")
                        .and_then(|rest| rest.strip_suffix(b"*/"))
                });
                comments.extend(inner);
            }
            Ok(false) | Err(_) => return comments,
        }
    }
}

struct Lexer<'a> {
    text: &'a [u8],
    at: usize,
}

fn is_word_start(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

fn is_word(byte: u8) -> bool {
    is_word_start(byte) || byte.is_ascii_digit() || byte == b'$'
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Lexer<'_> {
    fn peek(&self, ahead: usize) -> Option<u8> {
        self.text.get(self.at + ahead).copied()
    }

    fn skip_space(&mut self) {
        while self
            .peek(0)
            .is_some_and(|b| matches!(b, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c))
        {
            self.at += 1;
        }
    }

    /// Skips one comment if there is one; block comments nest.
    fn skip_comment(&mut self) -> Result<bool, SqlError> {
        match (self.peek(0), self.peek(1)) {
            (Some(b'-'), Some(b'-')) => {
                while self.peek(0).is_some_and(|b| b != b'\n' && b != b'\r') {
                    self.at += 1;
                }
                Ok(true)
            }
            (Some(b'/'), Some(b'*')) => {
                let mut depth = 0_usize;
                loop {
                    match (self.peek(0), self.peek(1)) {
                        (Some(b'/'), Some(b'*')) => {
                            depth += 1;
                            self.at += 2;
                        }
                        (Some(b'*'), Some(b'/')) => {
                            depth -= 1;
                            self.at += 2;
                            if depth == 0 {
                                return Ok(true);
                            }
                        }
                        (Some(_), _) => self.at += 1,
                        (None, _) => return Err(SqlError::Unterminated("comment")),
                    }
                }
            }
            _ => Ok(false),
        }
    }

    fn next(&mut self) -> Result<Option<Token>, SqlError> {
        loop {
            self.skip_space();
            if !self.skip_comment()? {
                break;
            }
        }
        let Some(byte) = self.peek(0) else {
            return Ok(None);
        };
        let token = match byte {
            b'\'' => self.plain_text()?,
            b'"' => Token::Quoted(lossy(&self.quoted(b'"', "quoted identifier")?)),
            b'$' => self.dollar()?,
            b if is_word_start(b) => self.word()?,
            b if b.is_ascii_digit() => Token::Number(self.number()),
            b'.' if self.peek(1).is_some_and(|b| b.is_ascii_digit()) => {
                Token::Number(self.number())
            }
            b => {
                self.at += 1;
                Token::Punctuation(b)
            }
        };
        Ok(Some(token))
    }

    fn number(&mut self) -> String {
        let from = self.at;
        while self
            .peek(0)
            .is_some_and(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_'))
        {
            self.at += 1;
        }
        lossy(&self.text[from..self.at])
    }

    fn plain_text(&mut self) -> Result<Token, SqlError> {
        self.quoted(b'\'', "string")
            .map(|text| Token::Text(lossy(&text)))
    }

    /// Reads a string or identifier whose quote is doubled to stand for itself.
    fn quoted(&mut self, quote: u8, what: &'static str) -> Result<Vec<u8>, SqlError> {
        self.at += 1;
        let mut text = Vec::new();
        loop {
            let byte = self.peek(0).ok_or(SqlError::Unterminated(what))?;
            self.at += 1;
            if byte != quote {
                text.push(byte);
            } else if self.peek(0) == Some(quote) {
                text.push(quote);
                self.at += 1;
            } else {
                return Ok(text);
            }
        }
    }

    /// Reads the rest of `E'…'`, where a backslash takes the next byte along.
    fn escaped_text(&mut self) -> Result<Token, SqlError> {
        self.at += 1;
        loop {
            let byte = self.peek(0).ok_or(SqlError::Unterminated("string"))?;
            self.at += 1;
            match byte {
                b'\\' => self.at += 1,
                b'\'' if self.peek(0) == Some(b'\'') => self.at += 1,
                b'\'' if self.continues_on_next_line() => {}
                b'\'' => return Ok(Token::OtherText),
                _ => {}
            }
        }
    }

    /// Two string constants with a line break between them are one, and the second one has the
    /// escapes of the first: what follows must be read as such. White space and `--` comments may
    /// stand between.
    fn continues_on_next_line(&mut self) -> bool {
        let back = self.at;
        loop {
            self.skip_space();
            if self.peek(0) == Some(b'-') && self.peek(1) == Some(b'-') {
                // A line comment cannot fail.
                if self.skip_comment().is_err() {
                    break;
                }
            } else {
                break;
            }
        }
        let broke = self.text[back..self.at]
            .iter()
            .any(|b| matches!(b, b'\n' | b'\r'));
        if broke && self.peek(0) == Some(b'\'') {
            self.at += 1;
            true
        } else {
            self.at = back;
            false
        }
    }

    fn word(&mut self) -> Result<Token, SqlError> {
        let from = self.at;
        while self.peek(0).is_some_and(is_word) {
            self.at += 1;
        }
        let word = &self.text[from..self.at];
        match (
            word.to_ascii_lowercase().as_slice(),
            self.peek(0),
            self.peek(1),
        ) {
            (b"e", Some(b'\''), _) => self.escaped_text(),
            (b"b" | b"x" | b"n", Some(b'\''), _) => {
                self.quoted(b'\'', "string").map(|_| Token::OtherText)
            }
            (b"u", Some(b'&'), Some(b'\'')) => {
                self.at += 1;
                self.quoted(b'\'', "string").map(|_| Token::OtherText)
            }
            (b"u", Some(b'&'), Some(b'"')) => Err(SqlError::UnicodeIdentifier),
            (folded, _, _) => Ok(Token::Word(lossy(folded))),
        }
    }

    /// Reads `$1`, `$$…$$` or `$tag$…$tag$`; a lone `$` is punctuation.
    fn dollar(&mut self) -> Result<Token, SqlError> {
        let rest = &self.text[self.at + 1..];
        let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
        if digits > 0 {
            self.at += 1 + digits;
            let number = lossy(&rest[..digits])
                .parse()
                .map_err(|_| SqlError::Parameter)?;
            return Ok(Token::Parameter(number));
        }
        let tag = match rest.first() {
            Some(b'$') => 0,
            Some(b) if is_word_start(*b) => rest
                .iter()
                .take_while(|b| is_word(**b) && **b != b'$')
                .count(),
            _ => rest.len(),
        };
        if rest.get(tag) != Some(&b'$') {
            self.at += 1;
            return Ok(Token::Punctuation(b'$'));
        }
        let mark = &self.text[self.at..self.at + tag + 2];
        let body = &self.text[self.at + mark.len()..];
        let end = body
            .windows(mark.len())
            .position(|window| window == mark)
            .ok_or(SqlError::Unterminated("dollar-quoted string"))?;
        self.at += mark.len() + end + mark.len();
        Ok(Token::OtherText)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(text: &str) -> Vec<Token> {
        statements(text.as_bytes())
            .expect("tokens")
            .into_iter()
            .flat_map(|statement| statement.tokens)
            .collect()
    }

    fn word(text: &str) -> Token {
        Token::Word(text.into())
    }

    #[test]
    fn a_semicolon_ends_a_statement_only_where_postgresql_reads_one() {
        let text = "select ';' /* ; /* ; */ */ -- ;\n, \";\", $$;$$, $a$;$$;$a$, E'\\';'; ; commit";
        let found = statements(text.as_bytes()).expect("statements");
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(found[1].tokens, [word("commit")]);
        assert_eq!(&text[found[1].begins..found[1].ends], " commit");
    }

    #[test]
    fn names_are_read_as_postgresql_means_them() {
        assert_eq!(
            tokens("SeT \"Syn\"\"c\" a$1 $1 é"),
            [
                word("set"),
                Token::Quoted("Syn\"c".into()),
                word("a$1"),
                Token::Parameter(1),
                word("é")
            ]
        );
    }

    #[test]
    fn an_escape_string_goes_on_over_a_line_break() {
        // Read as plain strings, the second half would end at the backslash's quote.
        assert_eq!(
            tokens("E'a' --x\n '\\'' , b"),
            [Token::OtherText, Token::Punctuation(b','), word("b")]
        );
    }

    #[test]
    fn what_does_not_end_is_an_error() {
        for text in ["'a", "\"a", "/* /* */", "$$ $a$", "e'a\\'", "$x$ $y$"] {
            assert!(statements(text.as_bytes()).is_err(), "{text}");
        }
        assert_eq!(
            statements(b"u&\"d\\0061ta\""),
            Err(SqlError::UnicodeIdentifier)
        );
    }

    #[test]
    fn comments_before_a_statement_are_given_without_their_marks() {
        let text = b"  /*key=1*/ -- two\n /* three /* x */ */ select /* four */ 1";
        let found = leading_comments(text);
        assert_eq!(found, [&b"key=1"[..], b" two", b" three /* x */ "]);
    }
}
