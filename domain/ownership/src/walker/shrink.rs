//! A shorter list of choices that breaks the same invariant: delta debugging (Zeller, Hildebrandt,
//! IEEE TSE 2002), by leaving out ever smaller pieces until no single choice can be left out.

use super::checks::Violation;
use super::choice::Choice;
use super::settle::OPENS_AGAIN;
use super::world::World;

/// Plays choices; those that are not possible are left out. Which happened, and what they broke.
pub(super) fn play(
    mut world: World,
    choices: impl IntoIterator<Item = Choice>,
) -> (World, Vec<Choice>, Option<Violation>) {
    let mut happened = Vec::new();
    for choice in choices {
        match world.step(choice) {
            Ok(false) => {}
            Ok(true) => happened.push(choice),
            Err(violation) => {
                happened.push(choice);
                return (world, happened, Some(violation));
            }
        }
    }
    (world, happened, None)
}

/// What these choices break, or the quiet after them.
fn broken(
    start: &World,
    choices: impl IntoIterator<Item = Choice>,
    invariant: &str,
) -> Option<Vec<Choice>> {
    let (mut world, happened, broken) = play(start.clone(), choices);
    let broken = match broken {
        None if invariant == OPENS_AGAIN => world.opens_again(&mut Vec::new()).err(),
        broken => broken,
    };
    broken
        .filter(|violation| violation.invariant == invariant)
        .map(|_| happened)
}

/// The shortest list that this finds.
pub(super) fn shrink(start: &World, choices: Vec<Choice>, invariant: &str) -> Vec<Choice> {
    let mut best = choices;
    let mut piece = best.len().div_ceil(2);
    while piece > 0 {
        let before = best.len();
        let mut from = 0;
        while from < best.len() {
            let to = (from + piece).min(best.len());
            let rest = best[..from].iter().chain(&best[to..]).copied();
            if let Some(happened) = broken(start, rest, invariant) {
                best = happened;
            } else {
                from = to;
            }
        }
        // As long as leaving out single choices helps, others may have become superfluous.
        if piece > 1 || best.len() == before {
            piece /= 2;
        }
    }
    best
}
