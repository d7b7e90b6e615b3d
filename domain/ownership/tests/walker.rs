//! Thousands of schedules break nothing; every mutant is found.

use atoll_ownership::walker::{self, Mutant, Walked};

/// Walks of the healthy protocol; `ATOLL_WALKS` asks for more.
#[expect(
    clippy::disallowed_methods,
    reason = "a test has no main to read it in"
)]
fn walks() -> u64 {
    std::env::var("ATOLL_WALKS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(5_000)
}

#[test]
fn random_schedules_break_no_invariant() {
    let mut total = Walked::default();
    for seed in 0..walks() {
        match walker::walk(seed, None) {
            Ok(walked) => {
                total.acknowledged += walked.acknowledged;
                total.opened += walked.opened;
                total.crashes += walked.crashes;
                total.released += walked.released;
            }
            Err(found) => panic!("{found}"),
        }
    }
    println!("{} walks: {total:?}", walks());
    // A walker that reaches nothing finds nothing.
    assert!(total.acknowledged > walks(), "{total:?}");
    assert!(total.opened > walks() / 2, "{total:?}");
}

#[test]
fn every_mutant_is_found() {
    let limit = 20_000;
    let mut survivors = Vec::new();
    for mutant in Mutant::ALL {
        match (0..limit).find_map(|seed| walker::walk(seed, Some(mutant)).err()) {
            Some(found) => println!("{mutant:?}: seed {} breaks {}", found.seed, found.violation),
            None => survivors.push(mutant),
        }
    }
    assert!(
        survivors.is_empty(),
        "not found in {limit} walks: {survivors:?}"
    );
}
