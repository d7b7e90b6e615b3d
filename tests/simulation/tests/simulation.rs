//! Whole worlds on virtual time: seeds, the same history twice, and controls in which the oracles
//! must cry.
#![expect(
    clippy::print_stdout,
    reason = "a seed that fails is to be known by its number"
)]

use std::path::Path;
use std::time::Duration;

use atoll_api::PlanSpec;
use atoll_ownership::member;
use atoll_simulation::{Fault, History, Setup, Weakened, run};
use atoll_topology::{CellId, GroupId, MemberId};

/// Seeds of every commit.
const SEEDS: u64 = 20;
/// Seeds that are run twice.
const TWICE: u64 = 10;
/// The length of the runs that are made twice, or weakened: long enough for a switch or two.
const SHORT: Duration = Duration::from_secs(5);

fn ran(setup: &Setup) -> History {
    run(setup).expect("the simulation runs")
}

/// One failing seed a line, with a comment behind it: they run first for ever.
fn kept() -> Vec<u64> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../seeds/simulation.txt");
    let text = std::fs::read_to_string(path).expect("the seeds are kept");
    let seed = |line: &str| line.split('#').next().unwrap_or_default().trim().parse();
    text.lines().filter_map(|line| seed(line).ok()).collect()
}

fn all_is_well(seeds: impl IntoIterator<Item = u64>) {
    let mut broken = Vec::new();
    for seed in seeds {
        let history = ran(&Setup::of(seed));
        println!(
            "seed {seed}: {:?}, {} executions",
            history.counts, history.executions
        );
        assert!(history.counts.acknowledged > 0, "seed {seed} wrote nothing");
        if !history.violations.is_empty() {
            broken.push((seed, history.violations));
        }
    }
    assert!(
        broken.is_empty(),
        "again, with a trace: cargo xtask simulate --seeds 1 --seed S; keep S in \
         tests/seeds/simulation.txt\n{broken:#?}"
    );
}

#[test]
fn seeds_that_once_failed_never_fail_again() {
    all_is_well(kept());
}

/// Two threads take the seeds by turns.
#[test]
fn even_seeds_break_nothing() {
    all_is_well((1..=SEEDS).filter(|seed| seed % 2 == 0));
}

#[test]
fn odd_seeds_break_nothing() {
    all_is_well((1..=SEEDS).filter(|seed| seed % 2 == 1));
}

#[test]
fn the_same_seed_is_the_same_history() {
    for seed in 1..=TWICE {
        let setup = Setup {
            length: SHORT,
            ..Setup::of(1_000 + seed)
        };
        let (first, second) = (ran(&setup), ran(&setup));
        let differ = first
            .trace
            .iter()
            .zip(&second.trace)
            .position(|(a, b)| a != b);
        if let Some(at) = differ {
            panic!(
                "seed {}: event {at} differs:\n{}\n{}",
                setup.seed, first.trace[at], second.trace[at]
            );
        }
        assert_eq!(first, second);
    }
}

fn cell(name: &str) -> CellId {
    CellId::parse(name).expect("an id")
}

fn group_member(name: &str) -> MemberId {
    MemberId::parse(name).expect("an id")
}

fn switch(from: &str, to: &str) -> Fault {
    Fault::Order(PlanSpec::SwitchCell {
        cell: cell(from),
        to: to.to_owned(),
    })
}

/// A run of given events with something switched off: what the oracles said.
fn weakened(weakened: Weakened, faults: Vec<(u64, Fault)>) -> Vec<String> {
    let faults = faults.into_iter();
    let faults = faults.map(|(ms, fault)| (Duration::from_millis(ms), fault));
    let history = ran(&Setup {
        length: SHORT,
        faults: Some(faults.collect()),
        weakened,
        ..Setup::of(7)
    });
    history.violations
}

fn cries(violations: &[String], name: &str) {
    assert!(
        violations
            .iter()
            .any(|violation| violation.starts_with(name)),
        "{name} must cry; heard: {violations:#?}"
    );
}

/// Group g1's primary alone in its city, cut off from the other members, and then dead.
fn lonely_death() -> Vec<(u64, Fault)> {
    let mut faults: Vec<_> = [(1, 2), (1, 3), (2, 1), (3, 1)]
        .into_iter()
        .map(|(from, to)| (300, Fault::Cut(from, to)))
        .collect();
    faults.push((1_200, Fault::Kill("g1-agent-1".to_owned())));
    faults
}

#[test]
fn acknowledging_before_the_quorum_loses_writes_and_the_oracle_says_so() {
    let wrong = Weakened {
        acknowledge_before_quorum: true,
        ..Weakened::default()
    };
    cries(&weakened(wrong, lonely_death()), "ACKED_SURVIVES");
    assert_eq!(weakened(Weakened::default(), lonely_death()), [""; 0]);
}

#[test]
fn opening_before_the_opening_transaction_is_seen() {
    let wrong = Weakened {
        member: member::Weakened {
            opens_before_open: true,
            ..member::Weakened::default()
        },
        ..Weakened::default()
    };
    cries(&weakened(wrong, vec![]), "HELD_UNTIL_OPEN");
}

#[test]
fn a_gateway_that_releases_to_an_owner_that_is_not_open_is_seen() {
    let group = GroupId::parse("g1").expect("an id");
    let forged = vec![(500, Fault::Forge(group, cell("west")))];
    cries(&weakened(Weakened::default(), forged), "HELD_UNTIL_OPEN");
}

#[test]
fn a_record_that_goes_back_is_seen() {
    let group = GroupId::parse("g1").expect("an id");
    let back = vec![
        (300, switch("east", "west")),
        (3_000, Fault::RollBack(group)),
    ];
    cries(&weakened(Weakened::default(), back), "EPOCH_GROWS");
}

/// The owner changes while the old owner's city hears nothing of it.
fn deaf_owner() -> Vec<(u64, Fault)> {
    vec![
        (200, Fault::KillPostgres(group_member("g1-1"))),
        (1_500, Fault::Kill("east-mesh".to_owned())),
        (3_000, switch("east", "west")),
    ]
}

#[test]
fn without_the_revoke_two_cells_write_one_shard_and_the_oracle_says_so() {
    let wrong = Weakened {
        no_revoke: true,
        ..Weakened::default()
    };
    cries(&weakened(wrong, deaf_owner()), "ONE_WRITER");
    assert_eq!(weakened(Weakened::default(), deaf_owner()), [""; 0]);
}

#[test]
fn a_write_that_stands_twice_is_seen() {
    let wrong = Weakened {
        write_twice: true,
        ..Weakened::default()
    };
    cries(&weakened(wrong, vec![]), "EXACTLY_ONCE");
}

#[test]
fn members_that_differ_are_seen() {
    let wrong = Weakened {
        alter_received: true,
        ..Weakened::default()
    };
    cries(&weakened(wrong, vec![]), "SAME_ROWS");
}

#[test]
fn a_failure_that_was_none_is_seen() {
    let wrong = Weakened {
        unknown_is_failed: true,
        ..Weakened::default()
    };
    // Its commits wait for nobody's acknowledgement but arrive, when it is cut off and seals.
    let faults = vec![
        (500, Fault::Slow("g1-agent-1".to_owned(), 60)),
        (1_500, Fault::Kill("east-sql-router".to_owned())),
        (1_700, Fault::Start("east-sql-router".to_owned())),
        (2_500, Fault::Kill("east-sql-router".to_owned())),
        (2_700, Fault::Start("east-sql-router".to_owned())),
    ];
    cries(&weakened(wrong, faults), "FAILED_MEANS_FAILED");
}

#[test]
fn a_world_that_never_serves_is_seen() {
    let wrong = Weakened {
        never_linked: true,
        ..Weakened::default()
    };
    cries(&weakened(wrong, vec![]), "LIVENESS");
}
