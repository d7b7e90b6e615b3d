//! Copies a data directory, durably, without holding up the other tasks.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tokio::sync::oneshot;

use crate::layout::mode;
use crate::{Account, Error};

/// Copies all of `from` to `to`, gives it to `account` and syncs the file system.
pub(crate) async fn copy_tree(
    from: PathBuf,
    to: PathBuf,
    account: Option<Account>,
) -> Result<(), Error> {
    let (sender, done) = oneshot::channel();
    let work = move || {
        let result = copy(&from, &to, account).and_then(|()| sync(&to));
        drop(sender.send(result));
    };
    std::thread::Builder::new()
        .name("postgres-copy".into())
        .spawn(work)
        .map_err(Error::file("start a thread to copy to", "pg"))?;
    done.await
        .unwrap_or_else(|_| Err(Error::Rule("the copying thread is gone".into())))
}

fn copy(from: &Path, to: &Path, account: Option<Account>) -> Result<(), Error> {
    fs::create_dir(to).map_err(Error::file("create", to))?;
    mode(to, 0o700)?;
    for entry in fs::read_dir(from).map_err(Error::file("list", from))? {
        let entry = entry.map_err(Error::file("list", from))?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().map_err(Error::file("look at", &source))?;
        if kind.is_dir() {
            copy(&source, &target, account)?;
        } else {
            fs::copy(&source, &target).map_err(Error::file("copy", &source))?;
            give(&target, account)?;
        }
    }
    give(to, account)
}

fn give(path: &Path, account: Option<Account>) -> Result<(), Error> {
    account.map_or(Ok(()), |account| account.give(path))
}

/// One call for the whole file system instead of one for each of a thousand files.
fn sync(path: &Path) -> Result<(), Error> {
    let folder = fs::File::open(path).map_err(Error::file("open", path))?;
    nix::unistd::syncfs(&folder)
        .map_err(|errno| Error::file("sync the file system of", path)(io::Error::from(errno)))
}
