//! Carries bytes both ways until an end closes or the relay is cut.

use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Relays under way; whoever cuts them waits until their sockets are closed.
#[derive(Clone)]
pub(crate) struct Running {
    count: watch::Sender<usize>,
}

/// One relay under way.
pub(crate) struct Run(watch::Sender<usize>);

impl Running {
    pub(crate) fn new() -> Self {
        Self {
            count: watch::Sender::new(0),
        }
    }

    pub(crate) fn begin(&self) -> Run {
        self.count.send_modify(|count| *count += 1);
        Run(self.count.clone())
    }

    /// Waits until `enough` says so.
    pub(crate) async fn until(&self, enough: impl FnMut(&usize) -> bool) {
        // We hold a sender, so the channel cannot close.
        self.count.subscribe().wait_for(enough).await.ok();
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// Relays until one end closes or `cut`; both sockets are closed before `run` ends.
pub(crate) async fn relay<A, B>(mut a: A, mut b: B, cut: &CancellationToken, run: Run)
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    tokio::select! {
        // Whichever end fails: the other end sees its connection close.
        _ = copy_bidirectional(&mut a, &mut b) => {}
        () = cut.cancelled() => {}
    }
    drop((a, b));
    drop(run);
}
