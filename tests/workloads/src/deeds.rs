//! What a client does to its key, as SQL, and what the answers mean.

use rand::RngExt as _;
use rand::rngs::StdRng;
use tokio_postgres::{SimpleQueryMessage, SimpleQueryRow};

use crate::history::{Deed, Owner};

/// Elements that are read again although they were read before.
const OVERLAP: i64 = 3;

/// A user, who has one list and one register.
#[derive(Debug, Clone)]
pub(crate) struct Key {
    pub(crate) name: String,
    pub(crate) shard: u16,
}

impl Key {
    /// A user of that shard, in a world whose shards are numbered by the digits of ids.
    pub(crate) fn of_shard(shard: u16) -> Self {
        Self {
            name: format!("w9{shard:02}0"),
            shard,
        }
    }
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wish {
    Append {
        element: i64,
    },
    Count,
    /// From this position on.
    ReadList {
        from: i64,
    },
    ReadRegister,
}

impl Wish {
    /// Two of three are writes.
    pub(crate) fn draw(chance: &mut StdRng, element: i64, known: i64) -> Self {
        match chance.random_range(0..6_u32) {
            0 | 1 => Self::Append { element },
            2 | 3 => Self::Count,
            4 => Self::ReadList {
                from: known - OVERLAP,
            },
            _ => Self::ReadRegister,
        }
    }

    pub(crate) fn is_write(self) -> bool {
        matches!(self, Self::Append { .. } | Self::Count)
    }

    /// The comment says whose data is meant. A write says under whom it was done.
    pub(crate) fn sql(self, key: &Key) -> String {
        let Key { name, shard } = key;
        let owned = |write: &str| {
            format!(
                "/*key={name}*/ WITH done AS ({write}) SELECT done.number, owner.epoch, \
                 (SELECT max(term) FROM atoll.term) FROM done, atoll.shard_owner AS owner \
                 WHERE owner.shard = {shard}"
            )
        };
        match self {
            Self::Append { element } => owned(&format!(
                "INSERT INTO lists (key, position, element) \
                 SELECT '{name}', coalesce(max(position), 0) + 1, {element} FROM lists \
                 WHERE key = '{name}' RETURNING position AS number"
            )),
            Self::Count => owned(&format!(
                "INSERT INTO registers (key, version) VALUES ('{name}', 1) \
                 ON CONFLICT (key) DO UPDATE SET version = registers.version + 1 \
                 RETURNING version AS number"
            )),
            Self::ReadList { from } => format!(
                "/*key={name}*/ SELECT position, element FROM lists \
                 WHERE key = '{name}' AND position >= {from} ORDER BY position"
            ),
            Self::ReadRegister => format!(
                "/*key={name}*/ SELECT coalesce(max(version), 0) FROM registers \
                 WHERE key = '{name}'"
            ),
        }
    }

    /// The deed without an answer.
    pub(crate) fn unanswered(self) -> Deed {
        match self {
            Self::Append { element } => Deed::Append { element, at: None },
            Self::Count => Deed::Count { version: None },
            Self::ReadList { .. } => Deed::ReadList { tail: Vec::new() },
            Self::ReadRegister => Deed::ReadRegister { version: 0 },
        }
    }

    /// The deed with its answer; none: the answer is not what it should be.
    pub(crate) fn answered(self, answer: &[SimpleQueryMessage]) -> Option<(Deed, Option<Owner>)> {
        let rows: Vec<&SimpleQueryRow> = answer
            .iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => Some(row),
                _ => None,
            })
            .collect();
        let written = || {
            let row = rows.first()?;
            let (epoch, term) = (number(row, 1)?, number(row, 2)?);
            Some((number(row, 0)?, Some(Owner { epoch, term })))
        };
        match self {
            Self::Append { element } => {
                let (at, owner) = written()?;
                let at = Some(at);
                Some((Deed::Append { element, at }, owner))
            }
            Self::Count => {
                let (version, owner) = written()?;
                let version = Some(version);
                Some((Deed::Count { version }, owner))
            }
            Self::ReadList { .. } => {
                let pairs = rows
                    .iter()
                    .map(|row| Some((number(row, 0)?, number(row, 1)?)));
                let tail = pairs.collect::<Option<_>>()?;
                Some((Deed::ReadList { tail }, None))
            }
            Self::ReadRegister => {
                let version = number(rows.first()?, 0)?;
                Some((Deed::ReadRegister { version }, None))
            }
        }
    }
}

fn number(row: &SimpleQueryRow, column: usize) -> Option<i64> {
    row.get(column)?.parse().ok()
}
