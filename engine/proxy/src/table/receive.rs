//! What a receiver does with an update: take it, ignore it, or see that it has missed something.
//! Pure, so that every order of arrival can be tested.

use std::sync::Arc;

use atoll_routing::TableVersion;
use atoll_streams::proto::table::{Beat, TableUpdate, table_update::Update};
use atoll_streams::{EncodedTable, UpdateError};

/// What an update means to a receiver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// A newer table.
    Taken(Arc<EncodedTable>),
    /// The source lives and holds what we hold; `age_ms` ago control said so.
    Current {
        /// As the source says.
        age_ms: u64,
    },
    /// What we hold already, again.
    Duplicate,
    /// The source holds an older table of the same world, or another one of the same number:
    /// refused, for a receiver never goes back.
    Refused {
        /// What the source has; none: nothing yet.
        theirs: Option<TableVersion>,
    },
    /// Something is missing or broken: ask for a snapshot.
    Gap(Gap),
}

/// Why a snapshot is needed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Gap {
    /// The update cannot be used.
    #[error(transparent)]
    Update(#[from] UpdateError),
    /// A delta came before any snapshot.
    #[error("a delta came, and there is no table to apply it to")]
    NoBase,
    /// The source has a table that it never sent here.
    #[error("the source holds {theirs}, and did not send it")]
    Missed {
        /// What it holds.
        theirs: TableVersion,
    },
    /// The message is empty, or of a kind that this version does not know and cannot skip.
    #[error("the update is empty")]
    Empty,
}

/// Judges one update against what is held.
pub fn receive(held: Option<&Arc<EncodedTable>>, update: TableUpdate) -> Received {
    let taken = match update.update {
        None => return Received::Gap(Gap::Empty),
        Some(Update::Beat(beat)) => return beaten(held, &beat),
        Some(Update::Snapshot(snapshot)) => EncodedTable::from_snapshot(snapshot),
        Some(Update::Delta(delta)) => {
            let Some(held) = held else {
                return Received::Gap(Gap::NoBase);
            };
            let version = delta.version.clone().map(|version| TableVersion {
                world: version.world,
                number: version.number,
            });
            // An old delta is no gap: its base is older still.
            if let Some(version) = version
                && !version.supersedes(held.version())
            {
                return not_newer(held, version, delta.hash);
            }
            held.apply(delta)
        }
    };
    match taken {
        Err(error) => Received::Gap(error.into()),
        Ok(table) => match held {
            Some(held) if !table.version().supersedes(held.version()) => {
                not_newer(held, table.version().clone(), table.hash())
            }
            _ => Received::Taken(Arc::new(table)),
        },
    }
}

fn not_newer(held: &EncodedTable, theirs: TableVersion, hash: u64) -> Received {
    if theirs == *held.version() && hash == held.hash() {
        Received::Duplicate
    } else {
        Received::Refused {
            theirs: Some(theirs),
        }
    }
}

fn beaten(held: Option<&Arc<EncodedTable>>, beat: &Beat) -> Received {
    let theirs = match beat.held() {
        Ok(theirs) => theirs,
        Err(error) => return Received::Gap(UpdateError::from(error).into()),
    };
    match (held, theirs) {
        (None, None) => Received::Duplicate,
        (Some(_), None) => Received::Refused { theirs: None },
        (None, Some(theirs)) => Received::Gap(Gap::Missed { theirs }),
        (Some(held), Some(theirs)) if theirs.supersedes(held.version()) => {
            Received::Gap(Gap::Missed { theirs })
        }
        (Some(held), Some(theirs)) if theirs == *held.version() && beat.hash == held.hash() => {
            Received::Current {
                age_ms: beat.age_ms,
            }
        }
        (Some(_), Some(theirs)) => Received::Refused {
            theirs: Some(theirs),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn table(world: &str, number: u64, text: &str) -> Arc<EncodedTable> {
        let version = TableVersion {
            world: world.into(),
            number,
        };
        let entries = BTreeMap::from([("scheme".to_owned(), text.to_owned().into())]);
        Arc::new(EncodedTable::new(version, entries))
    }

    fn snapshot(of: &EncodedTable) -> TableUpdate {
        of.to_snapshot().into()
    }

    fn delta(from: &EncodedTable, to: &EncodedTable) -> TableUpdate {
        to.diff(from).into()
    }

    fn beat(of: &EncodedTable) -> TableUpdate {
        Beat::of(Some(of), 0, 7).into()
    }

    #[test]
    fn a_newer_table_is_taken_and_an_older_one_never() {
        let (one, two) = (table("w", 1, "a"), table("w", 2, "b"));
        assert_eq!(receive(None, snapshot(&one)), Received::Taken(one.clone()));
        assert_eq!(
            receive(Some(&one), snapshot(&two)),
            Received::Taken(two.clone())
        );
        assert_eq!(
            receive(Some(&one), delta(&one, &two)),
            Received::Taken(two.clone())
        );
        let refused = Received::Refused {
            theirs: Some(one.version().clone()),
        };
        assert_eq!(receive(Some(&two), snapshot(&one)), refused);
        assert_eq!(
            receive(Some(&two), delta(&table("w", 0, ""), &one)),
            refused
        );
        assert_eq!(receive(Some(&two), beat(&one)), refused);
    }

    #[test]
    fn what_comes_twice_or_out_of_order_changes_nothing() {
        let tables: Vec<_> = (1..=3).map(|n| table("w", n, &n.to_string())).collect();
        let [one, two, three] = tables.as_slice() else {
            unreachable!()
        };
        assert_eq!(receive(Some(two), snapshot(two)), Received::Duplicate);
        assert_eq!(receive(Some(two), delta(one, two)), Received::Duplicate);
        // 2→3 before 1→2: a gap; then 1→2 and 2→3 again are taken in their order.
        let reordered = receive(Some(one), delta(two, three));
        assert!(matches!(
            reordered,
            Received::Gap(Gap::Update(UpdateError::OtherBase { .. }))
        ));
        assert_eq!(
            receive(Some(one), delta(one, two)),
            Received::Taken(two.clone())
        );
        assert_eq!(
            receive(Some(two), delta(two, three)),
            Received::Taken(three.clone())
        );
        assert!(matches!(
            receive(Some(three), delta(one, two)),
            Received::Refused { .. }
        ));
    }

    #[test]
    fn a_gap_asks_for_a_snapshot() {
        let (one, two) = (table("w", 1, "a"), table("w", 2, "b"));
        assert_eq!(receive(None, delta(&one, &two)), Received::Gap(Gap::NoBase));
        let missed = Received::Gap(Gap::Missed {
            theirs: two.version().clone(),
        });
        assert_eq!(receive(Some(&one), beat(&two)), missed);
        assert_eq!(receive(None, beat(&two)), missed);
        assert_eq!(
            receive(None, TableUpdate::default()),
            Received::Gap(Gap::Empty)
        );
        let mut broken = two.to_snapshot();
        broken.hash += 1;
        let broken = receive(Some(&one), broken.into());
        assert!(matches!(
            broken,
            Received::Gap(Gap::Update(UpdateError::Hash { .. }))
        ));
    }

    #[test]
    fn another_table_of_the_same_number_is_refused() {
        let (ours, theirs) = (table("w", 1, "a"), table("w", 1, "b"));
        let refused = Received::Refused {
            theirs: Some(theirs.version().clone()),
        };
        assert_eq!(receive(Some(&ours), snapshot(&theirs)), refused);
        assert_eq!(receive(Some(&ours), beat(&theirs)), refused);
        assert_eq!(
            receive(Some(&ours), beat(&ours)),
            Received::Current { age_ms: 7 }
        );
    }

    #[test]
    fn another_world_is_taken_whatever_its_number() {
        let (old, new) = (table("w", 9, "a"), table("x", 1, "b"));
        assert_eq!(
            receive(Some(&old), snapshot(&new)),
            Received::Taken(new.clone())
        );
        assert_eq!(receive(Some(&old), delta(&old, &new)), Received::Taken(new));
    }
}
