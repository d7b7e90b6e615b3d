//! One end of a session: a stream with what was read from it and what is to be written to it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use atoll_runtime::Stream;
use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWrite};

/// Room that one read asks for.
const READ_BYTES: usize = 16 * 1024;

/// Whether to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reading {
    Wanted,
    /// The other side is behind: the kernel keeps the bytes, and the sender feels it.
    Paused,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// `input` has more.
    Read,
    /// `output` has less.
    Wrote,
    /// The peer has closed.
    Closed,
}

/// A stream and its two buffers.
pub(crate) struct Side {
    stream: Stream,
    pub(crate) input: BytesMut,
    pub(crate) output: BytesMut,
    closed: bool,
}

impl Side {
    pub(crate) fn new(stream: Stream) -> Self {
        Self {
            stream,
            input: BytesMut::new(),
            output: BytesMut::new(),
            closed: false,
        }
    }

    /// Writes what is to be written and, if wanted, reads what there is; whichever first. Safe to
    /// cancel: nothing is lost that is not in a buffer.
    pub(crate) async fn progress(&mut self, reading: Reading) -> io::Result<Progress> {
        std::future::poll_fn(|context| self.poll(context, reading)).await
    }

    fn poll(&mut self, context: &mut Context<'_>, reading: Reading) -> Poll<io::Result<Progress>> {
        if !self.output.is_empty()
            && let Poll::Ready(written) =
                Pin::new(&mut self.stream).poll_write(context, &self.output)
        {
            let written = written?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.output.advance(written);
            return Poll::Ready(Ok(Progress::Wrote));
        }
        if reading == Reading::Paused || self.closed {
            return Poll::Pending;
        }
        self.input.reserve(READ_BYTES);
        // Made anew for each poll: it keeps nothing between two of them.
        let read = std::pin::pin!(self.stream.read_buf(&mut self.input));
        let read = ready!(read.poll(context))?;
        if read == 0 {
            self.closed = true;
            return Poll::Ready(Ok(Progress::Closed));
        }
        Poll::Ready(Ok(Progress::Read))
    }

    /// Whether the peer is silent and there: for a connection that nobody uses, which must have
    /// nothing to say.
    pub(crate) fn is_quiet(&mut self) -> bool {
        let silent = self.input.is_empty() && self.output.is_empty();
        silent && self.progress_now().is_none() && !self.closed
    }

    /// What has happened by now, if anything has.
    pub(crate) fn progress_now(&mut self) -> Option<io::Result<Progress>> {
        let mut context = Context::from_waker(std::task::Waker::noop());
        match self.poll(&mut context, Reading::Wanted) {
            Poll::Ready(progress) => Some(progress),
            Poll::Pending => None,
        }
    }

    /// Writes all there is to write.
    pub(crate) async fn flush(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            self.progress(Reading::Paused).await?;
        }
        std::future::poll_fn(|context| Pin::new(&mut self.stream).poll_flush(context)).await
    }

    /// Reads more; an error if the peer has closed.
    pub(crate) async fn read(&mut self) -> io::Result<()> {
        loop {
            match self.progress(Reading::Wanted).await? {
                Progress::Read => return Ok(()),
                Progress::Wrote => {}
                Progress::Closed => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
    }
}
