//! The oracles. Each goes through the history once, but for sorting it by key.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::history::{Deed, Event, Fate, Final, History, Owner, SessionId};

/// Anomalies of one oracle that are told one by one.
const TOLD_MAX: usize = 20;

/// Who says that something is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Oracle {
    /// Per key append-only, acknowledged elements in order, each once.
    Lists,
    /// Versions never go back in a session, and no acknowledged one is lost.
    Registers,
    /// No two epochs of a shard, and no two terms, acknowledge writes that overlap in time.
    Owners,
}

impl fmt::Display for Oracle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lists => "lists",
            Self::Registers => "registers",
            Self::Owners => "two owners",
        })
    }
}

/// Everything that is wrong with a history.
pub fn judge(history: &History) -> Vec<(Oracle, String)> {
    let mut by_key: BTreeMap<&str, Vec<&Event>> = BTreeMap::new();
    let mut by_shard: BTreeMap<u16, Vec<&Event>> = BTreeMap::new();
    for event in &history.events {
        by_key.entry(&event.key).or_default().push(event);
        by_shard.entry(event.shard).or_default().push(event);
    }
    let mut wrong = Wrong::default();
    let nothing = Vec::new();
    for key in &history.keys {
        let events = by_key.get(key.as_str()).unwrap_or(&nothing);
        match history.finals.get(key) {
            Some(last) => {
                list(key, events, last, &mut wrong);
                register(key, events, last, &mut wrong);
            }
            None => wrong.say(
                Oracle::Lists,
                format!("{key}: it could not be read at the end"),
            ),
        }
    }
    for (shard, events) in by_shard {
        owners(shard, &events, &mut wrong);
    }
    wrong.all
}

#[derive(Default)]
struct Wrong {
    all: Vec<(Oracle, String)>,
}

impl Wrong {
    fn say(&mut self, oracle: Oracle, what: String) {
        if self.all.iter().filter(|(by, _)| *by == oracle).count() < TOLD_MAX {
            self.all.push((oracle, what));
        }
    }
}

fn list(key: &str, events: &[&Event], last: &Final, wrong: &mut Wrong) {
    let mut say = |what: String| wrong.say(Oracle::Lists, format!("{key}: {what}"));
    let mut stands: BTreeMap<i64, i64> = BTreeMap::new();
    for ((position, element), expected) in last.list.iter().zip(1..) {
        if *position != expected {
            say(format!("position {expected} is missing at the end"));
            break;
        }
        if let Some(before) = stands.insert(*element, *position) {
            say(format!("{element} stands at {before} and at {position}"));
        }
    }
    let at_end: BTreeMap<i64, i64> = last.list.iter().copied().collect();
    let mut meant = BTreeSet::new();
    let mut in_order = Vec::new();
    let mut seen: BTreeMap<SessionId, i64> = BTreeMap::new();
    for event in events {
        match (&event.deed, event.fate) {
            (
                Deed::Append {
                    element,
                    at: Some(at),
                },
                Fate::Acknowledged,
            ) => {
                meant.insert(*element);
                in_order.push((*at, event.start_us, event.end_us));
                if stands.get(element) != Some(at) {
                    let end = stands.get(element);
                    say(format!(
                        "{element} was acknowledged at position {at}; at the end: {end:?}"
                    ));
                }
                let known = seen.entry(event.session).or_default();
                *known = (*known).max(*at);
            }
            (Deed::Append { element, .. }, Fate::Failed) if stands.contains_key(element) => {
                say(format!("{element} is there, though its append had failed"));
            }
            (Deed::Append { element, .. }, _) => {
                meant.insert(*element);
            }
            (Deed::ReadList { tail }, Fate::Acknowledged) => {
                if let Some((position, element)) = tail
                    .iter()
                    .find(|(at, element)| at_end.get(at) != Some(element))
                {
                    say(format!(
                        "{element} was read at {position}, and was taken back"
                    ));
                }
                let length = tail.last().map_or(0, |(position, _)| *position);
                let known = seen.entry(event.session).or_default();
                if length < *known {
                    let session = event.session;
                    say(format!(
                        "session {session} saw {known} elements, and then {length}"
                    ));
                }
                *known = length.max(*known);
            }
            _ => {}
        }
    }
    if let Some(element) = stands.keys().find(|element| !meant.contains(element)) {
        say(format!("{element} is there, and nobody appended it"));
    }
    if let Some((first, then)) = turned_round(in_order) {
        say(format!(
            "what was acknowledged at {then} began after {first} was, and is before it"
        ));
    }
}

fn register(key: &str, events: &[&Event], last: &Final, wrong: &mut Wrong) {
    let mut say = |what: String| wrong.say(Oracle::Registers, format!("{key}: {what}"));
    let mut in_order = Vec::new();
    let mut versions = BTreeSet::new();
    let mut seen: BTreeMap<SessionId, i64> = BTreeMap::new();
    let (mut acknowledged, mut unknown) = (0_i64, 0_i64);
    for event in events {
        let version = match (&event.deed, event.fate) {
            (
                Deed::Count {
                    version: Some(version),
                },
                Fate::Acknowledged,
            ) => {
                acknowledged += 1;
                if !versions.insert(*version) {
                    say(format!("version {version} was acknowledged twice"));
                }
                in_order.push((*version, event.start_us, event.end_us));
                *version
            }
            (Deed::Count { .. }, Fate::Unknown) => {
                unknown += 1;
                continue;
            }
            (Deed::ReadRegister { version }, Fate::Acknowledged) => *version,
            _ => continue,
        };
        let known = seen.entry(event.session).or_default();
        if version < *known {
            let session = event.session;
            say(format!(
                "session {session} saw version {known}, and then {version}"
            ));
        }
        *known = version.max(*known);
        if version > last.version {
            let end = last.version;
            say(format!(
                "version {version} was seen; at the end it is {end}"
            ));
        }
    }
    if !(acknowledged..=acknowledged + unknown).contains(&last.version) {
        say(format!(
            "version {} at the end, after {acknowledged} writes and {unknown} in doubt",
            last.version
        ));
    }
    if let Some((first, then)) = turned_round(in_order) {
        say(format!(
            "version {then} began after {first} was acknowledged"
        ));
    }
}

/// The time in which an owner surely was one.
struct Reign {
    from_us: u64,
    until_us: u64,
}

fn owners(shard: u16, events: &[&Event], wrong: &mut Wrong) {
    let mut say = |what: String| wrong.say(Oracle::Owners, format!("shard {shard}: {what}"));
    let mut reigns: BTreeMap<Owner, Reign> = BTreeMap::new();
    for event in events {
        let (Some(owner), Fate::Acknowledged) = (event.owner, event.fate) else {
            continue;
        };
        let reign = reigns.entry(owner).or_insert(Reign {
            from_us: event.inside_us,
            until_us: event.commit_us,
        });
        reign.from_us = reign.from_us.min(event.inside_us);
        reign.until_us = reign.until_us.max(event.commit_us);
    }
    let mut before: Option<(Owner, u64)> = None;
    // In the order of epochs, and of terms within an epoch.
    for (owner, reign) in reigns {
        if let Some((earlier, until_us)) = before {
            if reign.from_us < until_us {
                say(format!(
                    "{owner:?} acknowledged a write that was inside at {} µs, and {earlier:?} one that \
                     was at {until_us} µs",
                    reign.from_us
                ));
            }
            if owner.term < earlier.term {
                say(format!("{owner:?} comes after {earlier:?}"));
            }
        }
        let until_us = before
            .map_or(0, |(_, until_us)| until_us)
            .max(reign.until_us);
        before = Some((owner, until_us));
    }
}

/// Of ranked deeds with their beginnings and ends: one that had ended before one of a lower rank
/// began; the higher rank, then the lower.
fn turned_round(mut deeds: Vec<(i64, u64, u64)>) -> Option<(i64, i64)> {
    deeds.sort_unstable();
    let mut latest: Option<(i64, u64)> = None;
    for (rank, start_us, end_us) in deeds {
        if let Some((lower, began_us)) = latest
            && end_us < began_us
        {
            return Some((rank, lower));
        }
        if latest.is_none_or(|(_, began_us)| start_us > began_us) {
            latest = Some((rank, start_us));
        }
    }
    None
}
