//! The order of the folders is the only direction in which code may depend:
//! `domain ◄ wire ◄ engine ◄ adapters ◄ services`; services never link each other; clients use
//! domain, wire and engine; world links no service; the binary links all; tests may link all.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

use crate::metadata::{Package, packages};

/// What the rules of the domain must not reach for: input, output, time, chance.
const NOT_IN_DOMAIN: [&str; 9] = [
    "tokio", "mio", "socket2", "hyper", "tonic", "rand", "redb", "nix", "reqwest",
];

/// Checks the workspace as it is; returns how many packages were looked at.
pub(crate) fn check() -> Result<usize> {
    let packages = packages()?;
    let wrong = violations(&packages);
    ensure!(
        wrong.is_empty(),
        "dependencies against the arrows:\n  {}",
        wrong.join("\n  ")
    );
    Ok(packages.len())
}

/// Every dependency that points the wrong way.
fn violations(packages: &[Package]) -> Vec<String> {
    let folders: BTreeMap<&str, String> = packages
        .iter()
        .map(|p| (p.name.as_str(), p.folder()))
        .collect();
    let mut wrong = Vec::new();
    for package in packages {
        let from = package.folder();
        for needed in package.needs() {
            let Some(to) = folders.get(needed) else {
                if top(&from) == "domain" && NOT_IN_DOMAIN.contains(&needed) {
                    wrong.push(format!("{from} uses {needed}: the domain does no I/O"));
                }
                continue;
            };
            if !allowed(&from, to) {
                wrong.push(format!("{from} → {to}"));
            }
        }
    }
    wrong
}

fn top(folder: &str) -> &str {
    folder.split('/').next().unwrap_or(folder)
}

/// Whether code in folder `from` may use code in folder `to`.
fn allowed(from: &str, to: &str) -> bool {
    let below: &[&str] = match top(from) {
        "domain" => &["domain"],
        "wire" => &["domain", "wire"],
        "engine" | "clients" => &["domain", "wire", "engine"],
        "adapters" => &["domain", "wire", "engine", "adapters"],
        "services" | "world" => &["domain", "wire", "engine", "adapters"],
        "atoll" => &[
            "domain", "wire", "engine", "adapters", "services", "clients", "world",
        ],
        // One finds programs for anybody, and knows nothing of what they are for; the oracles of the
        // other share no code with what they judge.
        "tests" if ["tests/programs", "tests/workloads"].contains(&from) => &[],
        "tests" | "xtask" => return top(to) != "xtask",
        // `examples` among them: an application of ours is one like any other, and links nothing.
        _ => &[],
    };
    below.contains(&top(to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_package_of_this_workspace_depends_against_the_arrows() {
        assert!(check().expect("the arrows hold") > 20);
    }

    #[test]
    fn every_kind_of_wrong_arrow_is_named() {
        let packages = [
            Package::made_up("domain/routing", "routing", &["serde", "tokio", "streams"]),
            Package::made_up("wire/streams", "streams", &["routing"]),
            Package::made_up("services/mesh", "mesh", &["streams", "gateway", "programs"]),
            Package::made_up("services/gateway", "gateway", &[]),
            Package::made_up("clients/cli", "cli", &["mesh"]),
            Package::made_up("world", "world", &["gateway"]),
            Package::made_up("tests/programs", "programs", &["routing"]),
            Package::made_up("atoll", "atoll", &["gateway", "world", "cli", "programs"]),
        ];
        let expected = [
            "domain/routing uses tokio: the domain does no I/O",
            "domain/routing → wire/streams",
            "services/mesh → services/gateway",
            "services/mesh → tests/programs",
            "clients/cli → services/mesh",
            "world → services/gateway",
            "tests/programs → domain/routing",
            "atoll → tests/programs",
        ];
        assert_eq!(violations(&packages), expected);
    }

    #[test]
    fn what_only_a_feature_of_tests_brings_in_is_no_part_of_the_domain() {
        let mut ownership = Package::made_up("domain/ownership", "ownership", &["rand"]);
        ownership.dependencies[0].optional = true;
        let feature = |name: &str| (name.to_owned(), vec!["dep:rand".to_owned()]);
        ownership.features = [feature("mutants")].into();
        assert!(violations(&[ownership.clone()]).is_empty());
        ownership.features = [feature("mutants"), feature("dice")].into();
        assert_eq!(violations(&[ownership]).len(), 1);
    }

    #[test]
    fn tests_may_use_what_their_subject_may_not() {
        let mut mesh = Package::made_up("services/mesh", "mesh", &["gateway"]);
        mesh.dependencies[0].kind = Some("dev".to_owned());
        let gateway = Package::made_up("services/gateway", "gateway", &[]);
        assert!(violations(&[mesh, gateway]).is_empty());
    }
}
