//! Who is the user, and which shard is that.
//!
//! The most particular word wins: the statement's comment, then `SET LOCAL`, then `SET`, then the
//! startup options. So a setting behaves as PostgreSQL's settings do.

use atoll_pgwire::frontend::Bind;
use atoll_pgwire::hint::{Hint, Scope, key_value};
use atoll_routing::{Table, shard_of};
use atoll_topology::{ShardId, UserId};

use crate::error::Refusal;

/// The keys that a session has been given.
#[derive(Debug, Clone, Default)]
pub(crate) struct Keys {
    startup: Option<UserId>,
    session: Option<UserId>,
    pending: Pending,
    local: Option<UserId>,
}

/// A key set in the transaction in progress: for the session, if it commits.
#[derive(Debug, Clone, Default)]
enum Pending {
    #[default]
    Nothing,
    Key(Option<UserId>),
}

impl Keys {
    pub(crate) fn at_startup(key: Option<UserId>) -> Self {
        Self {
            startup: key.clone(),
            session: key,
            ..Self::default()
        }
    }

    /// The key in force.
    pub(crate) fn current(&self) -> Option<&UserId> {
        let session = match &self.pending {
            Pending::Nothing => &self.session,
            Pending::Key(key) => key,
        };
        self.local.as_ref().or(session.as_ref())
    }

    /// `SET [LOCAL] atoll.key`, within a transaction; without a key it is taken back.
    pub(crate) fn set_in_transaction(&mut self, scope: Scope, key: Option<UserId>) {
        match scope {
            Scope::Transaction => self.local = key,
            Scope::Session => {
                self.local = None;
                self.pending = Pending::Key(key.or_else(|| self.startup.clone()));
            }
        }
    }

    /// `SET atoll.key`, outside of a transaction; without a key it is taken back.
    pub(crate) fn set(&mut self, key: Option<UserId>) {
        self.session = key.or_else(|| self.startup.clone());
    }

    /// The transaction has ended.
    pub(crate) fn end_transaction(&mut self, committed: Committed) {
        self.local = None;
        if let Pending::Key(key) = std::mem::take(&mut self.pending)
            && committed == Committed::Yes
        {
            self.session = key;
        }
    }

    /// Back to what the startup options said.
    pub(crate) fn reset(&mut self) {
        *self = Self::at_startup(self.startup.take());
    }
}

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Committed {
    Yes,
    No,
}

/// Reads a key as a user id.
pub(crate) fn user(text: &str) -> Result<UserId, Refusal> {
    UserId::parse(text).map_err(Refusal::from)
}

/// The user whom a comment names; with `bind` the value of its parameter is at hand.
pub(crate) fn hinted(
    hint: Option<&Hint>,
    bind: Option<(&Bind, &[u32])>,
) -> Result<Option<UserId>, Refusal> {
    match (hint, bind) {
        (Some(Hint::Key(key)), _) => user(key).map(Some),
        (Some(Hint::Parameter(number)), Some((bind, types))) => {
            let value = bind.value(*number)?;
            let oid = types.get(usize::from(*number) - 1).copied().unwrap_or(0);
            let key = value.and_then(|value| key_value(&value, oid));
            user(&key.ok_or(Refusal::KeyParameter(*number))?).map(Some)
        }
        (Some(Hint::Parameter(number)), None) => Err(Refusal::KeyParameter(*number)),
        (None, _) => Ok(None),
    }
}

/// The user's shard.
pub(crate) fn shard(table: &Table, user: &UserId) -> Result<ShardId, Refusal> {
    let shards = u16::try_from(table.shards.len()).unwrap_or(u16::MAX);
    shard_of(table.scheme, shards, user).map_err(|error| Refusal::BadKey {
        text: user.to_string(),
        rule: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> UserId {
        user(text).expect("user id")
    }

    #[test]
    fn the_key_in_force_is_the_most_particular_one() {
        let mut keys = Keys::at_startup(Some(id("1")));
        assert_eq!(keys.current(), Some(&id("1")));
        keys.set(Some(id("2")));
        assert_eq!(keys.current(), Some(&id("2")));
        keys.set_in_transaction(Scope::Session, Some(id("3")));
        keys.set_in_transaction(Scope::Transaction, Some(id("4")));
        assert_eq!(keys.current(), Some(&id("4")));
        keys.end_transaction(Committed::No);
        assert_eq!(keys.current(), Some(&id("2")));
        keys.set_in_transaction(Scope::Session, Some(id("3")));
        keys.end_transaction(Committed::Yes);
        assert_eq!(keys.current(), Some(&id("3")));
        keys.reset();
        assert_eq!(keys.current(), Some(&id("1")));
    }
}
