//! Who the users are: the same number in every shard, spread over all cities.

use std::fmt;
use std::str::FromStr;

use anyhow::bail;

/// What every account is opened with, in cents: nobody runs out of it.
pub(super) const OPENED: i64 = 100_000_000;

/// Most shards of a hash scheme.
const SHARDS_MAX: u16 = 16_384;

/// How a user id becomes a shard. Written again here, from the documents, because the oracle must
/// not share code with what it judges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Third- and second-last digit; 100 shards.
    Digits,
    /// XXH64 of the id, modulo the number of shards.
    Hash(u16),
}

impl Scheme {
    pub(super) fn hash(shards: u16) -> anyhow::Result<Self> {
        if (1..=SHARDS_MAX).contains(&shards) {
            Ok(Self::Hash(shards))
        } else {
            bail!("a hash scheme has 1 to {SHARDS_MAX} shards, not {shards}")
        }
    }

    pub(super) fn shards(self) -> u16 {
        match self {
            Self::Digits => 100,
            Self::Hash(shards) => shards,
        }
    }

    fn shard(self, id: &str) -> Option<u16> {
        match self {
            Self::Digits => {
                let digits: Vec<u16> = id
                    .bytes()
                    .filter(u8::is_ascii_digit)
                    .map(|b| u16::from(b - b'0'))
                    .collect();
                let from_end = |n: usize| digits.len().checked_sub(n).map_or(0, |at| digits[at]);
                (!digits.is_empty()).then(|| from_end(3) * 10 + from_end(2))
            }
            Self::Hash(shards) => {
                let hash = xxhash_rust::xxh64::xxh64(id.as_bytes(), 0);
                u16::try_from(hash % u64::from(shards)).ok()
            }
        }
    }
}

impl FromStr for Scheme {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let hash = text.strip_prefix("hash:").and_then(|n| n.parse().ok());
        match (text, hash) {
            ("digits", _) => Ok(Self::Digits),
            (_, Some(shards)) => Self::hash(shards).map_err(|e| e.to_string()),
            _ => Err("expected `digits` or `hash:N`".into()),
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Digits => f.write_str("digits"),
            Self::Hash(shards) => write!(f, "hash:{shards}"),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct User {
    pub(super) id: String,
    pub(super) shard: u16,
    /// Home city, as an index.
    pub(super) region: u16,
}

/// All users, those of a shard side by side.
#[derive(Debug)]
pub(super) struct Users {
    all: Vec<User>,
    per_shard: usize,
}

impl Users {
    pub(super) fn new(scheme: Scheme, per_shard: u16, regions: &[String]) -> anyhow::Result<Self> {
        let regions = u16::try_from(regions.len())?;
        let per_shard = usize::from(per_shard);
        let mut by_shard = vec![Vec::with_capacity(per_shard); usize::from(scheme.shards())];
        let mut missing = by_shard.len() * per_shard;
        // From 1000 on, so that every id has the digits that count.
        for number in 1000_u64.. {
            if missing == 0 {
                break;
            }
            let id = number.to_string();
            let Some(shard) = scheme.shard(&id) else {
                bail!("{id} has no shard")
            };
            let mine = &mut by_shard[usize::from(shard)];
            if mine.len() < per_shard {
                // Turns with the shard, so that every city has users of every shard in the end.
                let region = (u16::try_from(mine.len())? + shard) % regions;
                mine.push(User { id, shard, region });
                missing -= 1;
            }
        }
        Ok(Self {
            all: by_shard.into_iter().flatten().collect(),
            per_shard,
        })
    }

    pub(super) fn all(&self) -> &[User] {
        &self.all
    }

    pub(super) fn shards(&self) -> Vec<u16> {
        self.all
            .iter()
            .step_by(self.per_shard)
            .map(|user| user.shard)
            .collect()
    }

    /// The users of the shard that `user` (an index) is in.
    pub(super) fn neighbours(&self, user: usize) -> &[User] {
        let first = user / self.per_shard * self.per_shard;
        &self.all[first..first + self.per_shard]
    }
}

/// A prefix that no other run has: the time in base 36.
pub(super) fn run_id(now_unix_ms: u64) -> String {
    let mut rest = now_unix_ms;
    let mut letters = Vec::new();
    while rest > 0 {
        let digit = u32::try_from(rest % 36).unwrap_or(0);
        letters.extend(char::from_digit(digit, 36));
        rest /= 36;
    }
    letters.iter().rev().chain(&['-']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shard_has_its_users_and_every_city_too() {
        let regions = ["a".to_owned(), "b".to_owned(), "c".to_owned()];
        for scheme in [Scheme::Digits, Scheme::Hash(32)] {
            let users = Users::new(scheme, 6, &regions).unwrap();
            assert_eq!(users.all().len(), usize::from(scheme.shards()) * 6);
            assert_eq!(users.shards(), (0..scheme.shards()).collect::<Vec<_>>());
            for (index, user) in users.all().iter().enumerate() {
                assert_eq!(scheme.shard(&user.id), Some(user.shard));
                assert!(users.neighbours(index).contains(user));
                assert!(
                    users
                        .neighbours(index)
                        .iter()
                        .all(|n| n.shard == user.shard)
                );
            }
            let in_city = |n: u16| users.all().iter().filter(|u| u.region == n).count();
            assert_eq!((in_city(0), in_city(1)), (in_city(1), in_city(2)));
        }
    }

    #[test]
    fn digits_are_counted_from_the_end() {
        assert_eq!(Scheme::Digits.shard("user-98717"), Some(71));
        assert_eq!(Scheme::Digits.shard("7"), Some(0));
        assert_eq!(Scheme::Digits.shard("42"), Some(4));
        assert_eq!(Scheme::Digits.shard("none"), None);
    }

    #[test]
    fn later_runs_have_greater_ids() {
        assert_eq!(run_id(36 * 36 + 35), "10z-");
    }
}
