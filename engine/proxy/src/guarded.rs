//! A connection whose requests are read strictly and within their times, before hyper sees them.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::strict::{Strict, StrictLimits, Violation};

/// How long a connection may keep us waiting.
#[derive(Debug, Clone, Copy)]
pub struct ReadTimes {
    /// From a head's first byte to its last.
    pub head: Duration,
    /// Between two requests.
    pub idle: Duration,
    /// Between two pieces of a body that we want.
    pub body: Duration,
}

/// Requests of a connection that are not answered to their end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Busy(Rc<Cell<u32>>);

/// One unanswered request; ends by drop.
#[derive(Debug)]
pub(crate) struct BusyGuard(Busy);

impl Busy {
    /// Counts one request until the guard is dropped.
    pub(crate) fn enter(&self) -> BusyGuard {
        self.0.set(self.0.get() + 1);
        BusyGuard(self.clone())
    }

    fn any(&self) -> bool {
        self.0.get() > 0
    }
}

impl Drop for BusyGuard {
    fn drop(&mut self) {
        let count = &self.0.0;
        count.set(count.get().saturating_sub(1));
    }
}

/// The stream that hyper reads.
#[derive(Debug)]
pub(crate) struct Guarded<S> {
    inner: S,
    strict: Strict,
    out: BytesMut,
    times: ReadTimes,
    busy: Busy,
    /// Why reading ended inside a body.
    broken: Option<Violation>,
    /// When what we wait for began.
    since: Instant,
    wait: Wait,
    alarm: Pin<Box<Sleep>>,
    /// A client that does not read.
    writing: Patience,
}

/// A limit for standing still: its clock is made only when something has to be waited for.
#[derive(Debug)]
pub(crate) struct Patience {
    limit: Duration,
    alarm: Option<Pin<Box<Sleep>>>,
}

impl Patience {
    pub(crate) fn new(limit: Duration) -> Self {
        Self { limit, alarm: None }
    }

    pub(crate) fn limit(&self) -> Duration {
        self.limit
    }

    /// Something has moved.
    pub(crate) fn moved(&mut self) {
        self.alarm = None;
    }

    /// Ready when nothing has moved for too long.
    pub(crate) fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let limit = self.limit;
        let alarm = self
            .alarm
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        alarm.as_mut().poll(cx)
    }

    fn poll_write<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.moved();
            return written;
        }
        ready!(self.poll_over(cx));
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the client does not read",
        )))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    Answer,
    Idle,
    Head,
    Body,
}

impl<S> Guarded<S> {
    /// Guards a fresh connection.
    pub(crate) fn new(inner: S, limits: StrictLimits, times: ReadTimes, busy: Busy) -> Self {
        Self {
            inner,
            strict: Strict::new(limits),
            out: BytesMut::new(),
            times,
            busy,
            broken: None,
            since: Instant::now(),
            wait: Wait::Idle,
            alarm: Box::pin(tokio::time::sleep(times.idle)),
            writing: Patience::new(times.body),
        }
    }

    fn waiting_for(&self) -> Wait {
        if self.strict.is_in_head() {
            Wait::Head
        } else if !self.strict.is_idle() {
            Wait::Body
        } else if self.busy.any() {
            Wait::Answer
        } else {
            Wait::Idle
        }
    }

    /// Whether what we wait for is overdue. The alarm is moved only when it rings, or when a nearer
    /// limit begins: not with every request.
    fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<Wait> {
        let wait = self.waiting_for();
        if wait != self.wait {
            self.wait = wait;
            self.since = Instant::now();
        }
        let limit = match wait {
            Wait::Answer | Wait::Idle => self.times.idle,
            Wait::Head => self.times.head,
            Wait::Body => self.times.body,
        };
        let due = self.since + limit;
        if due < self.alarm.deadline() {
            self.alarm.as_mut().reset(due);
        }
        loop {
            ready!(self.alarm.as_mut().poll(cx));
            if wait == Wait::Answer {
                self.alarm.as_mut().reset(Instant::now() + limit);
            } else if due > Instant::now() {
                self.alarm.as_mut().reset(due);
            } else {
                return Poll::Ready(wait);
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if !this.out.is_empty() {
                let n = this.out.len().min(buf.remaining());
                buf.put_slice(&this.out[..n]);
                this.out.advance(n);
                return Poll::Ready(Ok(()));
            }
            if let Some(violation) = this.broken {
                let error = io::Error::new(io::ErrorKind::InvalidData, violation.name());
                return Poll::Ready(Err(error));
            }
            let unfilled = buf.initialize_unfilled();
            let mut fresh = ReadBuf::new(unfilled);
            match Pin::new(&mut this.inner).poll_read(cx, &mut fresh) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                // What follows a refused request is swallowed; the answer ends the connection.
                Poll::Pending if this.strict.is_refused() => return Poll::Pending,
                Poll::Pending => match ready!(this.poll_overdue(cx)) {
                    Wait::Answer | Wait::Idle => return Poll::Ready(Ok(())),
                    Wait::Head => {
                        this.strict
                            .refuse_head(Violation::HeadTooSlow, &mut this.out);
                        continue;
                    }
                    Wait::Body => {
                        let error = io::Error::new(io::ErrorKind::TimedOut, "body-too-slow");
                        return Poll::Ready(Err(error));
                    }
                },
            }
            let input = fresh.filled();
            if input.is_empty() {
                // A client that only stops sending still gets the answer to a refused request.
                return match this.strict.is_refused() {
                    true => Poll::Pending,
                    false => Poll::Ready(Ok(())),
                };
            }
            this.since = Instant::now();
            this.broken = this.strict.feed(input, &mut this.out).err();
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.inner).poll_write(cx, buf);
        this.writing.poll_write(cx, written)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.inner).poll_flush(cx);
        this.writing.poll_write(cx, flushed)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let shut = Pin::new(&mut this.inner).poll_shutdown(cx);
        this.writing.poll_write(cx, shut)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.inner).poll_write_vectored(cx, bufs);
        this.writing.poll_write(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}
