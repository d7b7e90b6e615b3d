//! `cargo xtask fuzz`: every parser against bytes that nobody would send, for a while.
//!
//! The targets in `fuzz/` are laid out for cargo-fuzz too. Here they are built with the stable
//! toolchain: the instrumentation is a pass of LLVM, and libFuzzer comes with its crate.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cargo::{cargo, output, root, run, target};
use crate::count::Count;

/// Coverage for libFuzzer, and checks that a release build leaves out.
const FLAGS: &str = "--cfg tokio_unstable --cfg fuzzing -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Ccodegen-units=1";

/// The most that one input may hold.
const INPUT_BYTES_MAX: u32 = 16 * 1024;
/// An input that takes longer is a finding.
const INPUT_SECONDS_MAX: u32 = 10;

/// Runs the named targets, or all, each for `seconds`.
pub(crate) fn run_targets(names: &[String], seconds: u32) -> Result<Count> {
    let built = build()?;
    let known = targets()?;
    for name in names {
        ensure!(
            known.contains(name),
            "there is no fuzz target {name}; there are {}",
            known.join(", ")
        );
    }
    let mut count = Count::default();
    for name in known
        .iter()
        .filter(|name| names.is_empty() || names.contains(name))
    {
        let sound = run_one(&built.join(name), name, seconds)?;
        println!(
            "  {name}: {}",
            if sound { "nothing found" } else { "FOUND" }
        );
        count = [count, if sound { Count::PASSED } else { Count::FAILED }]
            .into_iter()
            .sum();
    }
    Ok(count)
}

/// A target is a file.
fn targets() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(root().join("fuzz/fuzz_targets"))? {
        let path = entry?.path();
        if let Some(name) = path.file_stem().and_then(|name| name.to_str()) {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn build() -> Result<PathBuf> {
    let triple = host()?;
    let into = target().join("fuzz");
    let mut command = cargo(&["build", "--quiet", "--manifest-path", "fuzz/Cargo.toml"]);
    // With a target named, build scripts and macros are built without instrumentation.
    command
        .args(["--target", &triple, "--target-dir"])
        .arg(&into)
        .env("RUSTFLAGS", FLAGS);
    run(&mut command)?;
    Ok(into.join(triple).join("debug"))
}

/// What this toolchain builds for when it is not told.
fn host() -> Result<String> {
    let program = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let told = output(Command::new(program).arg("-vV").current_dir(root()))?;
    let host = told.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc does not say its host")?.to_owned())
}

/// New inputs go beside; what is committed stays small.
fn run_one(program: &Path, name: &str, seconds: u32) -> Result<bool> {
    let (found, failed) = (
        target().join("fuzz/corpus").join(name),
        target().join("fuzz/artifacts").join(name),
    );
    for folder in [&found, &failed] {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    let log = target().join(format!("fuzz/{name}.log"));
    let status = Command::new(program)
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={INPUT_BYTES_MAX}"))
        .arg(format!("-timeout={INPUT_SECONDS_MAX}"))
        .arg(format!("-artifact_prefix={}/", failed.display()))
        .arg(&found)
        .arg(root().join("fuzz/corpus").join(name))
        .stderr(fs::File::create(&log)?)
        .status()
        .with_context(|| format!("{} cannot be run", program.display()))?;
    if !status.success() {
        let told = fs::read_to_string(&log).unwrap_or_default();
        let lines: Vec<&str> = told.lines().collect();
        println!("{}", lines[lines.len().saturating_sub(25)..].join("\n"));
        println!("  again with: {} {}/…", program.display(), failed.display());
    }
    Ok(status.success())
}
