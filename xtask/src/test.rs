//! `cargo xtask test`: set-up, one build, then every test program in the order of the folders.
//!
//! The programs are built by one call of cargo and run by us, so that a part can be named, timed
//! and counted, and nothing is built twice for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use tokio::time::Instant;

use crate::arrows;
use crate::binaries::{self, Binaries};
use crate::cargo::{cargo, output, root, target};
use crate::count::Count;
use crate::fuzz;
use crate::metadata::{Package, TEST_FEATURES, packages};

/// A test program that runs longer than this is killed and counts as failed.
const PROGRAM_LIMIT: Duration = Duration::from_secs(900);
/// How long each fuzz target runs here; `cargo xtask fuzz` for longer.
const FUZZ_SECONDS: u32 = 5;
/// The folders, in the order in which their tests run: rules first, whole worlds last.
const ORDER: [&str; 11] = [
    "domain", "wire", "engine", "adapters", "services", "clients", "world", "atoll", "xtask",
    "examples", "tests",
];

/// One test program.
struct Program {
    /// Its package's folder.
    folder: String,
    /// `lib`, or the name of the test file.
    name: String,
    file: PathBuf,
}

/// What became of a part.
struct Outcome {
    count: Count,
    took: Duration,
}

pub(crate) fn run(names: &[String], list: bool) -> Result<()> {
    let packages = packages()?;
    check_names(names, &packages)?;
    if list {
        println!("arrows\ndocs\nfuzz");
        packages.iter().for_each(|p| println!("{}", p.folder()));
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let outcomes = runtime.block_on(run_parts(names, &packages))?;
    let total: Count = outcomes.iter().map(|o| o.count).sum();
    let took: Duration = outcomes.iter().map(|o| o.took).sum();
    println!("\nall of it took {}", seconds(took));
    println!(
        "{} passed, {} failed, {} skipped",
        total.passed, total.failed, total.skipped
    );
    ensure!(total.failed == 0, "{} tests failed", total.failed);
    ensure!(total.passed > 0, "no test ran");
    Ok(())
}

async fn run_parts(names: &[String], packages: &[Package]) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    if wanted(names, "arrows", "arrows") {
        let begun = Instant::now();
        let count = match arrows::check() {
            Ok(_) => Count::PASSED,
            Err(error) => {
                println!("{error:#}");
                Count::FAILED
            }
        };
        outcomes.push(told("arrows", count, begun.elapsed()));
    }
    let chosen: Vec<&Package> = packages
        .iter()
        .filter(|p| wanted(names, &p.folder(), &p.name))
        .collect();
    if !chosen.is_empty() {
        let begun = Instant::now();
        set_up()?;
        outcomes.push(told("set-up", Count::default(), begun.elapsed()));
        let begun = Instant::now();
        let binaries = binaries::build()?;
        let programs = build_tests(&chosen, packages)?;
        outcomes.push(told("build", Count::default(), begun.elapsed()));
        for program in programs {
            let begun = Instant::now();
            let count = run_program(&program, &binaries).await?;
            let name = format!("{} {}", program.folder, program.name);
            outcomes.push(told(&name, count, begun.elapsed()));
        }
    }
    if wanted(names, "fuzz", "fuzz") {
        let begun = Instant::now();
        let count = fuzz::run_targets(&[], FUZZ_SECONDS)?;
        outcomes.push(told("fuzz", count, begun.elapsed()));
    }
    if wanted(names, "docs", "docs") {
        let begun = Instant::now();
        let count = run_docs(packages)?;
        outcomes.push(told("docs", count, begun.elapsed()));
    }
    Ok(outcomes)
}

/// Says how a part went as soon as it is known.
fn told(name: &str, count: Count, took: Duration) -> Outcome {
    let mut words = Vec::new();
    for (number, word) in [
        (count.passed, "passed"),
        (count.failed, "FAILED"),
        (count.skipped, "skipped"),
    ] {
        if number > 0 {
            words.push(format!("{number} {word}"));
        }
    }
    println!("{:>9}  {name}  {}", seconds(took), words.join(", "));
    Outcome { count, took }
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

/// Whether a part is to run: named by its folder, a folder above it, its last folder, its package.
fn wanted(names: &[String], folder: &str, package: &str) -> bool {
    let means = |name: &String| {
        let name = name.trim_end_matches('/');
        folder == name
            || package == name
            || folder.starts_with(&format!("{name}/"))
            || folder.ends_with(&format!("/{name}"))
    };
    names.is_empty() || names.iter().any(means)
}

fn check_names(names: &[String], packages: &[Package]) -> Result<()> {
    for name in names {
        let one = std::slice::from_ref(name);
        let known = ["arrows", "docs", "fuzz"].contains(&name.as_str())
            || packages.iter().any(|p| wanted(one, &p.folder(), &p.name));
        ensure!(
            known,
            "there is no part {name:?}; cargo xtask test --list shows them"
        );
    }
    Ok(())
}

/// Installs the real programs that tests run against.
fn set_up() -> Result<()> {
    let postgres = atoll_programs::postgres()?;
    println!(
        "PostgreSQL {} in {}",
        postgres.version,
        postgres.bin.display()
    );
    let python = atoll_programs::python()?;
    println!("Python with psycopg: {}", python.program.display());
    let etcd = atoll_programs::etcd()?;
    println!("etcd {} in {}", etcd.version, etcd.etcd.display());
    Ok(())
}

/// What cargo is told about the packages: which, and with which features of tests.
fn selection<'a>(
    packages: impl Iterator<Item = &'a Package> + Clone,
    all: &[Package],
) -> Vec<String> {
    let mut words = Vec::new();
    if packages.clone().count() == all.len() {
        words.push("--workspace".to_owned());
    } else {
        words.extend(
            packages
                .clone()
                .flat_map(|p| ["-p".to_owned(), p.name.clone()]),
        );
    }
    for package in packages {
        let has = TEST_FEATURES
            .iter()
            .filter(|f| package.features.contains_key(**f));
        words.extend(has.flat_map(|f| ["--features".to_owned(), format!("{}/{f}", package.name)]));
    }
    words
}

/// Builds all test programs in one go and returns those of the chosen packages, in order.
fn build_tests(chosen: &[&Package], packages: &[Package]) -> Result<Vec<Program>> {
    let mut build = cargo(&["test", "--quiet", "--no-run", "--message-format=json"]);
    build.args(selection(chosen.iter().copied(), packages));
    let mut programs = Vec::new();
    for line in output(&mut build)?.lines() {
        let Ok(built) = serde_json::from_str::<Built>(line) else {
            continue;
        };
        let (Some(file), true) = (built.executable, built.profile.test) else {
            continue;
        };
        let Some(folder) = built.manifest_path.parent() else {
            continue;
        };
        let folder = folder
            .strip_prefix(root())
            .unwrap_or(folder)
            .display()
            .to_string();
        if !chosen.iter().any(|p| p.folder() == folder) {
            continue;
        }
        let kind = built.target.kind.first().map_or("", String::as_str);
        let name = if kind == "test" {
            built.target.name
        } else {
            kind.to_owned()
        };
        programs.push(Program { folder, name, file });
    }
    let place = |folder: &str| {
        let top = folder.split('/').next().unwrap_or(folder);
        ORDER.iter().position(|o| *o == top).unwrap_or(ORDER.len())
    };
    programs.sort_by_key(|p| (place(&p.folder), p.folder.clone(), p.name.clone()));
    Ok(programs)
}

/// A line of `cargo test --message-format=json` that tells of something built.
#[derive(Deserialize)]
struct Built {
    manifest_path: PathBuf,
    target: BuiltTarget,
    profile: BuiltProfile,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct BuiltTarget {
    name: String,
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct BuiltProfile {
    test: bool,
}

/// Runs one test program as cargo would; what it printed is shown only if it failed.
async fn run_program(program: &Program, binaries: &Binaries) -> Result<Count> {
    let home = root().join(&program.folder);
    let log = target().join("xtask/log");
    fs::create_dir_all(&log)?;
    let log = log.join(format!(
        "{}-{}.log",
        program.folder.replace('/', "-"),
        program.name
    ));
    let file = fs::File::create(&log).with_context(|| format!("{}", log.display()))?;
    let mut command = Command::new(&program.file);
    command
        .current_dir(&home)
        .env("CARGO_MANIFEST_DIR", &home)
        .env("ATOLL_BIN", &binaries.atoll)
        .env("BANK_BIN", &binaries.bank)
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file);
    let mut child = tokio::process::Command::from(command)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("{} cannot be run", program.file.display()))?;
    let ended = tokio::time::timeout(PROGRAM_LIMIT, child.wait()).await;
    let (succeeded, how) = match ended {
        Err(_) => (false, format!("killed after {PROGRAM_LIMIT:?}")),
        Ok(status) => status.map(|s| (s.success(), s.to_string()))?,
    };
    let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    let count = match Count::of_output(&text) {
        Some(count) if succeeded == (count.failed == 0) => count,
        // It broke off, or failed outside its tests.
        other => other.unwrap_or_default() + Count::FAILED,
    };
    if !succeeded {
        println!(
            "{text}\n{} {} {how}; its output is kept in {}",
            program.folder,
            program.name,
            shown(&log)
        );
    }
    Ok(count)
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root())
        .unwrap_or(path)
        .display()
        .to_string()
}

/// Runs the examples in the documentation, on the same build as the tests.
fn run_docs(packages: &[Package]) -> Result<Count> {
    let mut test = cargo(&["test", "--quiet", "--doc", "--no-fail-fast"]);
    let output = test.args(selection(packages.iter(), packages)).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(Count::of_output(&text).unwrap_or_default());
    }
    println!("{text}{}", String::from_utf8_lossy(&output.stderr));
    match Count::of_output(&text) {
        Some(count) if count.failed > 0 => Ok(count),
        _ => bail!("the examples in the documentation cannot be built"),
    }
}

#[cfg(test)]
mod tests {
    use super::wanted;

    #[test]
    fn a_part_is_named_by_any_folder_of_its_path_or_by_its_package() {
        let named = |name: &str| wanted(&[name.to_owned()], "services/agent", "atoll-agent");
        assert!(
            [
                "services",
                "services/",
                "services/agent",
                "agent",
                "atoll-agent"
            ]
            .map(named)
            .iter()
            .all(|w| *w)
        );
        assert!(!["service", "age", "gateway"].map(named).iter().any(|w| *w));
        assert!(wanted(&[], "services/agent", "atoll-agent"));
    }
}
