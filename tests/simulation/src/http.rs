//! As much of HTTP/1.1 as users, the operator and the application need: one request on one
//! connection for clients, bodies with a length.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;

use atoll_runtime::{Runtime, Stream};
use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Duration, timeout};

/// Largest head or body.
const BYTES_MAX: usize = 1 << 20;

/// Time for a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);

/// A request or an answer.
#[derive(Debug, Default)]
pub(crate) struct Message {
    /// The first line.
    pub(crate) first: String,
    /// By name, in small letters.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: String,
}

impl Message {
    /// Of an answer.
    pub(crate) fn status(&self) -> u16 {
        let code = self.first.split(' ').nth(1);
        code.and_then(|code| code.parse().ok()).unwrap_or(0)
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// Why a request has no answer.
#[derive(Debug)]
pub(crate) enum NoAnswer {
    /// It was not sent.
    NotSent,
    /// Nobody knows what became of it.
    Lost,
}

/// One request on a connection of its own.
pub(crate) async fn ask(
    runtime: &Runtime,
    at: SocketAddr,
    head: &str,
    body: &str,
    limit: Duration,
) -> Result<Message, NoAnswer> {
    let connected = timeout(CONNECT_LIMIT, runtime.connect(at)).await;
    let Ok(Ok(mut stream)) = connected else {
        return Err(NoAnswer::NotSent);
    };
    let text = format!(
        "{head}\r\nhost: simulation\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let exchange = async {
        stream.write_all(text.as_bytes()).await?;
        let mut input = BytesMut::new();
        receive(&mut stream, &mut input).await
    };
    match timeout(limit, exchange).await {
        Ok(Ok(Some(answer))) => Ok(answer),
        _ => Err(NoAnswer::Lost),
    }
}

/// The next message; none at the end of the stream.
pub(crate) async fn receive(
    stream: &mut Stream,
    input: &mut BytesMut,
) -> io::Result<Option<Message>> {
    let end = loop {
        if let Some(end) = input.windows(4).position(|four| four == b"\r\n\r\n") {
            break end;
        }
        if input.len() > BYTES_MAX {
            return Err(io::Error::other("the head is too long"));
        }
        if stream.read_buf(input).await? == 0 {
            return Ok(None);
        }
    };
    let head = String::from_utf8_lossy(&input.split_to(end)).into_owned();
    input.advance(4);
    let mut lines = head.split("\r\n");
    let first = lines.next().unwrap_or_default().to_owned();
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let body = match headers
        .get("content-length")
        .map(|text| text.parse::<usize>())
    {
        Some(Ok(length)) if length <= BYTES_MAX => {
            while input.len() < length {
                if stream.read_buf(input).await? == 0 {
                    return Ok(None);
                }
            }
            String::from_utf8_lossy(&input.split_to(length)).into_owned()
        }
        Some(_) => return Err(io::Error::other("a body of no length")),
        // An answer may end with its connection, a request may not.
        None if first.starts_with("HTTP/") => {
            while stream.read_buf(input).await? > 0 {}
            String::from_utf8_lossy(&input.split()).into_owned()
        }
        None => String::new(),
    };
    Ok(Some(Message {
        first,
        headers,
        body,
    }))
}
