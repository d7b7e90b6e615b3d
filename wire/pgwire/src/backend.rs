//! What servers send: views of the messages that the router looks at, and how to write them.

use bytes::{BufMut, Bytes, BytesMut};

use crate::frame::{FrameError, put_cstr, put_frame, take_cstr, take_u16, take_u32};

/// Tags of the messages that servers send.
pub mod tag {
    #![expect(missing_docs, reason = "the names are the protocol's")]
    pub const AUTHENTICATION: u8 = b'R';
    pub const BACKEND_KEY_DATA: u8 = b'K';
    pub const BIND_COMPLETE: u8 = b'2';
    pub const CLOSE_COMPLETE: u8 = b'3';
    pub const COMMAND_COMPLETE: u8 = b'C';
    pub const COPY_BOTH: u8 = b'W';
    pub const COPY_IN: u8 = b'G';
    pub const COPY_OUT: u8 = b'H';
    pub const DATA_ROW: u8 = b'D';
    pub const EMPTY_QUERY: u8 = b'I';
    pub const ERROR: u8 = b'E';
    pub const NEGOTIATE_VERSION: u8 = b'v';
    pub const NO_DATA: u8 = b'n';
    pub const NOTICE: u8 = b'N';
    pub const NOTIFICATION: u8 = b'A';
    pub const PARAMETER_DESCRIPTION: u8 = b't';
    pub const PARAMETER_STATUS: u8 = b'S';
    pub const PARSE_COMPLETE: u8 = b'1';
    pub const PORTAL_SUSPENDED: u8 = b's';
    pub const READY_FOR_QUERY: u8 = b'Z';
    pub const ROW_DESCRIPTION: u8 = b'T';
}

/// Where a session stands after an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Not in a transaction.
    Idle,
    /// In a transaction.
    Transaction,
    /// In a transaction that has failed.
    Failed,
}

/// Reads a ReadyForQuery.
pub fn ready_for_query(body: &Bytes) -> Result<Status, FrameError> {
    match body.as_ref() {
        b"I" => Ok(Status::Idle),
        b"T" => Ok(Status::Transaction),
        b"E" => Ok(Status::Failed),
        _ => Err(FrameError::Body("ReadyForQuery")),
    }
}

/// The fields of an ErrorResponse or NoticeResponse by their letters.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Fields(pub Vec<(u8, Bytes)>);

/// Reads an ErrorResponse or NoticeResponse.
pub fn fields(mut body: Bytes) -> Result<Fields, FrameError> {
    let what = "ErrorResponse or NoticeResponse";
    let mut fields = Vec::new();
    loop {
        if body.is_empty() {
            return Err(FrameError::Body(what));
        }
        match body.split_to(1).first() {
            Some(0) if body.is_empty() => return Ok(Fields(fields)),
            Some(&letter) if letter != 0 => fields.push((letter, take_cstr(&mut body, what)?)),
            _ => return Err(FrameError::Body(what)),
        }
    }
}

impl Fields {
    /// The field with this letter.
    pub fn get(&self, letter: u8) -> Option<&[u8]> {
        self.0
            .iter()
            .find(|(l, _)| *l == letter)
            .map(|(_, text)| text.as_ref())
    }

    /// SQLSTATE.
    pub fn code(&self) -> &[u8] {
        self.get(b'C').unwrap_or_default()
    }

    /// The message as text.
    pub fn message(&self) -> String {
        String::from_utf8_lossy(self.get(b'M').unwrap_or_default()).into_owned()
    }

    /// Whether this is the warning that a commit stopped waiting for its standbys: it is durable
    /// here, maybe nowhere else, and PostgreSQL will call it a success. Recognised by the function
    /// that reports it, because messages are translated and the SQLSTATE says nothing.
    pub fn is_sync_wait_cancelled(&self) -> bool {
        self.get(b'R') == Some(b"SyncRepWaitForLSN")
    }
}

/// Reads a ParameterStatus: name and value.
pub fn parameter_status(mut body: Bytes) -> Result<(String, String), FrameError> {
    let what = "ParameterStatus";
    let text = |bytes: Bytes| String::from_utf8(bytes.into()).map_err(|_| FrameError::Body(what));
    let name = text(take_cstr(&mut body, what)?)?;
    let value = text(take_cstr(&mut body, what)?)?;
    if body.is_empty() {
        Ok((name, value))
    } else {
        Err(FrameError::Body(what))
    }
}

/// Reads a BackendKeyData: process id and secret.
pub fn backend_key_data(mut body: Bytes) -> Result<(u32, u32), FrameError> {
    let what = "BackendKeyData";
    let key = (take_u32(&mut body, what)?, take_u32(&mut body, what)?);
    if body.is_empty() {
        Ok(key)
    } else {
        Err(FrameError::Body(what))
    }
}

/// Reads an authentication request's kind; 0 is "ok".
pub fn authentication(mut body: Bytes) -> Result<u32, FrameError> {
    take_u32(&mut body, "Authentication")
}

/// Reads a CommandComplete's tag, such as `INSERT 0 1`.
pub fn command_complete(mut body: Bytes) -> Result<Bytes, FrameError> {
    let text = take_cstr(&mut body, "CommandComplete")?;
    if body.is_empty() {
        Ok(text)
    } else {
        Err(FrameError::Body("CommandComplete"))
    }
}

/// Reads a ParameterDescription: the types of a statement's parameters.
pub fn parameter_description(mut body: Bytes) -> Result<Vec<u32>, FrameError> {
    let what = "ParameterDescription";
    let count = take_u16(&mut body, what)?;
    let types = (0..count)
        .map(|_| take_u32(&mut body, what))
        .collect::<Result<_, _>>()?;
    if body.is_empty() {
        Ok(types)
    } else {
        Err(FrameError::Body(what))
    }
}

/// Reads a DataRow: its values, `None` for NULL.
pub fn data_row(mut body: Bytes) -> Result<Vec<Option<Bytes>>, FrameError> {
    let what = "DataRow";
    let count = take_u16(&mut body, what)?;
    let mut values = Vec::new();
    for _ in 0..count {
        let length = take_u32(&mut body, what)?;
        if length == u32::MAX {
            values.push(None);
            continue;
        }
        let length = usize::try_from(length).map_err(|_| FrameError::Body(what))?;
        if body.len() < length {
            return Err(FrameError::Body(what));
        }
        values.push(Some(body.split_to(length)));
    }
    if body.is_empty() {
        Ok(values)
    } else {
        Err(FrameError::Body(what))
    }
}

/// How bad a report is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The session goes on.
    Error,
    /// The session ends.
    Fatal,
    /// Only told.
    Warning,
}

impl Severity {
    fn text(self) -> &'static str {
        match self {
            Self::Error => "ERROR",
            Self::Fatal => "FATAL",
            Self::Warning => "WARNING",
        }
    }
}

/// A report of our own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report<'a> {
    /// How bad it is.
    pub severity: Severity,
    /// Five characters.
    pub sqlstate: &'a str,
    /// What happened.
    pub message: &'a str,
    /// More about it; empty = none.
    pub detail: &'a str,
    /// What to do; empty = none.
    pub hint: &'a str,
}

/// Writes an ErrorResponse, or a NoticeResponse if it is only a warning.
pub fn put_report(out: &mut BytesMut, report: Report<'_>) {
    let tag = if report.severity == Severity::Warning {
        tag::NOTICE
    } else {
        tag::ERROR
    };
    put_frame(out, tag, |out| {
        let severity = report.severity.text();
        let fields = [
            (b'S', severity),
            (b'V', severity),
            (b'C', report.sqlstate),
            (b'M', report.message),
            (b'D', report.detail),
            (b'H', report.hint),
        ];
        for (letter, text) in fields.into_iter().filter(|(_, text)| !text.is_empty()) {
            out.put_u8(letter);
            put_cstr(out, text.as_bytes());
        }
        out.put_u8(0);
    });
}

/// Writes a ReadyForQuery.
pub fn put_ready_for_query(out: &mut BytesMut, status: Status) {
    put_frame(out, tag::READY_FOR_QUERY, |out| {
        out.put_u8(match status {
            Status::Idle => b'I',
            Status::Transaction => b'T',
            Status::Failed => b'E',
        });
    });
}

/// Writes a CommandComplete.
pub fn put_command_complete(out: &mut BytesMut, text: &str) {
    put_frame(out, tag::COMMAND_COMPLETE, |out| {
        put_cstr(out, text.as_bytes());
    });
}

/// Writes a ParameterStatus.
pub fn put_parameter_status(out: &mut BytesMut, name: &str, value: &str) {
    put_frame(out, tag::PARAMETER_STATUS, |out| {
        put_cstr(out, name.as_bytes());
        put_cstr(out, value.as_bytes());
    });
}

/// Writes a BackendKeyData.
pub fn put_backend_key_data(out: &mut BytesMut, process: u32, secret: u32) {
    put_frame(out, tag::BACKEND_KEY_DATA, |out| {
        out.put_u32(process);
        out.put_u32(secret);
    });
}

/// Writes AuthenticationOk.
pub fn put_authentication_ok(out: &mut BytesMut) {
    put_frame(out, tag::AUTHENTICATION, |out| out.put_u32(0));
}

/// Writes a NegotiateProtocolVersion: the newest minor version spoken, and the options not known.
pub fn put_negotiate_version(out: &mut BytesMut, minor: u32, unknown: &[&str]) {
    put_frame(out, tag::NEGOTIATE_VERSION, |out| {
        out.put_u32(minor);
        out.put_u32(u32::try_from(unknown.len()).unwrap_or(u32::MAX));
        unknown
            .iter()
            .for_each(|name| put_cstr(out, name.as_bytes()));
    });
}

/// Writes a message without a body: ParseComplete, BindComplete, CloseComplete, NoData,
/// EmptyQueryResponse.
pub fn put_empty(out: &mut BytesMut, tag: u8) {
    put_frame(out, tag, |_| {});
}

/// Writes a ParameterDescription; at most 65,535 types.
pub fn put_parameter_description(out: &mut BytesMut, types: &[u32]) {
    put_frame(out, tag::PARAMETER_DESCRIPTION, |out| {
        let types = &types[..types.len().min(usize::from(u16::MAX))];
        out.put_u16(u16::try_from(types.len()).unwrap_or(u16::MAX));
        types.iter().for_each(|oid| out.put_u32(*oid));
    });
}

/// Writes the RowDescription of one text column.
pub fn put_text_column(out: &mut BytesMut, name: &str) {
    put_frame(out, tag::ROW_DESCRIPTION, |out| {
        out.put_u16(1);
        put_cstr(out, name.as_bytes());
        out.put_u32(0);
        out.put_u16(0);
        out.put_u32(25);
        out.put_i16(-1);
        out.put_i32(-1);
        out.put_u16(0);
    });
}

/// Writes a DataRow of one value.
pub fn put_text_row(out: &mut BytesMut, value: &str) {
    put_frame(out, tag::DATA_ROW, |out| {
        out.put_u16(1);
        out.put_u32(u32::try_from(value.len()).unwrap_or(0));
        out.extend_from_slice(value.as_bytes());
    });
}
