//! Thousands of schedules break nothing; every mutant is found.

use atoll_ownership::walker::{Mutant, Walked, Walker};

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

#[test]
fn random_schedules_break_no_invariant() {
    let walker = Walker::new(None);
    let mut total = Walked::default();
    for seed in 0..walks() {
        match walker.walk(seed) {
            Ok(walked) => total += walked,
            Err(found) => panic!("{}", found.minimised()),
        }
    }
    println!("{} walks: {total:?}", walks());
}

#[test]
fn every_mutant_is_found() {
    let limit = 100_000;
    let mut survivors = Vec::new();
    for mutant in Mutant::ALL {
        let walker = Walker::new(Some(mutant));
        match (0..limit).find_map(|seed| walker.walk(seed).err()) {
            Some(found) => println!("{mutant:?}: seed {} breaks {}", found.seed, found.violation),
            None => survivors.push(mutant),
        }
    }
    assert!(
        survivors.is_empty(),
        "not found in {limit} walks: {survivors:?}"
    );
}
