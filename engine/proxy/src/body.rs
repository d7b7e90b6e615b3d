//! Bodies on their way through: what a client sends (kept for a repeat as long as it is small),
//! what an upstream answers (its connection goes back to the pool at the end), and our own answers.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::guarded::{BusyGuard, Patience};
use crate::pool::Lease;

/// A client's body: its first bytes in memory, the rest still on the socket.
#[derive(Debug, Clone)]
pub struct Kept {
    head: Vec<Bytes>,
    head_bytes: usize,
    rest: Option<Rc<Rest>>,
}

#[derive(Debug)]
struct Rest {
    incoming: RefCell<Incoming>,
    touched: Cell<bool>,
    failed: Cell<bool>,
}

impl Kept {
    /// Reads the body until `head_bytes_max` are here or it ends; the rest stays unread, so that
    /// the client feels the back-pressure.
    pub async fn read(mut incoming: Incoming, head_bytes_max: usize) -> Result<Self, hyper::Error> {
        let mut head = Vec::new();
        let mut head_bytes = 0;
        while !incoming.is_end_stream() {
            if head_bytes >= head_bytes_max {
                let rest = Rest {
                    incoming: RefCell::new(incoming),
                    touched: Cell::new(false),
                    failed: Cell::new(false),
                };
                return Ok(Self {
                    head,
                    head_bytes,
                    rest: Some(Rc::new(rest)),
                });
            }
            match incoming.frame().await {
                None => break,
                Some(frame) => {
                    // Trailers go no further: no route needs them, and they hide headers.
                    if let Ok(data) = frame?.into_data() {
                        head_bytes += data.len();
                        head.push(data);
                    }
                }
            }
        }
        Ok(Self {
            head,
            head_bytes,
            rest: None,
        })
    }

    /// A body that is all here.
    pub fn whole(bytes: Bytes) -> Self {
        Self {
            head_bytes: bytes.len(),
            head: vec![bytes],
            rest: None,
        }
    }

    /// Bytes that it occupies in memory.
    pub fn bytes(&self) -> usize {
        self.head_bytes
    }

    /// The body from its beginning; none when bytes that were not kept have been taken already.
    pub fn outgoing(&self) -> Option<Outgoing> {
        if self.rest.as_ref().is_some_and(|rest| rest.touched.get()) {
            return None;
        }
        let mut left = SizeHint::with_exact(self.head_bytes as u64);
        if let Some(rest) = &self.rest {
            left = match rest.incoming.borrow().size_hint().exact() {
                Some(rest) => SizeHint::with_exact(rest + self.head_bytes as u64),
                None => SizeHint::new(),
            };
        }
        Some(Outgoing {
            head: self.head.iter().cloned().collect(),
            rest: self.rest.clone(),
            left,
        })
    }

    /// Reads what is left and forgets it: a client that is still sending would not see an answer
    /// before the end of its connection.
    pub async fn drain(&self) {
        let Some(rest) = &self.rest else { return };
        rest.touched.set(true);
        let next = |cx: &mut Context<'_>| Pin::new(&mut *rest.incoming.borrow_mut()).poll_frame(cx);
        while let Some(Ok(_)) = std::future::poll_fn(next).await {}
    }

    /// Whether the client broke off while the rest was being sent on.
    pub fn client_failed(&self) -> bool {
        self.rest.as_ref().is_some_and(|rest| rest.failed.get())
    }
}

/// A client's body on its way to an upstream.
#[derive(Debug)]
pub struct Outgoing {
    head: VecDeque<Bytes>,
    rest: Option<Rc<Rest>>,
    left: SizeHint,
}

impl Outgoing {
    fn passed(&mut self, bytes: usize) {
        if let Some(left) = self.left.exact() {
            self.left = SizeHint::with_exact(left.saturating_sub(bytes as u64));
        }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if let Some(data) = self.head.pop_front() {
            self.passed(data.len());
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        let Some(rest) = self.rest.clone() else {
            return Poll::Ready(None);
        };
        rest.touched.set(true);
        loop {
            let polled = Pin::new(&mut *rest.incoming.borrow_mut()).poll_frame(cx);
            match ready!(polled) {
                None => {
                    self.rest = None;
                    return Poll::Ready(None);
                }
                Some(Err(error)) => {
                    rest.failed.set(true);
                    return Poll::Ready(Some(Err(error)));
                }
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.passed(data.len());
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.head.is_empty()
            && self
                .rest
                .as_ref()
                .is_none_or(|rest| rest.incoming.borrow().is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.left
    }
}

/// How an answer's body ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// All of it was passed on.
    Whole,
    /// The upstream broke off in the middle.
    UpstreamFailed,
    /// The client went away in the middle.
    ClientGone,
}

/// Something that wants to know when an answer has ended: counters, the access log.
pub trait Witness {
    /// Called once, with the body bytes that were passed on.
    fn ended(self: Box<Self>, end: End, body_bytes: u64);
}

/// The body of an answer to a client.
pub struct Answer {
    inner: Inner,
    passed: u64,
    witness: Option<Box<dyn Witness>>,
    busy: Option<BusyGuard>,
}

enum Inner {
    Ours(Bytes),
    Upstream {
        body: Incoming,
        lease: Option<Lease>,
        patience: Patience,
    },
}

/// Why an upstream's answer broke off.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// Its connection did.
    #[error("the upstream broke off its answer")]
    Broke(#[from] hyper::Error),
    /// Nothing of it came for this long.
    #[error("the upstream's answer stood still for {0:?}")]
    Stood(Duration),
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer")
            .field("passed", &self.passed)
            .finish_non_exhaustive()
    }
}

impl Answer {
    /// An answer of our own.
    pub fn ours(bytes: impl Into<Bytes>) -> Self {
        Self {
            inner: Inner::Ours(bytes.into()),
            passed: 0,
            witness: None,
            busy: None,
        }
    }

    /// An upstream's answer; its connection goes back to the pool when the body ends well.
    pub(crate) fn upstream(body: Incoming, lease: Lease, stands: Duration) -> Self {
        let inner = Inner::Upstream {
            body,
            lease: Some(lease),
            patience: Patience::new(stands),
        };
        Self {
            inner,
            passed: 0,
            witness: None,
            busy: None,
        }
    }

    /// Tells the witness when this answer has ended.
    pub fn witnessed(mut self, witness: Box<dyn Witness>) -> Self {
        self.witness = Some(witness);
        self
    }

    /// Keeps its connection marked busy until the end.
    pub(crate) fn busy(mut self, busy: BusyGuard) -> Self {
        self.busy = Some(busy);
        self
    }

    fn finish(&mut self, end: End) {
        if let Inner::Upstream { lease, .. } = &mut self.inner
            && let Some(lease) = lease.take()
        {
            match end {
                End::Whole => lease.give_back(),
                End::UpstreamFailed | End::ClientGone => drop(lease),
            }
        }
        self.busy = None;
        if let Some(witness) = self.witness.take() {
            witness.ended(end, self.passed);
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = AnswerError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, AnswerError>>> {
        loop {
            let polled = match &mut self.inner {
                Inner::Ours(bytes) if bytes.is_empty() => None,
                Inner::Ours(bytes) => Some(Ok(Frame::data(std::mem::take(bytes)))),
                Inner::Upstream { body, patience, .. } => match Pin::new(body).poll_frame(cx) {
                    Poll::Ready(polled) => {
                        patience.moved();
                        polled.map(|frame| frame.map_err(AnswerError::from))
                    }
                    Poll::Pending => {
                        ready!(patience.poll_over(cx));
                        Some(Err(AnswerError::Stood(patience.limit())))
                    }
                },
            };
            match polled {
                None => {
                    self.finish(End::Whole);
                    return Poll::Ready(None);
                }
                Some(Err(error)) => {
                    self.finish(End::UpstreamFailed);
                    return Poll::Ready(Some(Err(error)));
                }
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.passed += data.len() as u64;
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inner::Ours(bytes) => bytes.is_empty(),
            Inner::Upstream { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Ours(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Inner::Upstream { body, .. } => body.size_hint(),
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        // hyper drops a body of known length after its last byte, without asking for the end.
        let end = if self.is_end_stream() {
            End::Whole
        } else {
            End::ClientGone
        };
        self.finish(end);
    }
}
