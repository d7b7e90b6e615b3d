//! The first line on a replication connection: who wants whose log, under which promise.

use std::io;

use atoll_topology::{GroupId, MemberId, Term};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// A line longer than this is not ours.
const LINE_BYTES_MAX: usize = 512;

/// The link is accepted; from here on PostgreSQL speaks.
const ACCEPTED: u8 = b'Y';

/// What a link is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Use {
    /// The standby's receiver. Both ends of such a link foresee the same questions (`turn`); an
    /// agent that foresees others must not answer, so its name changes with them.
    #[serde(rename = "stream-2")]
    Stream,
    /// A rewind or a clone.
    Copy,
}

/// Who wants whose log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Greeting {
    pub(crate) group: GroupId,
    /// The standby.
    pub(crate) from: MemberId,
    /// Whom it means to reach.
    pub(crate) to: MemberId,
    /// Its promise.
    pub(crate) term: Term,
    pub(crate) r#use: Use,
}

impl Greeting {
    /// Says it, and waits for the answer: whether the link is accepted.
    pub(crate) async fn say<S>(&self, stream: &mut S) -> io::Result<bool>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        stream.write_all(&line).await?;
        Ok(stream.read_u8().await? == ACCEPTED)
    }

    /// Reads one.
    pub(crate) async fn hear<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<Self> {
        let mut line = Vec::new();
        loop {
            // Byte by byte: what follows the line belongs to PostgreSQL.
            match stream.read_u8().await? {
                b'\n' => return Ok(serde_json::from_slice(&line)?),
                byte if line.len() < LINE_BYTES_MAX => line.push(byte),
                _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "no greeting")),
            }
        }
    }

    /// Accepts.
    pub(crate) async fn accept<S: AsyncWrite + Unpin>(stream: &mut S) -> io::Result<()> {
        stream.write_u8(ACCEPTED).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_greeting_arrives_and_leaves_what_follows_it() {
        let greeting = Greeting {
            group: GroupId::parse("g").unwrap(),
            from: MemberId::parse("g-2").unwrap(),
            to: MemberId::parse("g-1").unwrap(),
            term: Term::new(7),
            r#use: Use::Copy,
        };
        let (mut here, mut there) = tokio::io::duplex(4096);
        let said = greeting.clone();
        let hear = async {
            let heard = Greeting::hear(&mut there).await.unwrap();
            Greeting::accept(&mut there).await.unwrap();
            heard
        };
        let (accepted, heard) = tokio::join!(said.say(&mut here), hear);
        assert!(accepted.unwrap());
        assert_eq!(heard, greeting);
        here.write_all(b"rest").await.unwrap();
        let mut rest = [0; 4];
        there.read_exact(&mut rest).await.unwrap();
        assert_eq!(&rest, b"rest");
    }

    #[tokio::test]
    async fn a_line_without_end_is_refused() {
        let (mut here, mut there) = tokio::io::duplex(4096);
        here.write_all(&[b'x'; 2000]).await.unwrap();
        assert!(Greeting::hear(&mut there).await.is_err());
    }
}
