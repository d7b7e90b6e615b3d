//! The shipped binary is built without what only tests and tools need.

use anyhow::{Result, ensure};

use crate::cargo::{cargo, output};
use crate::metadata::TEST_FEATURES;

/// Packages that come with them.
const NEVER_LINKED: [&str; 2] = ["turmoil", "proptest"];

/// Checks what `cargo build -p atoll` resolves to.
pub(crate) fn check() -> Result<()> {
    let args = [
        "tree", "-p", "atoll", "-e", "normal", "--prefix", "none", "--format", "{p}|{f}",
    ];
    let wrong = violations(&output(&mut cargo(&args))?);
    ensure!(
        wrong.is_empty(),
        "the shipped binary would carry:\n  {}",
        wrong.join("\n  ")
    );
    Ok(())
}

fn violations(tree: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    for line in tree.lines() {
        let Some((package, features)) = line.split_once('|') else {
            continue;
        };
        let name = package.split(' ').next().unwrap_or(package);
        // A repeated package is marked with `(*)`.
        let features = features.trim_end_matches("(*)").trim();
        let ours = name.starts_with("atoll");
        for feature in features
            .split(',')
            .filter(|f| ours && TEST_FEATURES.contains(f))
        {
            wrong.push(format!("{name} with feature {feature}"));
        }
        if NEVER_LINKED.contains(&name) {
            wrong.push(name.to_owned());
        }
    }
    wrong.sort();
    wrong.dedup();
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_feature_in_the_shipped_binary_is_named() {
        let tree = "atoll v0.1.0 (/a)|\natoll-runtime v0.1.0 (/b)|default,simulation (*)\n\
                    turmoil v0.7.2|default\nserde v1.0.0|mutants\n";
        assert_eq!(
            violations(tree),
            ["atoll-runtime with feature simulation", "turmoil"]
        );
    }
}
