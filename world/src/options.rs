//! What a person chose when the world was brought up, and what came of it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::directory::Directory;
use crate::disks::Disks;
use crate::links::write_whole;
use crate::plan::Plan;

/// Round trip from outside to every region, unless told otherwise.
pub const OUTSIDE_ROUND_TRIP_MS: f64 = 10.0;

/// A write through the whole path, which leaves nothing behind that anybody reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Canary {
    /// Its method, for instance `POST`.
    pub method: String,
    /// Its path, for instance `/canary`.
    pub path: String,
}

/// Where control keeps the records.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Store {
    /// One replica of control outside the regions, with a file.
    #[default]
    Redb,
    /// A replica of control and a node of etcd in each of three regions, of five where there are so
    /// many.
    Etcd {
        /// etcd's server program.
        program: PathBuf,
    },
}

impl Store {
    /// The word for it.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Redb => "redb",
            Self::Etcd { .. } => "etcd",
        }
    }
}

/// Choices that hold for a whole world.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// The `atoll` binary.
    pub atoll: PathBuf,
    /// The application, one process for each cell: a shell command in which `{cell}`, `{region}`,
    /// `{zone}`, `{ip}`, `{http}`, `{sql}` and `{dir}` are filled in. It prints `ready …`.
    pub app: String,
    /// The application's schema, applied to every shard before the world counts as up.
    pub schema: Option<PathBuf>,
    /// The write by which every gateway finds out whether a cell can be written to.
    pub canary: Option<Canary>,
    /// Where control keeps the records.
    #[serde(default)]
    pub store: Store,
    /// Round trip between outside and every region.
    pub outside_round_trip_ms: f64,
    /// The window of automation's guards, in seconds; control's default without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub automatic_window_seconds: Option<u64>,
    /// What members stand on.
    #[serde(default)]
    pub disks: Disks,
}

/// A world that was brought up: its plan and the choices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Where everything is.
    pub plan: Plan,
    /// What was chosen.
    pub options: Options,
}

/// A file of the world cannot be used.
#[derive(Debug, Error)]
pub enum BadFile {
    /// It cannot be read or written.
    #[error("{} cannot be read or written", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It does not hold what it should.
    #[error("{} is not valid", path.display())]
    Format {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}

pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, BadFile> {
    let bytes = fs::read(path).map_err(|source| BadFile::Io {
        path: path.to_path_buf(),
        source,
    })?;
    serde_json::from_slice(&bytes).map_err(|source| BadFile::Format {
        path: path.to_path_buf(),
        source,
    })
}

pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), BadFile> {
    let text = serde_json::to_vec_pretty(value).map_err(|source| BadFile::Format {
        path: path.to_path_buf(),
        source,
    })?;
    write_whole(path, &text).map_err(|source| BadFile::Io {
        path: path.to_path_buf(),
        source,
    })
}

impl Options {
    /// The application that comes with Atoll, beside its binary.
    pub fn default_app(atoll: &Path) -> String {
        let bank = atoll.with_file_name("bank");
        format!(
            "'{}' serve --cell {{cell}} --listen {{http}} --sql {{sql}}",
            bank.display()
        )
    }

    fn file(directory: &Directory) -> PathBuf {
        directory.run().join("options.json")
    }

    pub(crate) fn read(directory: &Directory) -> Result<Self, BadFile> {
        read_json(&Self::file(directory))
    }

    pub(crate) fn write(&self, directory: &Directory) -> Result<(), BadFile> {
        write_json(&Self::file(directory), self)
    }
}

impl Record {
    /// Reads what the supervisor wrote.
    pub fn read(directory: &Directory) -> Result<Self, BadFile> {
        read_json(&directory.world_record())
    }

    /// The one that an earlier world left there; one that cannot be read is not none.
    pub(crate) fn of_earlier(directory: &Directory) -> Result<Option<Self>, BadFile> {
        match Self::read(directory) {
            Ok(record) => Ok(Some(record)),
            Err(BadFile::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn write(&self, directory: &Directory) -> Result<(), BadFile> {
        write_json(&directory.world_record(), self)
    }
}
