//! The two numbers that only grow, and the one comparison that orders them.
//!
//! Neither has a public `Ord`: code outside this module asks `supersedes`, so that every place
//! where the age of an ownership decides something can be found by one word.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $type:ident, $letter:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $type(u64);

        impl $type {
            /// Before the first one: nothing carries it but an empty state.
            pub const ZERO: Self = Self(0);

            /// From a number read from a record, a log or a message.
            pub const fn new(number: u64) -> Self {
                Self(number)
            }

            /// The plain number, for records, logs and messages; never to be compared.
            pub const fn get(self) -> u64 {
                self.0
            }

            /// The next one.
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }

            /// Whether this one is newer than `other`.
            pub const fn supersedes(self, other: Self) -> bool {
                self.0 > other.0
            }

            /// The newer of the two.
            pub const fn newest(self, other: Self) -> Self {
                if other.supersedes(self) { other } else { self }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($letter, "{}"), self.0)
            }
        }
    };
}

number!(
    /// Names one ownership of one shard by one cell.
    Epoch, "e"
);
number!(
    /// Names one primaryship of a data group; equals PostgreSQL's timeline id where that
    /// primaryship began with a promotion.
    Term, "t"
);

/// A place in a write-ahead log, in bytes; PostgreSQL's LSN.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for Lsn {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not an LSN (two hexadecimal numbers, as in 0/16B3748)");
        let (high, low) = text.split_once('/').ok_or_else(wrong)?;
        let high = u32::from_str_radix(high, 16).map_err(|_| wrong())?;
        let low = u32::from_str_radix(low, 16).map_err(|_| wrong())?;
        Ok(Self(u64::from(high) << 32 | u64::from(low)))
    }
}

/// How far a member's log goes: the term of its last term row first, the LSN second.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Position {
    /// Term of the last term row in the log.
    pub term: Term,
    /// End of the log.
    pub lsn: Lsn,
}

impl Position {
    /// Whether this log goes further than `other`.
    pub fn ahead_of(self, other: Self) -> bool {
        self.term.supersedes(other.term) || self.term == other.term && self.lsn > other.lsn
    }
}
