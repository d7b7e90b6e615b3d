//! A small file that is read again whenever it changes.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use tracing::warn;

/// How often the file is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Ends the looking when it is dropped.
#[derive(Debug)]
pub(crate) struct Follower {
    _keep: mpsc::SyncSender<()>,
}

/// Tells `take` what the file holds (nothing: there is none) before it returns, and then after each
/// change.
pub(crate) fn follow(
    name: &'static str,
    path: &Path,
    mut take: impl FnMut(Option<io::Result<Vec<u8>>>) + Send + 'static,
) -> Follower {
    let mut file = Polled {
        path: path.to_owned(),
        seen: Seen::Never,
    };
    file.poll(&mut take);
    let (keep, ended) = mpsc::sync_channel::<()>(0);
    // A thread, because the services run several async runtimes and this belongs to none.
    let thread = std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            while ended.recv_timeout(POLL_INTERVAL) == Err(mpsc::RecvTimeoutError::Timeout) {
                file.poll(&mut take);
            }
        });
    if let Err(error) = thread {
        warn!(%error, path = %path.display(), "read once only: no thread to poll it");
    }
    Follower { _keep: keep }
}

/// A file and what was last seen of it.
struct Polled {
    path: PathBuf,
    seen: Seen,
}

/// What the last look at the file found.
#[derive(PartialEq)]
enum Seen {
    Never,
    Missing,
    File(Stamp),
}

/// Device, inode, size, and change time: a rename or a write changes one of them.
type Stamp = (u64, u64, u64, i64, i64);

impl Polled {
    fn poll(&mut self, take: &mut impl FnMut(Option<io::Result<Vec<u8>>>)) {
        let found = fs::metadata(&self.path).map_or(Seen::Missing, |meta| {
            let change = (meta.ctime(), meta.ctime_nsec());
            Seen::File((meta.dev(), meta.ino(), meta.size(), change.0, change.1))
        });
        if self.seen == found {
            return;
        }
        let content = matches!(found, Seen::File(_)).then(|| fs::read(&self.path));
        self.seen = found;
        take(content);
    }
}
