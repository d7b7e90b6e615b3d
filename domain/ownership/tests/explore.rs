//! Every schedule of a small world: three members, one planned switch, one failover.

use atoll_ownership::walker::{Bounds, Explored, Mutant, explore};

/// What may go wrong: crashes, messages that arrive twice, messages or machines that are late.
type Allowed = (u8, u8, u8);

/// Gone through to the end in every test run, whomever the failover makes the primary.
const WHOLE: [Allowed; 4] = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)];
/// Gone through as far as [`states`] allows.
const BEGUN: [Allowed; 3] = [(2, 0, 0), (1, 1, 0), (2, 1, 1)];

/// States of one of the larger explorations; `ATOLL_STATES` asks for more.
#[expect(
    clippy::disallowed_methods,
    reason = "a test has no main to read it in"
)]
fn states() -> usize {
    std::env::var("ATOLL_STATES")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(30_000)
}

fn bounds(target: u8, (crashes, repeats, late): Allowed, states: usize) -> Bounds {
    Bounds {
        crashes,
        repeats,
        late,
        writes: 1,
        target,
        states,
    }
}

#[expect(clippy::print_stdout, reason = "how much was seen is for a person")]
fn go_through(allowed: Allowed, limit: usize) -> Result<Vec<Explored>, String> {
    let (crashes, repeats, late) = allowed;
    let through = |target| {
        let explored = explore(bounds(target, allowed, limit), None);
        let explored = explored.map_err(|found| format!("{allowed:?}, to {target}: {found}"))?;
        println!("{crashes} crashes, {repeats} repeated, {late} late, to {target}: {explored}");
        Ok(explored)
    };
    // One core each; nothing is shared.
    std::thread::scope(|scope| {
        let begun = [0, 1, 2].map(|target| scope.spawn(move || through(target)));
        begun.map(|one| one.join().unwrap_or_else(|_| Err("it panicked".to_owned())))
    })
    .into_iter()
    .collect()
}

#[test]
fn every_schedule_with_one_disturbance_keeps_every_invariant() {
    for allowed in WHOLE {
        match go_through(allowed, usize::MAX) {
            Ok(explored) => assert!(explored.iter().all(|explored| explored.complete)),
            Err(found) => panic!("{found}"),
        }
    }
}

#[test]
fn schedules_with_more_keep_every_invariant() {
    for allowed in BEGUN {
        if let Err(found) = go_through(allowed, states()) {
            panic!("{found}");
        }
    }
}

/// Three million states: minutes, so only when asked for.
#[test]
#[ignore = "minutes: cargo test -p atoll-ownership --features mutants --test explore -- --ignored"]
fn every_schedule_with_two_crashes_keeps_every_invariant() {
    match go_through((2, 0, 0), usize::MAX) {
        Ok(explored) => assert!(explored.iter().all(|explored| explored.complete)),
        Err(found) => panic!("{found}"),
    }
}

/// It sees what it goes through.
#[test]
fn an_exploration_without_a_protection_ends_with_a_counter_example() {
    for mutant in [
        Mutant::AcknowledgeBeforeQuorum,
        Mutant::SessionWritesBeforeOpen,
    ] {
        let broken = |target| explore(bounds(target, (1, 0, 1), 400_000), Some(mutant)).is_err();
        assert!((0..3).any(broken), "{mutant:?} was not found");
    }
}
