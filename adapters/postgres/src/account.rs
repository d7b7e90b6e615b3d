//! As whom PostgreSQL runs: never as root.

use std::path::Path;

use nix::unistd::{Gid, Uid, User, chown};

use crate::Error;

/// The unprivileged account that a root agent gives its PostgreSQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    /// Its user id.
    pub uid: u32,
    /// Its group id.
    pub gid: u32,
}

impl Account {
    /// `postgres`, else `nobody`, when we are root; `None` when we are not: then PostgreSQL runs
    /// as ourselves.
    pub fn unprivileged() -> Result<Option<Self>, Error> {
        if !Uid::effective().is_root() {
            return Ok(None);
        }
        ["postgres", "nobody"]
            .iter()
            .find_map(|name| User::from_name(name).ok().flatten())
            .filter(|user| !user.uid.is_root())
            .map(|user| {
                Some(Self {
                    uid: user.uid.as_raw(),
                    gid: user.gid.as_raw(),
                })
            })
            .ok_or(Error::NoAccount)
    }

    /// Gives a file to this account.
    pub(crate) fn give(self, path: &Path) -> Result<(), Error> {
        chown(
            path,
            Some(Uid::from_raw(self.uid)),
            Some(Gid::from_raw(self.gid)),
        )
        .map_err(|errno| Error::file("give to the database account", path)(errno.into()))
    }
}
