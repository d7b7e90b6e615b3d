//! Intent that comes in: resources over HTTP.

pub mod resources;

use std::net::SocketAddr;
use std::sync::Arc;

use crate::app::Control;
use crate::error::Error;

/// Serves the resources; gives the address that it listens on.
pub async fn listen(control: Arc<Control>, at: SocketAddr) -> Result<SocketAddr, Error> {
    let listener =
        control.runtime.listen(at).await.map_err(|source| Error::Listen { at, source })?;
    Ok(listener.local_addr())
}
