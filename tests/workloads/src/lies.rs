//! Negative controls: each oracle is shown histories that cannot be, and must say so.

use std::collections::BTreeMap;

use crate::history::{Deed, Event, Fate, Final, History, Owner};
use crate::oracle::{Oracle, judge};

/// One lie, and whether it was found out by the oracle that should.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lie {
    /// What was wrong.
    pub name: &'static str,
    /// Whether somebody cried.
    pub caught: bool,
}

type Change = fn(&mut History);

/// What the events of [`truth`] are.
const FIRST: usize = 0;
const SECOND: usize = 1;
const READ: usize = 2;
const COUNTED_AGAIN: usize = 4;
const LOOKED: usize = 5;
const BY_NEXT_OWNER: usize = 6;

/// All lies; the truth itself must pass.
pub fn lies() -> Vec<Lie> {
    let all: [(&'static str, Oracle, Change); 15] = [
        ("an acknowledged element is missing", Oracle::Lists, |h| {
            last(h).list.pop();
        }),
        ("an element stands twice", Oracle::Lists, |h| {
            last(h).list.push((4, 11));
        }),
        ("two elements changed places", Oracle::Lists, |h| {
            last(h).list = vec![(1, 12), (2, 11), (3, 13)];
        }),
        ("an element that nobody appended", Oracle::Lists, |h| {
            last(h).list.push((4, 99));
        }),
        ("a failed append was executed", Oracle::Lists, |h| {
            last(h).list.push((4, 14));
        }),
        (
            "a later element was put before an acknowledged one",
            Oracle::Lists,
            |h| {
                let end = h.events[SECOND].end_us;
                h.events[FIRST].start_us = end + 1;
                h.events[FIRST].end_us = end + 2;
            },
        ),
        ("what was read was taken back", Oracle::Lists, |h| {
            h.events[READ].deed = Deed::ReadList {
                tail: vec![(1, 11), (2, 15)],
            };
        }),
        ("a session sees its list grow shorter", Oracle::Lists, |h| {
            h.events[READ].deed = Deed::ReadList {
                tail: vec![(1, 11)],
            };
        }),
        ("a key cannot be read at the end", Oracle::Lists, |h| {
            h.finals.clear();
        }),
        ("a version goes back in a session", Oracle::Registers, |h| {
            h.events[LOOKED].deed = Deed::ReadRegister { version: 1 };
        }),
        (
            "one version is acknowledged twice",
            Oracle::Registers,
            |h| {
                h.events[COUNTED_AGAIN].deed = Deed::Count { version: Some(1) };
            },
        ),
        ("an acknowledged version is lost", Oracle::Registers, |h| {
            last(h).version = 1;
        }),
        (
            "a register counts what nobody wrote",
            Oracle::Registers,
            |h| {
                last(h).version = 3;
            },
        ),
        ("two epochs acknowledge at one time", Oracle::Owners, |h| {
            h.events[BY_NEXT_OWNER].inside_us = h.events[FIRST].inside_us;
        }),
        (
            "a primary of an earlier term acknowledges once more",
            Oracle::Owners,
            |h| {
                h.events[BY_NEXT_OWNER].owner = Some(Owner { epoch: 1, term: 0 });
            },
        ),
    ];
    let mut told = vec![Lie {
        name: "the truth of lists, registers and owners passes",
        caught: judge(&truth()).is_empty(),
    }];
    told.extend(all.into_iter().map(|(name, oracle, change)| {
        let mut history = truth();
        change(&mut history);
        let caught = judge(&history).iter().any(|(by, _)| *by == oracle);
        Lie { name, caught }
    }));
    told
}

fn last(history: &mut History) -> &mut Final {
    history.finals.entry("k".to_owned()).or_default()
}

/// One key, one session; its shard changes hands before the last append.
fn truth() -> History {
    let first = Owner { epoch: 1, term: 1 };
    let next = Owner { epoch: 2, term: 2 };
    let append = |element, at| Deed::Append { element, at };
    let deeds = [
        (append(11, Some(1)), Fate::Acknowledged, Some(first)),
        (append(12, Some(2)), Fate::Acknowledged, Some(first)),
        (
            Deed::ReadList {
                tail: vec![(1, 11), (2, 12)],
            },
            Fate::Acknowledged,
            None,
        ),
        (
            Deed::Count { version: Some(1) },
            Fate::Acknowledged,
            Some(first),
        ),
        (
            Deed::Count { version: Some(2) },
            Fate::Acknowledged,
            Some(first),
        ),
        (Deed::ReadRegister { version: 2 }, Fate::Acknowledged, None),
        (append(13, Some(3)), Fate::Acknowledged, Some(next)),
        (append(14, None), Fate::Failed, None),
        (append(15, None), Fate::Unknown, None),
    ];
    let events: Vec<Event> = (0_u64..)
        .zip(deeds)
        .map(|(number, (deed, fate, owner))| Event {
            session: 1,
            shard: 0,
            key: "k".to_owned(),
            start_us: number * 100,
            inside_us: number * 100 + 10,
            commit_us: number * 100 + 20,
            end_us: number * 100 + 30,
            fate,
            owner,
            deed,
        })
        .collect();
    let end = Final {
        list: vec![(1, 11), (2, 12), (3, 13)],
        version: 2,
    };
    History {
        events,
        finals: BTreeMap::from([("k".to_owned(), end)]),
        keys: vec!["k".to_owned()],
        refusals: BTreeMap::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_that_was_held_while_its_shard_changed_hands_is_no_anomaly() {
        let mut history = truth();
        // Sent before the last write of the first owner, and let in after it.
        history.events[BY_NEXT_OWNER].start_us = history.events[COUNTED_AGAIN].start_us;
        assert_eq!(judge(&history), []);
    }

    #[test]
    fn every_lie_is_found_out_and_the_truth_passes() {
        for lie in lies() {
            assert!(lie.caught, "{}", lie.name);
        }
    }
}
