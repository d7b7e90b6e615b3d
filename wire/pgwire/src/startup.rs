//! The first packet of a connection, which has no tag.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::frame::{FrameError, Limits, put_cstr, put_sized, take_cstr, take_u32};

const SSL: u32 = 80_877_103;
const GSS: u32 = 80_877_104;
const CANCEL: u32 = 80_877_102;
/// Version 3.0 as the protocol writes it.
const VERSION_3_0: u32 = 3 << 16;

/// With this parameter, set to [`CANCELS_KEPT_FROM_COMMITS`], whoever opens a session promises how
/// it uses cancel requests. It is between a router and an agent; PostgreSQL never sees it.
pub const CANCELS: &str = "_pq_.atoll_cancels";

/// The promise: a cancel is asked for only inside an explicit transaction whose COMMIT was not
/// sent, and none is sent before the connection of the cancel request has closed.
pub const CANCELS_KEPT_FROM_COMMITS: &str = "kept-from-commits";

/// With this parameter, set to a number, whoever opens a session says for which term: a member that
/// has not promised that term yet keeps the session over its promise, so that it can be opened
/// ahead. Without it a session is for the term that is promised when it is opened.
pub const TERM: &str = "_pq_.atoll_term";

/// What a new connection asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartupRequest {
    /// A session.
    Startup(StartupMessage),
    /// TLS: answered by one byte, `S` or `N`.
    Ssl,
    /// GSSAPI encryption: answered by one byte, `G` or `N`.
    GssEnc,
    /// Cancel what another session is doing.
    Cancel {
        /// Process id from that session's BackendKeyData.
        process: u32,
        /// Secret from that session's BackendKeyData.
        secret: u32,
    },
}

/// The request for a session.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StartupMessage {
    /// The minor version asked for; 0 is what everybody speaks.
    pub minor: u16,
    /// Names and values in the order given: `user`, `database`, `options`, settings.
    pub parameters: Vec<(String, String)>,
}

impl StartupMessage {
    /// The last value given for `name`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.parameters
            .iter()
            .rev()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    }
}

/// Cuts the first packet off `input`; `None` until all of it is there.
pub fn decode_startup(
    input: &mut BytesMut,
    limits: Limits,
) -> Result<Option<StartupRequest>, FrameError> {
    if input.len() < 4 {
        return Ok(None);
    }
    let length = (&input[..4]).get_u32();
    let bytes = usize::try_from(length).map_err(|_| FrameError::Length(length))?;
    if bytes < 8 {
        return Err(FrameError::Length(length));
    }
    if bytes > limits.startup_bytes_max {
        let limit = limits.startup_bytes_max;
        return Err(FrameError::TooLong {
            bytes,
            limit,
            name: "startup_bytes_max",
        });
    }
    if input.len() < bytes {
        return Ok(None);
    }
    let mut body = input.split_to(bytes).freeze();
    body.advance(4);
    parse(body).map(Some)
}

fn parse(mut body: Bytes) -> Result<StartupRequest, FrameError> {
    let what = "startup";
    match take_u32(&mut body, what)? {
        SSL if body.is_empty() => Ok(StartupRequest::Ssl),
        GSS if body.is_empty() => Ok(StartupRequest::GssEnc),
        CANCEL => {
            let process = take_u32(&mut body, "cancel")?;
            let secret = take_u32(&mut body, "cancel")?;
            if body.is_empty() {
                Ok(StartupRequest::Cancel { process, secret })
            } else {
                Err(FrameError::Body("cancel"))
            }
        }
        version => {
            let [a, b, c, d] = version.to_be_bytes();
            let (major, minor) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
            if major != 3 {
                return Err(FrameError::Version(major, minor));
            }
            let mut parameters = Vec::new();
            loop {
                let name = text(take_cstr(&mut body, what)?)?;
                if name.is_empty() {
                    break;
                }
                parameters.push((name, text(take_cstr(&mut body, what)?)?));
            }
            if body.is_empty() {
                Ok(StartupRequest::Startup(StartupMessage {
                    minor,
                    parameters,
                }))
            } else {
                Err(FrameError::Body(what))
            }
        }
    }
}

fn text(bytes: Bytes) -> Result<String, FrameError> {
    String::from_utf8(bytes.into()).map_err(|_| FrameError::Body("startup"))
}

impl StartupRequest {
    /// Writes the packet.
    pub fn encode(&self, out: &mut BytesMut) {
        put_sized(out, |out| match self {
            Self::Ssl => out.put_u32(SSL),
            Self::GssEnc => out.put_u32(GSS),
            Self::Cancel { process, secret } => {
                out.put_u32(CANCEL);
                out.put_u32(*process);
                out.put_u32(*secret);
            }
            Self::Startup(message) => {
                out.put_u32(VERSION_3_0 | u32::from(message.minor));
                for (name, value) in &message.parameters {
                    put_cstr(out, name.as_bytes());
                    put_cstr(out, value.as_bytes());
                }
                out.put_u8(0);
            }
        });
    }
}
