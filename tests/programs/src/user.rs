//! The user that PostgreSQL runs as: it refuses to be root.

use anyhow::{Context, Result};
use nix::unistd::User as Account;

/// An account of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Its name.
    pub name: String,
    /// Its user number.
    pub uid: u32,
    /// Its group's number.
    pub gid: u32,
}

/// Whom a program that must not be root is to run as: `None` where we are not root ourselves;
/// else `postgres`, or `nobody` where there is no such account.
pub fn unprivileged_user() -> Result<Option<User>> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(None);
    }
    for name in ["postgres", "nobody"] {
        if let Some(found) = Account::from_name(name).context("the accounts cannot be read")? {
            let (uid, gid) = (found.uid.as_raw(), found.gid.as_raw());
            return Ok(Some(User {
                name: found.name,
                uid,
                gid,
            }));
        }
    }
    anyhow::bail!("this machine has neither an account `postgres` nor `nobody`; add one of them")
}
