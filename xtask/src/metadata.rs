//! What cargo knows about the workspace's packages.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::cargo::{cargo, output, root};

/// A package of the workspace.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Package {
    /// Its name.
    pub(crate) name: String,
    manifest_path: PathBuf,
    /// What it needs, by kind.
    pub(crate) dependencies: Vec<Dependency>,
    /// Its features.
    pub(crate) features: BTreeMap<String, Vec<String>>,
}

/// One thing that a package needs.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Dependency {
    /// The other package's name.
    pub(crate) name: String,
    /// `None`: always; `build`; `dev`.
    pub(crate) kind: Option<String>,
    /// Whether only a feature brings it in.
    #[serde(default)]
    pub(crate) optional: bool,
}

/// Features of tests and tools; `shipped` checks that no user's binary has them.
pub(crate) const TEST_FEATURES: [&str; 2] = ["simulation", "mutants"];

impl Package {
    /// Its folder, from the root of the workspace: `domain/routing`.
    pub(crate) fn folder(&self) -> String {
        let folder = self.manifest_path.parent().unwrap_or(Path::new(""));
        folder
            .strip_prefix(root())
            .unwrap_or(folder)
            .display()
            .to_string()
    }

    /// What it is made of, tests and the features of tests apart.
    pub(crate) fn needs(&self) -> impl Iterator<Item = &str> {
        let made_of = |d: &&Dependency| d.kind.as_deref() != Some("dev") && !self.only_tests(d);
        self.dependencies
            .iter()
            .filter(made_of)
            .map(|d| d.name.as_str())
    }

    /// Whether nothing but features of tests brings a dependency in.
    fn only_tests(&self, dependency: &Dependency) -> bool {
        let named = [format!("dep:{}", dependency.name), dependency.name.clone()];
        let brings = |parts: &[String]| parts.iter().any(|part| named.contains(part));
        let mut bringing = self
            .features
            .iter()
            .filter(|(_, parts)| brings(parts))
            .peekable();
        dependency.optional
            && bringing.peek().is_some()
            && bringing.all(|(name, _)| TEST_FEATURES.contains(&name.as_str()))
    }

    #[cfg(test)]
    pub(crate) fn made_up(folder: &str, name: &str, needs: &[&str]) -> Self {
        let dependency = |name: &&str| Dependency {
            name: (*name).to_owned(),
            kind: None,
            optional: false,
        };
        Self {
            name: name.to_owned(),
            manifest_path: root().join(folder).join("Cargo.toml"),
            dependencies: needs.iter().map(dependency).collect(),
            features: BTreeMap::new(),
        }
    }
}

/// All packages of the workspace.
pub(crate) fn packages() -> Result<Vec<Package>> {
    #[derive(Deserialize)]
    struct Metadata {
        packages: Vec<Package>,
    }
    let text = output(&mut cargo(&[
        "metadata",
        "--no-deps",
        "--format-version",
        "1",
    ]))?;
    let metadata: Metadata =
        serde_json::from_str(&text).context("cargo metadata is not as known")?;
    Ok(metadata.packages)
}
