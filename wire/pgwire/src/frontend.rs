//! What clients send: views of the messages that the router looks at, and how to write them.

use bytes::{BufMut, Bytes, BytesMut};

use crate::frame::{FrameError, put_cstr, put_frame, take_cstr, take_u16, take_u32};

/// Tags of the messages that clients send.
pub mod tag {
    #![expect(missing_docs, reason = "the names are the protocol's")]
    pub const BIND: u8 = b'B';
    pub const CLOSE: u8 = b'C';
    pub const DESCRIBE: u8 = b'D';
    pub const EXECUTE: u8 = b'E';
    pub const FUNCTION_CALL: u8 = b'F';
    pub const FLUSH: u8 = b'H';
    pub const PARSE: u8 = b'P';
    pub const QUERY: u8 = b'Q';
    pub const SYNC: u8 = b'S';
    pub const TERMINATE: u8 = b'X';
    pub const COPY_DONE: u8 = b'c';
    pub const COPY_DATA: u8 = b'd';
    pub const COPY_FAIL: u8 = b'f';
    pub const PASSWORD: u8 = b'p';
}

/// Prepare a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parse {
    /// Its name; empty for the unnamed one.
    pub name: Bytes,
    /// Its text.
    pub query: Bytes,
    /// Types of its parameters as far as the client knows them; 0 = to be inferred.
    pub types: Vec<u32>,
}

/// Bind a statement's parameters to a portal. The values are looked at only on demand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// The portal's name.
    pub portal: Bytes,
    /// The statement's name.
    pub statement: Bytes,
    /// Formats, values and result formats, as they came.
    pub rest: Bytes,
}

/// One bound value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// SQL NULL.
    Null,
    /// Text format.
    Text(Bytes),
    /// Binary format of the parameter's type.
    Binary(Bytes),
}

/// What Describe and Close speak of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A prepared statement.
    Statement(Bytes),
    /// A portal.
    Portal(Bytes),
}

/// Run a portal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Execute {
    /// Its name.
    pub portal: Bytes,
    /// Row limit; 0 = all.
    pub rows: u32,
}

/// Reads a Query's text.
pub fn query(mut body: Bytes) -> Result<Bytes, FrameError> {
    let text = take_cstr(&mut body, "Query")?;
    end(&body, "Query").map(|()| text)
}

/// Reads a Parse.
pub fn parse(mut body: Bytes) -> Result<Parse, FrameError> {
    let what = "Parse";
    let name = take_cstr(&mut body, what)?;
    let query = take_cstr(&mut body, what)?;
    let count = take_u16(&mut body, what)?;
    let types = (0..count)
        .map(|_| take_u32(&mut body, what))
        .collect::<Result<_, _>>()?;
    end(&body, what).map(|()| Parse { name, query, types })
}

/// Reads a Bind as far as its names.
pub fn bind(mut body: Bytes) -> Result<Bind, FrameError> {
    let portal = take_cstr(&mut body, "Bind")?;
    let statement = take_cstr(&mut body, "Bind")?;
    Ok(Bind {
        portal,
        statement,
        rest: body,
    })
}

impl Bind {
    /// The value of parameter `number` (from 1); `None` if there are fewer.
    pub fn value(&self, number: u16) -> Result<Option<Value>, FrameError> {
        let what = "Bind";
        let mut rest = self.rest.clone();
        let formats = take_u16(&mut rest, what)?;
        let formats: Vec<u16> = (0..formats)
            .map(|_| take_u16(&mut rest, what))
            .collect::<Result<_, _>>()?;
        let count = take_u16(&mut rest, what)?;
        for at in 0..count {
            let length = take_u32(&mut rest, what)?;
            let value = if length == u32::MAX {
                None
            } else {
                let length = usize::try_from(length).map_err(|_| FrameError::Body(what))?;
                if rest.len() < length {
                    return Err(FrameError::Body(what));
                }
                Some(rest.split_to(length))
            };
            if number == at + 1 {
                let format = match formats.as_slice() {
                    [] => 0,
                    [one] => *one,
                    many => *many.get(usize::from(at)).ok_or(FrameError::Body(what))?,
                };
                return Ok(Some(match (value, format) {
                    (None, _) => Value::Null,
                    (Some(value), 0) => Value::Text(value),
                    (Some(value), _) => Value::Binary(value),
                }));
            }
        }
        Ok(None)
    }
}

/// Reads what a Describe or Close speaks of.
pub fn target(mut body: Bytes) -> Result<Target, FrameError> {
    let what = "Describe or Close";
    if body.is_empty() {
        return Err(FrameError::Body(what));
    }
    let kind = body.split_to(1);
    let name = take_cstr(&mut body, what)?;
    end(&body, what)?;
    match kind.first() {
        Some(b'S') => Ok(Target::Statement(name)),
        Some(b'P') => Ok(Target::Portal(name)),
        _ => Err(FrameError::Body(what)),
    }
}

/// Reads an Execute.
pub fn execute(mut body: Bytes) -> Result<Execute, FrameError> {
    let portal = take_cstr(&mut body, "Execute")?;
    let rows = take_u32(&mut body, "Execute")?;
    end(&body, "Execute").map(|()| Execute { portal, rows })
}

fn end(body: &Bytes, what: &'static str) -> Result<(), FrameError> {
    if body.is_empty() {
        Ok(())
    } else {
        Err(FrameError::Body(what))
    }
}

/// Writes a Query.
pub fn put_query(out: &mut BytesMut, text: &[u8]) {
    put_frame(out, tag::QUERY, |out| put_cstr(out, text));
}

/// Writes a Parse; at most 65,535 types.
pub fn put_parse(out: &mut BytesMut, name: &[u8], query: &[u8], types: &[u32]) {
    put_frame(out, tag::PARSE, |out| {
        put_cstr(out, name);
        put_cstr(out, query);
        let types = &types[..types.len().min(usize::from(u16::MAX))];
        out.put_u16(u16::try_from(types.len()).unwrap_or(u16::MAX));
        types.iter().for_each(|oid| out.put_u32(*oid));
    });
}

/// Writes a Bind from its parts as they came, under another statement name for instance.
pub fn put_bind(out: &mut BytesMut, portal: &[u8], statement: &[u8], rest: &[u8]) {
    put_frame(out, tag::BIND, |out| {
        put_cstr(out, portal);
        put_cstr(out, statement);
        out.extend_from_slice(rest);
    });
}

/// Writes a Describe.
pub fn put_describe(out: &mut BytesMut, target: &Target) {
    put_target(out, tag::DESCRIBE, target);
}

/// Writes a Close.
pub fn put_close(out: &mut BytesMut, target: &Target) {
    put_target(out, tag::CLOSE, target);
}

fn put_target(out: &mut BytesMut, tag: u8, target: &Target) {
    let (kind, name) = match target {
        Target::Statement(name) => (b'S', name),
        Target::Portal(name) => (b'P', name),
    };
    put_frame(out, tag, |out| {
        out.put_u8(kind);
        put_cstr(out, name);
    });
}

/// Writes an Execute.
pub fn put_execute(out: &mut BytesMut, portal: &[u8], rows: u32) {
    put_frame(out, tag::EXECUTE, |out| {
        put_cstr(out, portal);
        out.put_u32(rows);
    });
}

/// Writes a Sync.
pub fn put_sync(out: &mut BytesMut) {
    put_frame(out, tag::SYNC, |_| {});
}

/// Writes a Flush.
pub fn put_flush(out: &mut BytesMut) {
    put_frame(out, tag::FLUSH, |_| {});
}

/// Writes a Terminate.
pub fn put_terminate(out: &mut BytesMut) {
    put_frame(out, tag::TERMINATE, |_| {});
}
