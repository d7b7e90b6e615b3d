//! A role's configuration: the file, then the environment, then the command line.
//!
//! `ATOLL_<ROLE>_<KEY>` and `--set key=value` name a key by its path; in the environment parts are
//! joined by `__` (`ATOLL_SQL_ROUTER_LIMITS__CLIENTS_MAX=10`), on the command line by `.`
//! (`--set limits.clients_max=10`). Values are read as YAML. Unknown keys are refused.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use atoll_runtime::RealOptions;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// The part of every role's file that the binary reads itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RuntimeSettings {
    /// Own loopback address, also the source of outgoing connections.
    pub(crate) source: Option<IpAddr>,
    /// The links between the regions of a local world.
    pub(crate) links_file: Option<PathBuf>,
    /// Added to the machine's clock.
    pub(crate) clock_offset_ms: i64,
    /// Holds what is added besides; read again whenever it changes.
    pub(crate) clock_file: Option<PathBuf>,
}

impl From<RuntimeSettings> for RealOptions {
    fn from(settings: RuntimeSettings) -> Self {
        Self {
            source: settings.source,
            links_file: settings.links_file,
            clock_offset_ms: settings.clock_offset_ms,
            clock_file: settings.clock_file,
        }
    }
}

/// What was read for one role.
pub(crate) struct Settings {
    /// For the runtime.
    pub(crate) runtime: RuntimeSettings,
    /// Fields of every log line: where the process stands.
    pub(crate) fields: Vec<(&'static str, String)>,
    own: Value,
}

impl Settings {
    /// Reads the file and lays `environment` and `sets` over it.
    pub(crate) fn read(
        role: &str,
        file: &Path,
        environment: impl Iterator<Item = (String, String)>,
        sets: &[String],
    ) -> Result<Self> {
        let text = fs::read_to_string(file)
            .with_context(|| format!("the configuration {} cannot be read", file.display()))?;
        let mut whole = yaml(&text).with_context(|| format!("{} is wrong", file.display()))?;
        let prefix = format!("ATOLL_{}_", role.to_uppercase().replace('-', "_"));
        for (name, value) in environment {
            if let Some(path) = name.strip_prefix(&prefix) {
                let path: Vec<String> =
                    path.to_lowercase().split("__").map(str::to_owned).collect();
                lay(&mut whole, &path, &value).with_context(|| format!("{name} is wrong"))?;
            }
        }
        for set in sets {
            let (path, value) = set
                .split_once('=')
                .with_context(|| format!("--set {set}: expected key=value"))?;
            let path: Vec<String> = path.split('.').map(str::to_owned).collect();
            lay(&mut whole, &path, value).with_context(|| format!("--set {set} is wrong"))?;
        }
        let Value::Object(mut whole) = whole else {
            bail!("{} is wrong: expected keys and values", file.display());
        };
        let runtime = match whole.remove("runtime") {
            Some(found) => serde_json::from_value(found)
                .with_context(|| format!("{}: runtime is wrong", file.display()))?,
            None => RuntimeSettings::default(),
        };
        let field = |name: &'static str| {
            let text = whole.get(name).and_then(Value::as_str)?;
            Some((name, text.to_owned()))
        };
        let fields = ["process", "region", "zone", "cell", "group"];
        let fields = fields.into_iter().filter_map(field).collect();
        Ok(Self {
            runtime,
            fields,
            own: Value::Object(whole),
        })
    }

    /// The role's own part.
    pub(crate) fn own<C: DeserializeOwned>(&self) -> Result<C> {
        serde_json::from_value(self.own.clone()).context("the configuration is wrong")
    }
}

fn yaml(text: &str) -> Result<Value> {
    Ok(serde_saphyr::from_str(text)?)
}

/// Puts a value where `path` leads, making the objects on the way.
fn lay(at: &mut Value, path: &[String], value: &str) -> Result<()> {
    let Some((key, rest)) = path.split_first() else {
        *at = yaml(value)?;
        return Ok(());
    };
    ensure!(!key.is_empty(), "a part of the key is empty");
    if at.is_null() {
        *at = Value::Object(Map::new());
    }
    let Value::Object(keys) = at else {
        bail!("{key} is inside something that has no keys")
    };
    lay(keys.entry(key.clone()).or_insert(Value::Null), rest, value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Role {
        process: String,
        admin: String,
        limits: Limits,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Limits {
        clients_max: u32,
    }

    fn read(environment: &[(&str, &str)], sets: &[&str]) -> Result<Settings> {
        let directory = tempfile::tempdir()?;
        let file = directory.path().join("it.yaml");
        fs::write(
            &file,
            "process: c-gateway\nadmin: 127.0.0.1:1\nlimits: {clients_max: 1}\n\
             runtime: {source: 127.1.16.1, links_file: /w/links.json}\n",
        )?;
        let environment = environment
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let sets: Vec<String> = sets.iter().map(|s| (*s).to_owned()).collect();
        Settings::read("sql-router", &file, environment, &sets)
    }

    #[test]
    fn the_command_line_beats_the_environment_and_both_beat_the_file() {
        let environment = [
            ("ATOLL_SQL_ROUTER_LIMITS__CLIENTS_MAX", "2"),
            ("ATOLL_SQL_ROUTER_ADMIN", "127.0.0.1:2"),
        ];
        let settings = read(&environment, &["limits.clients_max=3"]).expect("settings");
        let role: Role = settings.own().expect("a role");
        assert_eq!(
            (role.admin.as_str(), role.limits.clients_max),
            ("127.0.0.1:2", 3)
        );
        assert_eq!(settings.runtime.source, Some([127, 1, 16, 1].into()));
        assert_eq!(settings.fields, [("process", "c-gateway".to_owned())]);
    }

    #[test]
    fn a_key_that_nobody_knows_is_refused_wherever_it_comes_from() {
        let wrong = read(&[], &["limits.clients=3"])
            .expect("settings")
            .own::<Role>();
        assert!(format!("{:#}", wrong.expect_err("refused")).contains("unknown field `clients`"));
        let wrong = read(&[("ATOLL_SQL_ROUTER_TYPO", "1")], &[])
            .expect("settings")
            .own::<Role>();
        assert!(format!("{:#}", wrong.expect_err("refused")).contains("unknown field `typo`"));
    }
}
