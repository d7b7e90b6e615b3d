//! A strict reading of HTTP/1 requests, sans-I/O, that stands before hyper.
//!
//! hyper forgives some things (a length beside a coding, a bare line feed, equal lengths twice) and
//! then hides them. Two proxies that forgive differently can be made to disagree about where a
//! request ends, which is request smuggling. So every head passes here first: what breaks a rule
//! never reaches hyper; it is replaced by a request of the method `REFUSED` whose path names the
//! violation, so that the refusal takes the same way as any answer (order, log, metrics) and the
//! connection ends after it.
//!
//! Source of the rules: RFC 9112 sections 2 to 7 and RFC 9110 section 7.2, taken strictly.

use bytes::BytesMut;

/// Limits of one connection's reading.
#[derive(Debug, Clone, Copy)]
pub struct StrictLimits {
    /// Bytes of a request's head, the request line included.
    pub head_bytes_max: usize,
    /// Header fields of a request.
    pub headers_max: usize,
    /// Bytes of a request's body.
    pub body_bytes_max: u64,
}

/// Bytes of one chunk-size line with its extensions.
const CHUNK_LINE_BYTES_MAX: usize = 256;
/// Bytes of all trailer lines of a chunked body.
const TRAILER_BYTES_MAX: usize = 8 * 1024;

macro_rules! violations {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $status:literal;)*) => {
        /// What is wrong with a request.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Violation { $($(#[$doc])* $name,)* }

        impl Violation {
            /// Stable name, for logs, answers and metrics.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $code,)* }
            }

            /// The HTTP status that answers it.
            pub const fn status(self) -> u16 {
                match self { $(Self::$name => $status,)* }
            }

            /// The violation of that name.
            pub fn named(name: &str) -> Option<Self> {
                match name { $($code => Some(Self::$name),)* _ => None }
            }
        }
    };
}

violations! {
    /// A line feed without a carriage return before it.
    BareLf = "bare-lf", 400;
    /// A carriage return without a line feed after it.
    BareCr = "bare-cr", 400;
    /// A header continued on the next line (obs-fold).
    Fold = "obs-fold", 400;
    /// White space between a header's name and its colon.
    SpaceBeforeColon = "space-before-colon", 400;
    /// A header's name is not a token, or there is no colon.
    HeaderName = "header-name", 400;
    /// A control character in a header's value.
    HeaderValue = "header-value", 400;
    /// The first line is not `METHOD target HTTP/1.x`.
    RequestLine = "request-line", 400;
    /// Neither HTTP/1.1 nor HTTP/1.0.
    Version = "version", 505;
    /// HTTP/1.1 without `Host`.
    HostMissing = "host-missing", 400;
    /// `Host` more than once.
    HostTwice = "host-twice", 400;
    /// `Host` is not a host with an optional port.
    HostInvalid = "host-invalid", 400;
    /// The target's authority is not the one in `Host`.
    TargetMismatch = "target-mismatch", 400;
    /// `CONNECT`, which no route serves.
    Connect = "connect", 400;
    /// Several lengths, or a length beside a transfer coding.
    LengthConflict = "length-conflict", 400;
    /// A length that is not a plain number.
    LengthInvalid = "length-invalid", 400;
    /// A transfer coding other than one `chunked`, or in HTTP/1.0.
    TransferCoding = "transfer-coding", 400;
    /// The head is longer than its limit.
    HeadTooLong = "head-too-long", 431;
    /// More header fields than the limit.
    TooManyHeaders = "too-many-headers", 431;
    /// The body is longer than its limit.
    BodyTooLong = "body-too-long", 413;
    /// A chunk's size line, its end, or a trailer is malformed or too long.
    Chunk = "chunk", 400;
    /// The head did not arrive within its time.
    HeadTooSlow = "head-too-slow", 408;
}

#[derive(Debug)]
enum State {
    /// Lines of a head; nothing of it is let through before it is whole.
    Head(Head),
    /// A body of known length.
    Body { left: u64 },
    /// A chunk's size line.
    ChunkSize,
    /// A chunk's bytes, then CR LF.
    ChunkData { left: u64 },
    /// The CR LF after a chunk's bytes.
    ChunkEnd,
    /// Trailer lines up to the empty one.
    Trailers { bytes: usize },
    /// Something was wrong: nothing more is let through.
    Refused,
}

#[derive(Debug, Default)]
struct Head {
    lines: usize,
    version_11: bool,
    host: Option<Vec<u8>>,
    authority: Option<Vec<u8>>,
    length: Option<u64>,
    chunked: bool,
}

/// Reads one connection's requests.
#[derive(Debug)]
pub struct Strict {
    limits: StrictLimits,
    state: State,
    /// Bytes that wait for the end of their head or line.
    kept: BytesMut,
    /// Where the current line of `kept` begins.
    line: usize,
    /// Body bytes of the current request so far.
    body: u64,
}

impl Strict {
    /// A reader at the beginning of a connection.
    pub fn new(limits: StrictLimits) -> Self {
        Self {
            limits,
            state: State::Head(Head::default()),
            kept: BytesMut::new(),
            line: 0,
            body: 0,
        }
    }

    /// Between two requests, with nothing of the next one here.
    pub fn is_idle(&self) -> bool {
        matches!(self.state, State::Head(_)) && self.kept.is_empty()
    }

    /// In the middle of a head.
    pub fn is_in_head(&self) -> bool {
        matches!(self.state, State::Head(_)) && !self.kept.is_empty()
    }

    /// Nothing more will be let through.
    pub fn is_refused(&self) -> bool {
        matches!(self.state, State::Refused)
    }

    /// Refuses what is here in place of the head that did not come, in time or at all.
    pub fn refuse_head(&mut self, violation: Violation, out: &mut BytesMut) {
        self.state = State::Refused;
        self.kept.clear();
        out.extend_from_slice(b"REFUSED /");
        out.extend_from_slice(violation.name().as_bytes());
        out.extend_from_slice(
            b" HTTP/1.1\r\nhost: refused\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        );
    }

    /// Takes bytes from the socket and appends to `out` those that hyper may see. An error is a
    /// violation inside a body: the connection is beyond repair.
    pub fn feed(&mut self, mut input: &[u8], out: &mut BytesMut) -> Result<(), Violation> {
        while !input.is_empty() {
            match &mut self.state {
                State::Refused => return Ok(()),
                State::Body { left } => {
                    let n = take(*left, input.len());
                    out.extend_from_slice(&input[..n]);
                    input = &input[n..];
                    *left -= n as u64;
                    if *left == 0 {
                        self.next_head();
                    }
                }
                State::ChunkData { left } => {
                    let n = take(*left, input.len());
                    out.extend_from_slice(&input[..n]);
                    input = &input[n..];
                    *left -= n as u64;
                    if *left == 0 {
                        self.state = State::ChunkEnd;
                    }
                }
                _ => {
                    input = match self.feed_line(input, out) {
                        Ok(rest) => rest,
                        Err(violation) if matches!(self.state, State::Head(_)) => {
                            self.refuse_head(violation, out);
                            return Ok(());
                        }
                        Err(violation) => {
                            self.state = State::Refused;
                            return Err(violation);
                        }
                    };
                }
            }
        }
        Ok(())
    }

    /// Takes up to one line; returns what is left of the input.
    fn feed_line<'a>(
        &mut self,
        input: &'a [u8],
        out: &mut BytesMut,
    ) -> Result<&'a [u8], Violation> {
        let (fresh, whole, rest) = match input.iter().position(|b| *b == b'\n') {
            Some(at) => (&input[..=at], true, &input[at + 1..]),
            None => (input, false, &input[..0]),
        };
        self.check_room(fresh.len())?;
        self.kept.extend_from_slice(fresh);
        let line = &self.kept[self.line..];
        if matches!(self.state, State::ChunkEnd) && !b"\r\n".starts_with(line) {
            return Err(Violation::Chunk);
        }
        if !whole {
            // A carriage return may only be the last byte that we have.
            return match line[..line.len() - 1].contains(&b'\r') {
                true => Err(Violation::BareCr),
                false => Ok(rest),
            };
        }
        let Some(line) = line.strip_suffix(b"\r\n") else {
            return Err(Violation::BareLf);
        };
        if line.contains(&b'\r') {
            return Err(Violation::BareCr);
        }
        match &mut self.state {
            State::Head(head) if line.is_empty() => {
                let framing = head.finish(&self.limits)?;
                out.extend_from_slice(&self.kept);
                self.kept.clear();
                self.line = 0;
                self.body = 0;
                match framing {
                    Framing::Length(0) => self.next_head(),
                    Framing::Length(left) => self.state = State::Body { left },
                    Framing::Chunked => self.state = State::ChunkSize,
                }
            }
            State::Head(head) => {
                head.line(line, &self.limits)?;
                self.line = self.kept.len();
            }
            State::ChunkSize => {
                let size = chunk_size(line)?;
                self.body = self.body.saturating_add(size);
                if self.body > self.limits.body_bytes_max {
                    return Err(Violation::BodyTooLong);
                }
                self.pass_line(out);
                self.state = match size {
                    0 => State::Trailers { bytes: 0 },
                    left => State::ChunkData { left },
                };
            }
            State::ChunkEnd => {
                if !line.is_empty() {
                    return Err(Violation::Chunk);
                }
                self.pass_line(out);
                self.state = State::ChunkSize;
            }
            State::Trailers { bytes } => {
                if line.is_empty() {
                    self.pass_line(out);
                    self.next_head();
                } else {
                    header(line).map_err(|_| Violation::Chunk)?;
                    *bytes += line.len();
                    if *bytes > TRAILER_BYTES_MAX {
                        return Err(Violation::Chunk);
                    }
                    self.pass_line(out);
                }
            }
            State::Body { .. } | State::ChunkData { .. } | State::Refused => {}
        }
        Ok(rest)
    }

    fn check_room(&self, fresh: usize) -> Result<(), Violation> {
        let after = self.kept.len() + fresh;
        match self.state {
            State::Head(_) if after > self.limits.head_bytes_max => Err(Violation::HeadTooLong),
            State::ChunkSize if after > CHUNK_LINE_BYTES_MAX => Err(Violation::Chunk),
            State::ChunkEnd if after > 2 => Err(Violation::Chunk),
            State::Trailers { .. } if after > TRAILER_BYTES_MAX => Err(Violation::Chunk),
            _ => Ok(()),
        }
    }

    fn pass_line(&mut self, out: &mut BytesMut) {
        out.extend_from_slice(&self.kept);
        self.kept.clear();
    }

    fn next_head(&mut self) {
        self.state = State::Head(Head::default());
        self.line = 0;
    }
}

fn take(left: u64, have: usize) -> usize {
    usize::try_from(left).map_or(have, |left| left.min(have))
}

enum Framing {
    Length(u64),
    Chunked,
}

impl Head {
    fn line(&mut self, line: &[u8], limits: &StrictLimits) -> Result<(), Violation> {
        self.lines += 1;
        if self.lines == 1 {
            return self.request_line(line);
        }
        if self.lines - 1 > limits.headers_max {
            return Err(Violation::TooManyHeaders);
        }
        let (name, value) = header(line)?;
        if name.eq_ignore_ascii_case(b"host") {
            if self.host.is_some() {
                return Err(Violation::HostTwice);
            }
            if !value
                .iter()
                .all(|b| b.is_ascii_alphanumeric() || b".-_:[]%".contains(b))
            {
                return Err(Violation::HostInvalid);
            }
            self.host = Some(value.to_vec());
        } else if name.eq_ignore_ascii_case(b"content-length") {
            if self.length.is_some() {
                return Err(Violation::LengthConflict);
            }
            self.length = Some(length(value)?);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if self.chunked || !self.version_11 || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Violation::TransferCoding);
            }
            self.chunked = true;
        }
        Ok(())
    }

    fn request_line(&mut self, line: &[u8]) -> Result<(), Violation> {
        let mut parts = line.split(|b| *b == b' ');
        let (Some(method), Some(target), Some(version), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Violation::RequestLine);
        };
        self.version_11 = match version {
            b"HTTP/1.1" => true,
            b"HTTP/1.0" => false,
            other if other.starts_with(b"HTTP/") => return Err(Violation::Version),
            _ => return Err(Violation::RequestLine),
        };
        let visible = |b: &u8| (0x21..0x7f).contains(b) && *b != b'#';
        if method.is_empty() || !method.iter().all(is_token) || !target.iter().all(visible) {
            return Err(Violation::RequestLine);
        }
        if method == b"CONNECT" {
            return Err(Violation::Connect);
        }
        let after_scheme = target
            .strip_prefix(b"http://")
            .or_else(|| target.strip_prefix(b"https://"));
        match (target, after_scheme) {
            ([b'/', ..], _) => Ok(()),
            (b"*", _) if method == b"OPTIONS" => Ok(()),
            (_, Some(rest)) => {
                let end = rest
                    .iter()
                    .position(|b| b"/?".contains(b))
                    .unwrap_or(rest.len());
                self.authority = Some(rest[..end].to_vec());
                Ok(())
            }
            _ => Err(Violation::RequestLine),
        }
    }

    fn finish(&self, limits: &StrictLimits) -> Result<Framing, Violation> {
        if self.lines == 0 {
            return Err(Violation::RequestLine);
        }
        if self.host.is_none() && self.version_11 {
            return Err(Violation::HostMissing);
        }
        if let Some(authority) = &self.authority
            && !self
                .host
                .as_ref()
                .is_some_and(|host| host.eq_ignore_ascii_case(authority))
        {
            return Err(Violation::TargetMismatch);
        }
        match (self.length, self.chunked) {
            (Some(_), true) => Err(Violation::LengthConflict),
            (None, true) => Ok(Framing::Chunked),
            (length, false) => {
                let length = length.unwrap_or(0);
                if length > limits.body_bytes_max {
                    return Err(Violation::BodyTooLong);
                }
                Ok(Framing::Length(length))
            }
        }
    }
}

fn is_token(b: &u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b)
}

/// Name and trimmed value of a header line.
fn header(line: &[u8]) -> Result<(&[u8], &[u8]), Violation> {
    if matches!(line.first(), Some(b' ' | b'\t')) {
        return Err(Violation::Fold);
    }
    let colon = line
        .iter()
        .position(|b| *b == b':')
        .ok_or(Violation::HeaderName)?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    if matches!(name.last(), Some(b' ' | b'\t')) {
        return Err(Violation::SpaceBeforeColon);
    }
    if name.is_empty() || !name.iter().all(is_token) {
        return Err(Violation::HeaderName);
    }
    if value
        .iter()
        .any(|b| (*b < 0x20 && *b != b'\t') || *b == 0x7f)
    {
        return Err(Violation::HeaderValue);
    }
    Ok((name, value.trim_ascii()))
}

fn length(value: &[u8]) -> Result<u64, Violation> {
    if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
        return Err(Violation::LengthInvalid);
    }
    Ok(value
        .iter()
        .fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')))
}

fn chunk_size(line: &[u8]) -> Result<u64, Violation> {
    let end = line
        .iter()
        .position(|b| !b.is_ascii_hexdigit())
        .unwrap_or(line.len());
    let extension_ok = matches!(line.get(end), None | Some(b';'))
        && line[end..]
            .iter()
            .all(|b| *b >= 0x20 && *b != 0x7f || *b == b'\t');
    if end == 0 || end > 15 || !extension_ok {
        return Err(Violation::Chunk);
    }
    let digits = std::str::from_utf8(&line[..end]).map_err(|_| Violation::Chunk)?;
    u64::from_str_radix(digits, 16).map_err(|_| Violation::Chunk)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: StrictLimits = StrictLimits {
        head_bytes_max: 1024,
        headers_max: 8,
        body_bytes_max: 1000,
    };

    fn read(parts: &[&[u8]]) -> (Vec<u8>, Result<(), Violation>) {
        let mut strict = Strict::new(LIMITS);
        let mut out = BytesMut::new();
        for part in parts {
            if let Err(violation) = strict.feed(part, &mut out) {
                return (out.to_vec(), Err(violation));
            }
        }
        (out.to_vec(), Ok(()))
    }

    fn refused(input: &str) -> String {
        let (out, _) = read(&[input.as_bytes()]);
        let out = String::from_utf8(out).unwrap();
        let at = out
            .rfind("REFUSED /")
            .unwrap_or_else(|| panic!("not refused: {input:?}"));
        out[at + 9..].split(' ').next().unwrap().to_owned()
    }

    #[test]
    fn every_way_to_hide_where_a_request_ends_is_refused_by_name() {
        let host = "Host: a\r\n";
        let head = |rest: &str| format!("POST / HTTP/1.1\r\n{host}{rest}\r\n");
        let cases = [
            (
                head("Content-Length: 5\r\nContent-Length: 5\r\n"),
                "length-conflict",
            ),
            (
                head("Content-Length: 5\r\nContent-Length: 6\r\n"),
                "length-conflict",
            ),
            (head("Content-Length: 5, 5\r\n"), "length-invalid"),
            (head("Content-Length: +5\r\n"), "length-invalid"),
            (head("Content-Length: 0x5\r\n"), "length-invalid"),
            (head("Content-Length:\r\n"), "length-invalid"),
            (
                head("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"),
                "length-conflict",
            ),
            (
                head("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n"),
                "length-conflict",
            ),
            (
                head("Transfer-Encoding: gzip, chunked\r\n"),
                "transfer-coding",
            ),
            (
                head("Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n"),
                "transfer-coding",
            ),
            (head("Transfer-Encoding: identity\r\n"), "transfer-coding"),
            (head("X: a\r\n b\r\n"), "obs-fold"),
            (head("X : a\r\n"), "space-before-colon"),
            (head("X\u{b}: a\r\n"), "header-name"),
            (head("no colon\r\n"), "header-name"),
            (head("X: a\rb\r\n"), "bare-cr"),
            (head("X: a\nY: b\r\n"), "bare-lf"),
            (head("X: \0\r\n"), "header-value"),
            (head("Host: b\r\n"), "host-twice"),
            ("GET / HTTP/1.1\r\n\r\n".into(), "host-missing"),
            ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n".into(), "host-invalid"),
            ("GET / HTTP/1.1\r\nHost: a,b\r\n\r\n".into(), "host-invalid"),
            (
                "GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n".into(),
                "target-mismatch",
            ),
            ("GET b HTTP/1.1\r\nHost: a\r\n\r\n".into(), "request-line"),
            ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n".into(), "request-line"),
            ("GET /\t HTTP/1.1\r\nHost: a\r\n\r\n".into(), "request-line"),
            (
                "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n".into(),
                "request-line",
            ),
            ("GET / HTTP/1.1\nHost: a\n\n".into(), "bare-lf"),
            ("GET / HTTP/2.0\r\nHost: a\r\n\r\n".into(), "version"),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), "version"),
            (
                "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n".into(),
                "connect",
            ),
            (
                "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".into(),
                "transfer-coding",
            ),
            (head("Content-Length: 1001\r\n"), "body-too-long"),
            (head(&"X: a\r\n".repeat(8)), "too-many-headers"),
            (
                head(&format!("X: {}\r\n", "a".repeat(1024))),
                "head-too-long",
            ),
        ];
        for (input, name) in cases {
            assert_eq!(refused(&input), name, "{input:?}");
        }
    }

    #[test]
    fn a_bad_second_request_does_not_hide_the_first() {
        let good = "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi";
        let (out, _) = read(&[format!("{good}GET / HTTP/1.1\nHost: a\n\n").as_bytes()]);
        let out = String::from_utf8(out).unwrap();
        assert!(out.starts_with(good));
        assert!(out[good.len()..].starts_with("REFUSED /bare-lf "));
    }

    #[test]
    fn a_malformed_chunk_ends_the_body_with_an_error() {
        let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        for body in [
            "5\nhello",
            "5\r\nhelloX",
            "g\r\n",
            "\r\n",
            "-1\r\n",
            "5 \r\n",
            "0\r\nX\r\n\r\n",
            "ffffffffffffffff\r\n",
        ] {
            let (_, end) = read(&[head.as_bytes(), body.as_bytes()]);
            assert!(end.is_err(), "{body:?}");
        }
        let long = format!("5;{}", "x".repeat(300));
        assert_eq!(
            read(&[head.as_bytes(), long.as_bytes()]).1,
            Err(Violation::Chunk)
        );
        assert_eq!(
            read(&[head.as_bytes(), b"3e9\r\n"]).1,
            Err(Violation::BodyTooLong)
        );
    }

    const GOOD: &[u8] = b"POST /a?b=c HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n\r\n\r\n\
        POST http://A/x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: Chunked\r\n\r\n\
        5;x=\"y\"\r\nhel\nl\r\n0\r\nT: v\r\n\r\nGET / HTTP/1.0\r\n\r\nOPTIONS * HTTP/1.1\r\nHost:\r\n\r\n";

    proptest! {
        #[test]
        fn good_requests_pass_unchanged_however_they_are_cut(
            cuts in proptest::collection::vec(0..GOOD.len(), 0..20)
        ) {
            let mut cuts = cuts;
            cuts.sort_unstable();
            let mut parts = Vec::new();
            let mut from = 0;
            for cut in cuts.into_iter().chain([GOOD.len()]) {
                parts.push(&GOOD[from..cut]);
                from = cut;
            }
            let (out, end) = read(&parts);
            prop_assert_eq!(end, Ok(()));
            prop_assert_eq!(out, GOOD);
        }

        #[test]
        fn garbage_never_panics(parts in proptest::collection::vec(
            proptest::collection::vec(proptest::sample::select(
                b"GET / HTTP/1.1\r\n: hostcnel-gTrafi05;,\t\0".to_vec()), 0..40), 0..10)) {
            let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
            let _outcome = read(&parts);
        }
    }
}
