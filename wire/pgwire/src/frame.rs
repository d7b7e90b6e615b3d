//! Frames: one tag byte, a length that counts itself, a body.

use bytes::{Buf, Bytes, BytesMut};
use thiserror::Error;

/// Bytes of a frame's tag and length.
const HEADER: usize = 5;

/// How much a peer may ask us to keep in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest frame, header included.
    pub frame_bytes_max: usize,
    /// Largest startup packet; PostgreSQL's own limit is 10,000.
    pub startup_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            frame_bytes_max: 64 * 1024 * 1024,
            startup_bytes_max: 10_000,
        }
    }
}

/// Who sent the bytes: the two directions use the same tags for different messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// A client.
    Frontend,
    /// A server.
    Backend,
}

impl Peer {
    fn may_send(self, tag: u8) -> bool {
        match self {
            Self::Frontend => b"BCDEFHPQSXcdfp".contains(&tag),
            Self::Backend => b"123ACDEGHIKNRSTVWZcdnstv".contains(&tag),
        }
    }
}

/// Why bytes are not a frame. The stream cannot be followed any further after one of these.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FrameError {
    /// A tag that this side never sends.
    #[error("byte 0x{0:02x} begins no message that this side may send")]
    Tag(u8),
    /// A length that cannot be.
    #[error("a message says it is {0} bytes long, which cannot be")]
    Length(u32),
    /// Longer than the limit.
    #[error("a message of {bytes} bytes is above the limit of {limit} ({name})")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// What is allowed.
        limit: usize,
        /// The limit's name.
        name: &'static str,
    },
    /// A body that does not hold what its tag says.
    #[error("the body of a {0} message is malformed")]
    Body(&'static str),
    /// Not protocol 3.
    #[error("protocol version {0}.{1} is not spoken here; it must be 3.x")]
    Version(u16, u16),
}

/// One message as it came over the wire.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    raw: Bytes,
}

impl Frame {
    /// Which message.
    pub fn tag(&self) -> u8 {
        self.raw.first().copied().unwrap_or(0)
    }

    /// Without tag and length.
    pub fn body(&self) -> Bytes {
        self.raw.slice(HEADER..)
    }

    /// With tag and length: what is forwarded.
    pub fn raw(&self) -> &Bytes {
        &self.raw
    }
}

impl std::fmt::Debug for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:?}[{}]",
            char::from(self.tag()),
            self.raw.len().saturating_sub(HEADER)
        )
    }
}

/// Cuts the next frame off `input`; `None` until all of it is there.
pub fn decode(
    input: &mut BytesMut,
    from: Peer,
    limits: Limits,
) -> Result<Option<Frame>, FrameError> {
    let Some(&tag) = input.first() else {
        return Ok(None);
    };
    if !from.may_send(tag) {
        return Err(FrameError::Tag(tag));
    }
    if input.len() < HEADER {
        return Ok(None);
    }
    let length = (&input[1..HEADER]).get_u32();
    let bytes = usize::try_from(length)
        .map_err(|_| FrameError::Length(length))?
        .saturating_add(1);
    if bytes < HEADER {
        return Err(FrameError::Length(length));
    }
    if bytes > limits.frame_bytes_max {
        let limit = limits.frame_bytes_max;
        return Err(FrameError::TooLong {
            bytes,
            limit,
            name: "frame_bytes_max",
        });
    }
    if input.len() < bytes {
        input.reserve(bytes - input.len());
        return Ok(None);
    }
    Ok(Some(Frame {
        raw: input.split_to(bytes).freeze(),
    }))
}

/// Takes a zero-terminated string off the front of a body.
pub(crate) fn take_cstr(body: &mut Bytes, what: &'static str) -> Result<Bytes, FrameError> {
    let end = body
        .iter()
        .position(|b| *b == 0)
        .ok_or(FrameError::Body(what))?;
    let text = body.split_to(end);
    body.advance(1);
    Ok(text)
}

/// Takes a 16-bit number off the front of a body.
pub(crate) fn take_u16(body: &mut Bytes, what: &'static str) -> Result<u16, FrameError> {
    if body.len() < 2 {
        return Err(FrameError::Body(what));
    }
    Ok(body.get_u16())
}

/// Takes a 32-bit number off the front of a body.
pub(crate) fn take_u32(body: &mut Bytes, what: &'static str) -> Result<u32, FrameError> {
    if body.len() < 4 {
        return Err(FrameError::Body(what));
    }
    Ok(body.get_u32())
}

/// Writes one message: the closure writes the body, the length is filled in afterwards.
pub(crate) fn put_frame(out: &mut BytesMut, tag: u8, body: impl FnOnce(&mut BytesMut)) {
    out.extend_from_slice(&[tag]);
    put_sized(out, body);
}

/// Writes a length that counts itself, and the body that it measures.
pub(crate) fn put_sized(out: &mut BytesMut, body: impl FnOnce(&mut BytesMut)) {
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    body(out);
    // Bodies are built here from bounded parts; one above 4 GiB cannot be in memory as one frame.
    let length = u32::try_from(out.len() - at).unwrap_or(u32::MAX);
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
}

/// Writes a zero-terminated string; bytes from a zero on are left out, because they cannot be said.
pub(crate) fn put_cstr(out: &mut BytesMut, text: &[u8]) {
    let end = text.iter().position(|b| *b == 0).unwrap_or(text.len());
    out.extend_from_slice(&text[..end]);
    out.extend_from_slice(&[0]);
}
