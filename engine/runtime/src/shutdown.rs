//! The one order to end, which everything in a process can wait for.

use tokio_util::sync::CancellationToken;

/// A cheap handle on the process's end. Once requested it stays requested.
#[derive(Debug, Clone, Default)]
pub struct Shutdown(CancellationToken);

impl Shutdown {
    /// Waits until somebody asks for the end.
    pub async fn requested(&self) {
        self.0.cancelled().await;
    }

    /// As [`Shutdown::requested`], for places that need a `'static` future.
    pub fn requested_owned(&self) -> impl Future<Output = ()> + Send + 'static {
        self.0.clone().cancelled_owned()
    }

    /// Whether the end was asked for.
    pub fn is_requested(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Asks for the end.
    pub fn request(&self) {
        self.0.cancel();
    }
}
