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

fn go_through(allowed: Allowed, limit: usize) -> Vec<Explored> {
    let through = |target| match explore(bounds(target, allowed, limit), None) {
        Ok(explored) => {
            let (crashes, repeats, late) = allowed;
            println!("{crashes} crashes, {repeats} repeated, {late} late, to {target}: {explored}");
            explored
        }
        Err(found) => panic!("{allowed:?}, failover to {target}: {found}"),
    };
    (0..3).map(through).collect()
}

#[test]
fn every_schedule_with_one_disturbance_keeps_every_invariant() {
    for allowed in WHOLE {
        let explored = go_through(allowed, usize::MAX);
        assert!(explored.iter().all(|explored| explored.complete));
    }
}

#[test]
fn schedules_with_more_keep_every_invariant() {
    for allowed in BEGUN {
        go_through(allowed, states());
    }
}

/// It sees what it goes through.
#[test]
fn an_exploration_without_a_protection_ends_with_a_counter_example() {
    for mutant in [
        Mutant::AcknowledgeBeforeQuorum,
        Mutant::SessionWritesBeforeOpen,
        Mutant::PromoteTwice,
    ] {
        let broken = |target| explore(bounds(target, (1, 0, 0), usize::MAX), Some(mutant)).is_err();
        assert!((0..3).any(broken), "{mutant:?} was not found");
    }
}
