//! User id to shard. Frozen: `vectors/` holds the answers for other languages, and data lies where
//! these functions said it would.

use atoll_topology::{ShardId, ShardScheme, UserId};
use thiserror::Error;
use xxhash_rust::xxh64::xxh64;

/// Why a user id has no shard.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NoShard {
    /// The `digits` scheme needs a digit.
    #[error("user id {0} has no digit: scheme digits cannot place it")]
    NoDigit(UserId),
    /// The number of shards does not fit the scheme: the table is wrong.
    #[error("user id {user} belongs to shard {shard}, but there are {shards} shards")]
    Beyond {
        /// Whose.
        user: UserId,
        /// The shard that the scheme names.
        shard: u16,
        /// How many there are.
        shards: u16,
    },
}

/// The shard of a user.
///
/// - `digits`: the third- and second-last digit of the id's digits, whatever stands between them;
///   fewer than three digits are padded with zeros on the left. (The last digit is left out: it is
///   often a check digit.)
/// - `hash`: XXH64 with seed 0 of the id's bytes, modulo `shards`.
pub fn shard_of(scheme: ShardScheme, shards: u16, user: &UserId) -> Result<ShardId, NoShard> {
    let beyond = |shard| NoShard::Beyond {
        user: user.clone(),
        shard,
        shards,
    };
    match scheme {
        ShardScheme::Digits => {
            let mut last = user.as_str().bytes().rev().filter(u8::is_ascii_digit);
            if last.next().is_none() {
                return Err(NoShard::NoDigit(user.clone()));
            }
            let mut digit = || last.next().map_or(0, |digit| u16::from(digit - b'0'));
            let (second, third) = (digit(), digit());
            let shard = 10 * third + second;
            if shard < shards {
                Ok(ShardId(shard))
            } else {
                Err(beyond(shard))
            }
        }
        ShardScheme::Hash => {
            let hash = xxh64(user.as_str().as_bytes(), 0);
            // A remainder is less than `shards`, so the conversion always succeeds.
            let shard = hash
                .checked_rem(u64::from(shards))
                .and_then(|n| u16::try_from(n).ok());
            shard.map(ShardId).ok_or_else(|| beyond(0))
        }
    }
}
