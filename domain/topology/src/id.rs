//! Identifiers: parsed once at the edge, trusted everywhere after.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Why a text is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{what} {text:?} is not valid: {rule}")]
pub struct InvalidId {
    /// What was expected: `cell id`, `user id`, …
    pub what: &'static str,
    /// The text as given.
    pub text: String,
    /// The rule that it breaks.
    pub rule: &'static str,
}

const NAME_RULE: &str =
    "1 to 40 of a-z, 0-9 and '-', starting with a letter ([a-z][a-z0-9-]{0,39})";

fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_lowercase())
        && text.len() <= 40
        && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

// Shared text: a name is copied with every message and never changes.
macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(Arc<str>);

        impl $type {
            /// Checks the text: `[a-z][a-z0-9-]{0,39}`.
            pub fn parse(text: impl Into<String>) -> Result<Self, InvalidId> {
                let text = text.into();
                if is_name(&text) {
                    Ok(Self(text.into()))
                } else {
                    Err(InvalidId { what: $what, text, rule: NAME_RULE })
                }
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $type {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                Self::parse(text)
            }
        }

        impl FromStr for $type {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Self::parse(text)
            }
        }

        impl From<$type> for String {
            fn from(id: $type) -> String {
                id.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// A region: a city.
    RegionId, "region id"
);
name!(
    /// A zone: one data centre of a region.
    ZoneId, "zone id"
);
name!(
    /// A cluster: a pool of compute in a zone.
    ClusterId, "cluster id"
);
name!(
    /// A cell: a self-contained unit that serves a share of the users.
    CellId, "cell id"
);
name!(
    /// A data group: one PostgreSQL primary and its replicas.
    GroupId, "data group id"
);
name!(
    /// A member of a data group, named `<group>-<n>`, n from 1.
    MemberId, "member id"
);
name!(
    /// A process of a world, named `<cell or group>-<role>[-<n>]`.
    ProcessId, "process id"
);

/// A shard: a numbered slice of the users, from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ShardId(pub u16);

impl ShardId {
    /// The schema that holds this shard in its group's database: `s00017`.
    pub fn schema(self) -> String {
        format!("s{:05}", self.0)
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Debug for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "shard {}", self.0)
    }
}

/// A user's id: 1 to 64 of `[0-9A-Za-z_.:@-]`, taken as it is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UserId(String);

impl UserId {
    /// Checks the text.
    pub fn parse(text: impl Into<String>) -> Result<Self, InvalidId> {
        let text = text.into();
        let legal = |b: u8| b.is_ascii_alphanumeric() || b"_.:@-".contains(&b);
        if (1..=64).contains(&text.len()) && text.bytes().all(legal) {
            Ok(Self(text))
        } else {
            let rule = "1 to 64 of 0-9, A-Z, a-z, '_', '.', ':', '@' and '-'";
            Err(InvalidId {
                what: "user id",
                text,
                rule,
            })
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for UserId {
    type Error = InvalidId;
    fn try_from(text: String) -> Result<Self, InvalidId> {
        Self::parse(text)
    }
}

impl From<UserId> for String {
    fn from(id: UserId) -> String {
        id.0
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
