//! `cargo xtask simulate`: walks of the ownership protocol, by the million, on every core; or seeds
//! of whole worlds (`seeds`).
//!
//! The walks are done by a program of `domain/ownership`, built with all optimisation, in one
//! process a core: the domain has no threads and no clock, so both are here.

pub(crate) mod seeds;

use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use tokio::time::{Duration, Instant};

use crate::cargo::{cargo, output};

/// Lines of the walkers that wait to be counted.
const LINES_WAITING_MAX: usize = 64;
/// How often it says how far it is, where nobody watches.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// What was walked.
#[derive(Default, Clone, Copy)]
struct Count {
    walks: u64,
    steps: u64,
    acknowledged: u64,
    opened: u64,
    crashes: u64,
}

impl Count {
    /// From a line `+ walks steps acknowledged opened crashes`.
    fn of_line(line: &str) -> Option<Self> {
        let mut numbers = line.strip_prefix("+ ")?.split(' ').map(str::parse);
        let mut next = || numbers.next()?.ok();
        Some(Self {
            walks: next()?,
            steps: next()?,
            acknowledged: next()?,
            opened: next()?,
            crashes: next()?,
        })
    }

    fn add(&mut self, other: Self) {
        self.walks += other.walks;
        self.steps += other.steps;
        self.acknowledged += other.acknowledged;
        self.opened += other.opened;
        self.crashes += other.crashes;
    }
}

/// Walks; fails with the first counter-example.
pub(crate) fn run(walks: u64, seed: u64) -> Result<()> {
    ensure!(walks > 0, "--walks must be at least 1");
    let program = build()?;
    let cores = thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let cores = cores.min(walks);
    println!("{walks} walks from seed {seed} on {cores} cores");
    let begun = Instant::now();
    let mut children = Vec::new();
    let mut first = seed;
    for core in 0..cores {
        let share = walks / cores + u64::from(core < walks % cores);
        children.push(start(&program, first, share)?);
        first = first.wrapping_add(share);
    }
    let found = thread::scope(|scope| {
        let (lines, heard) = mpsc::sync_channel(LINES_WAITING_MAX);
        for child in &mut children {
            if let Some(stdout) = child.stdout.take() {
                let lines = lines.clone();
                scope.spawn(move || {
                    for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                        if lines.send(line).is_err() {
                            break;
                        }
                    }
                });
            }
        }
        drop(lines);
        listen(&heard, begun, walks, cores)
    });
    if let Some(found) = found {
        for child in &mut children {
            child.kill().ok();
            child.wait().ok();
        }
        println!("\n{found}");
        println!("again: cargo xtask simulate --walks 1 --seed SEED (the last line names it)");
        println!("kept for ever: a line in domain/ownership/tests/seeds/walker.txt");
        bail!("an invariant of the ownership protocol is broken");
    }
    for mut child in children {
        let status = child.wait()?;
        ensure!(status.success(), "a walker ended early ({status})");
    }
    Ok(())
}

/// Counts until all is walked; what was found, if anything was.
fn listen(
    heard: &mpsc::Receiver<String>,
    begun: Instant,
    walks: u64,
    cores: u64,
) -> Option<String> {
    let (mut total, mut said) = (Count::default(), Instant::now());
    let mut found = String::new();
    let watched = std::io::stdout().is_terminal();
    for line in heard {
        let Some(count) = Count::of_line(&line).filter(|_| found.is_empty()) else {
            found.push_str(&line);
            found.push('\n');
            // The last line of a counter-example; the other walkers need not go on.
            if line.starts_with("seed ") {
                return Some(found);
            }
            continue;
        };
        total.add(count);
        let progress = progress(total, begun, walks, cores);
        if watched {
            print!("\r{progress}");
            std::io::stdout().flush().ok();
        } else if said.elapsed() >= SAY_EVERY {
            println!("{progress}");
            said = Instant::now();
        }
    }
    let progress = progress(total, begun, walks, cores);
    println!("{}{progress}", if watched { "\r" } else { "" });
    println!(
        "{} steps, {} writes acknowledged, {} openings, {} crashes: every invariant held",
        total.steps, total.acknowledged, total.opened, total.crashes
    );
    (!found.is_empty()).then_some(found)
}

fn progress(total: Count, begun: Instant, walks: u64, cores: u64) -> String {
    let seconds = begun.elapsed().as_secs_f64().max(0.001);
    #[expect(clippy::cast_precision_loss, reason = "a figure for a person")]
    let rate = total.walks as f64 / seconds / cores as f64;
    format!(
        "{} of {walks} walks in {seconds:.1} s: {rate:.0} walks a second and core",
        total.walks
    )
}

fn start(program: &PathBuf, first: u64, walks: u64) -> Result<Child> {
    Command::new(program)
        .args([first.to_string(), walks.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("{} cannot be run", program.display()))
}

/// Builds the walker and says where it is.
fn build() -> Result<PathBuf> {
    let mut build = cargo(&[
        "build",
        "--quiet",
        "--release",
        "--message-format=json",
        "-p",
        "atoll-ownership",
        "--features",
        "mutants",
        "--bin",
        "walk",
    ]);
    executable(&output(&mut build)?).context("cargo named no program")
}

/// The program that a call of cargo has built, by what it printed.
fn executable(built: &str) -> Option<PathBuf> {
    let lines = built.lines();
    lines
        .filter_map(|line| serde_json::from_str::<Built>(line).ok())
        .find_map(|built| built.executable)
}

/// A line of cargo's that tells of a program.
#[derive(Deserialize)]
struct Built {
    executable: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::Count;

    #[test]
    fn a_line_that_counts_is_told_from_a_counter_example() {
        let count = Count::of_line("+ 1000 290000 14000 900 7000").unwrap();
        assert_eq!((count.walks, count.opened), (1000, 900));
        assert!(Count::of_line("ONE_WRITER: write 3 is acknowledged …").is_none());
        assert!(Count::of_line("+ 1000").is_none());
    }
}
