//! Carries bytes both ways until an end closes or the relay is cut.

use std::collections::BTreeMap;
use std::io;

use atoll_topology::{MemberId, Term};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
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

/// What is relayed in one piece.
pub(crate) const PIECE_BYTES: usize = 64 * 1024;

/// A standby's promise stands behind every byte of its link.
pub(crate) struct Consent {
    pub(crate) standby: MemberId,
    /// The promise that it came with.
    pub(crate) greeted: Term,
    /// What members are known to have promised since.
    pub(crate) promised: watch::Receiver<BTreeMap<MemberId, Term>>,
    /// What is needed for anything to pass.
    pub(crate) needed: watch::Receiver<Term>,
}

impl Consent {
    /// Waits until it is there.
    pub(crate) async fn given(&self) {
        let (mut needed, mut promised) = (self.needed.clone(), self.promised.clone());
        loop {
            let since = promised.borrow_and_update().get(&self.standby).copied();
            let known = since.map_or(self.greeted, |since| since.newest(self.greeted));
            if !needed.borrow_and_update().supersedes(known) {
                return;
            }
            // Both senders live as long as the agent.
            tokio::select! {
                _ = needed.changed() => {}
                _ = promised.changed() => {}
            }
        }
    }
}

/// Relays until one end closes or `cut`; each piece waits for the consent, where there is one. Both
/// sockets are closed before `run` ends.
pub(crate) async fn relay<A, B>(
    a: A,
    b: B,
    cut: &CancellationToken,
    run: Run,
    consent: Option<&Consent>,
) where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (from_a, to_a) = split(a);
    let (from_b, to_b) = split(b);
    let both = async {
        tokio::select! {
            // Whichever end closes or fails: the other end sees its connection close.
            _ = carry(from_a, to_b, consent) => {}
            _ = carry(from_b, to_a, consent) => {}
        }
    };
    tokio::select! {
        () = both => {}
        () = cut.cancelled() => {}
    }
    drop(run);
}

async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    consent: Option<&Consent>,
) -> io::Result<()> {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let length = from.read(&mut piece).await?;
        if length == 0 {
            return to.flush().await;
        }
        if let Some(consent) = consent {
            consent.given().await;
        }
        to.write_all(&piece[..length]).await?;
    }
}
