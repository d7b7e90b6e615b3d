//! The receiving end of a link: holds what has arrived until its delay is over, and for as long as
//! the link is cut.
//!
//! Only the receiver applies a link, so each direction is applied once, and a sender never waits
//! for a delay. Nothing is spawned: bytes are stamped when the reader polls, so a reader that does
//! not read sees its bytes later, never earlier.

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::links::{Link, Links, Watching};

/// Bytes held for one connection. Past it the rest waits in the kernel, and then in the sender, as
/// with a full receive window.
pub const HELD_BYTES_MAX: usize = 4 << 20;

/// Bytes are read into blocks of this size, which the held pieces share.
const BLOCK_BYTES: usize = 64 << 10;
/// A new block is begun when less than this is free.
const ROOM_BYTES_MIN: usize = 4 << 10;

/// What a connection's receiver knows of its link.
pub(crate) struct Inbound {
    from: IpAddr,
    to: IpAddr,
    link: Link,
    links: Watching,
    held: VecDeque<(Instant, Bytes)>,
    held_bytes: usize,
    /// The end of the stream (or its error) is delayed and held like any byte.
    end: Option<(Instant, Option<io::Error>)>,
    dice: Dice,
    buffer: BytesMut,
    timer: Option<Pin<Box<Sleep>>>,
    change: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Inbound {
    /// The receiver at `to` of bytes that come from `from`.
    pub(crate) fn new(links: &Links, from: IpAddr, to: IpAddr, seed: u64) -> Self {
        Self {
            from,
            to,
            link: links.between(from, to),
            links: links.subscribe(),
            held: VecDeque::new(),
            held_bytes: 0,
            end: None,
            dice: Dice(seed),
            buffer: BytesMut::new(),
            timer: None,
            change: None,
        }
    }

    /// Whether nothing may come through now.
    pub(crate) fn is_cut(&mut self) -> bool {
        if let Some(link) = self.links.refreshed(self.from, self.to) {
            self.link = link;
        }
        self.link.cut
    }

    /// Reads what is due from `inner`.
    pub(crate) fn poll_read<R: AsyncRead + Unpin>(
        &mut self,
        inner: &mut R,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if out.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            let cut = self.is_cut();
            let direct = self.link == Link::NONE && self.held.is_empty() && self.end.is_none();
            if direct {
                return Pin::new(&mut *inner).poll_read(cx, out);
            }
            self.take_in(inner, cx);
            if cut {
                let links = &self.links;
                let change = self
                    .change
                    .get_or_insert_with(|| Box::pin(links.next_change()));
                ready!(change.as_mut().poll(cx));
                self.change = None;
                continue;
            }
            let now = Instant::now();
            if self.hand_out(now, out) > 0 {
                return Poll::Ready(Ok(()));
            }
            let due = match (self.held.front(), &mut self.end) {
                (Some((due, _)), _) => *due,
                (None, Some((due, error))) if *due <= now => {
                    // An error is told once; after it the stream is at its end.
                    return Poll::Ready(error.take().map_or(Ok(()), Err));
                }
                (None, Some((due, _))) => *due,
                (None, None) => return Poll::Pending,
            };
            let timer = self
                .timer
                .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
            if timer.deadline() != due {
                timer.as_mut().reset(due);
            }
            ready!(timer.as_mut().poll(cx));
        }
    }

    /// Takes what has arrived and stamps it; on return `inner` has our waker, or we are full.
    fn take_in<R: AsyncRead + Unpin>(&mut self, inner: &mut R, cx: &mut Context<'_>) {
        while self.end.is_none() && self.held_bytes < HELD_BYTES_MAX {
            if self.buffer.capacity() - self.buffer.len() < ROOM_BYTES_MIN {
                self.buffer.reserve(BLOCK_BYTES);
            }
            let read = tokio_util::io::poll_read_buf(Pin::new(&mut *inner), cx, &mut self.buffer);
            match read {
                Poll::Pending => return,
                Poll::Ready(Ok(0)) => self.end = Some((self.due(), None)),
                Poll::Ready(Err(error)) => self.end = Some((self.due(), Some(error))),
                Poll::Ready(Ok(bytes)) => {
                    let due = self.due();
                    self.held_bytes += bytes;
                    self.held.push_back((due, self.buffer.split().freeze()));
                }
            }
        }
    }

    /// When bytes that arrive now may be delivered. Jitter cannot reorder them: the queue is
    /// emptied from its front only.
    fn due(&mut self) -> Instant {
        Instant::now() + self.link.delay + self.dice.up_to(self.link.jitter)
    }

    fn hand_out(&mut self, now: Instant, out: &mut ReadBuf<'_>) -> usize {
        let mut given = 0;
        while let Some((due, bytes)) = self.held.front_mut()
            && *due <= now
            && out.remaining() > 0
        {
            let part = bytes.len().min(out.remaining());
            out.put_slice(&bytes[..part]);
            bytes.advance(part);
            given += part;
            if bytes.is_empty() {
                self.held.pop_front();
            }
        }
        self.held_bytes -= given;
        given
    }
}

/// SplitMix64: jitter needs no better randomness, only a seed.
struct Dice(u64);

impl Dice {
    fn up_to(&mut self, most: Duration) -> Duration {
        let most = u64::try_from(most.as_nanos()).unwrap_or(u64::MAX);
        if most == 0 {
            return Duration::ZERO;
        }
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        Duration::from_nanos((z ^ (z >> 31)) % most.saturating_add(1))
    }
}
