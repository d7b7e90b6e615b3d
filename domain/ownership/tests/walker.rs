//! Thousands of schedules break nothing; every mutant is found.

use atoll_ownership::walker::{Mutant, Walked, Walker};

/// Walks that once broke something; they come first, for ever.
const SEEDS: &str = include_str!("seeds/walker.txt");

/// A mutant that lives longer than this many walks has survived: a few seconds of one core.
const MUTANT_WALKS: u64 = 50_000;

/// Walks of the healthy protocol; `ATOLL_WALKS` asks for more.
#[expect(
    clippy::disallowed_methods,
    reason = "a test has no main to read it in"
)]
fn walks() -> u64 {
    std::env::var("ATOLL_WALKS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(100_000)
}

fn kept() -> impl Iterator<Item = u64> {
    let numbers = SEEDS.lines().filter_map(|line| line.split('#').next());
    let numbers = numbers.map(str::trim).filter(|number| !number.is_empty());
    numbers.filter_map(|number| number.parse().ok())
}

#[test]
fn random_schedules_break_no_invariant() {
    let walker = Walker::new(None);
    let mut total = Walked::default();
    for seed in kept().chain(0..walks()) {
        match walker.walk(seed) {
            Ok(walked) => total += walked,
            Err(found) => panic!("{}", found.minimised()),
        }
    }
    println!("{} walks: {total:?}", walks());
    // A walker that reaches nothing finds nothing.
    assert!(total.acknowledged > walks() * 3, "{total:?}");
    assert!(total.opened > walks() / 4, "{total:?}");
    assert!(total.released > walks(), "{total:?}");
    assert!(total.rebuilt > walks() / 200, "{total:?}");
    assert!(total.policies > walks() / 50, "{total:?}");
}

#[test]
fn every_mutant_is_found() {
    let mut survivors = Vec::new();
    for mutant in Mutant::ALL {
        let walker = Walker::new(Some(mutant));
        match (0..MUTANT_WALKS).find_map(|seed| walker.walk(seed).err()) {
            Some(found) => println!("{mutant:?}: seed {} breaks {}", found.seed, found.violation),
            None => survivors.push(mutant),
        }
    }
    assert!(
        survivors.is_empty(),
        "not found in {MUTANT_WALKS} walks: {survivors:?}"
    );
}

#[test]
fn the_same_seed_gives_the_same_walk() {
    let (one, other) = (Walker::new(None), Walker::new(None));
    for seed in 0..200 {
        assert_eq!(one.walk(seed).unwrap(), other.walk(seed).unwrap());
    }
}

#[test]
fn a_counter_example_is_short_and_can_be_read() {
    let walker = Walker::new(Some(Mutant::PromoteTheLowerPosition));
    let found = (0..MUTANT_WALKS).find_map(|seed| walker.walk(seed).err());
    let found = found.unwrap().minimised();
    assert!(found.steps() < 40, "{} steps", found.steps());
    insta::assert_snapshot!(found);
}
