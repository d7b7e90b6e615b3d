//! Walks for `cargo xtask simulate`: so many seeds from one on, counted on standard output. Ends
//! with the first that breaks anything, as readable steps. A line that begins with `+` counts: walks,
//! steps, acknowledged writes, opened ports, crashes since the last one.
#![expect(clippy::print_stdout, reason = "it talks to the task that started it")]

use std::process::ExitCode;

use atoll_ownership::walker::{Walked, Walker};

/// Walks between two lines.
const SAID_EVERY: u64 = 1_000;

fn main() -> ExitCode {
    let mut numbers = std::env::args().skip(1).map(|word| word.parse::<u64>());
    let (Some(Ok(first)), Some(Ok(walks))) = (numbers.next(), numbers.next()) else {
        println!("usage: walk FIRST-SEED WALKS");
        return ExitCode::from(2);
    };
    let walker = Walker::new(None);
    let (mut walked, mut total) = (0, Walked::default());
    for done in 0..walks {
        match walker.walk(first.wrapping_add(done)) {
            Ok(walked) => total += walked,
            Err(found) => {
                println!("{}", found.minimised());
                return ExitCode::FAILURE;
            }
        }
        walked += 1;
        if (done + 1).is_multiple_of(SAID_EVERY) || done + 1 == walks {
            let Walked {
                steps,
                acknowledged,
                opened,
                crashes,
                ..
            } = total;
            println!("+ {walked} {steps} {acknowledged} {opened} {crashes}");
            walked = 0;
            total = Walked::default();
        }
    }
    ExitCode::SUCCESS
}
