//! From the plain fields of a message to the domain's values, with an error that names the field.

use std::net::SocketAddr;

use atoll_routing::TableVersion;
use atoll_topology::{InvalidId, ShardId};
use thiserror::Error;

use crate::proto::table as wire;

/// Why a message is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// The bytes are no message of the expected kind.
    #[error("{place}: not a valid protobuf message: {why}")]
    Garbage {
        /// Which entry or message.
        place: String,
        /// What prost says.
        why: String,
    },
    /// A field that must be there is not, or has a value that this version does not know.
    #[error("{place}: field {field} is absent or has a value that this version does not know")]
    Absent {
        /// Which entry or message.
        place: String,
        /// Which field.
        field: &'static str,
    },
    /// An identifier is malformed.
    #[error("{place}")]
    Id {
        /// Which entry or message.
        place: String,
        /// What is wrong with it.
        #[source]
        source: InvalidId,
    },
    /// A number is too large for what it counts.
    #[error("{place}: field {field} is {value}, which is too large")]
    Range {
        /// Which entry or message.
        place: String,
        /// Which field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// An address is malformed.
    #[error("{place}: {text:?} is not an address (ip:port)")]
    Address {
        /// Which entry or message.
        place: String,
        /// As given.
        text: String,
    },
    /// The entries contradict each other.
    #[error("{place}: {why}")]
    Inconsistent {
        /// Which entry or message.
        place: String,
        /// In words.
        why: String,
    },
}

/// Where we are in a message, for its errors.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a>(pub(crate) &'a str);

impl Place<'_> {
    fn name(self) -> String {
        self.0.to_owned()
    }

    pub(crate) fn absent(self, field: &'static str) -> DecodeError {
        DecodeError::Absent {
            place: self.name(),
            field,
        }
    }

    pub(crate) fn inconsistent(self, why: impl Into<String>) -> DecodeError {
        DecodeError::Inconsistent {
            place: self.name(),
            why: why.into(),
        }
    }

    pub(crate) fn garbage(self, why: &prost::DecodeError) -> DecodeError {
        DecodeError::Garbage {
            place: self.name(),
            why: why.to_string(),
        }
    }

    /// Parses an identifier of any kind.
    pub(crate) fn id<T: TryFrom<String, Error = InvalidId>>(
        self,
        text: &str,
    ) -> Result<T, DecodeError> {
        T::try_from(text.to_owned()).map_err(|source| DecodeError::Id {
            place: self.name(),
            source,
        })
    }

    /// Parses an identifier; an empty text means none.
    pub(crate) fn id_or_none<T: TryFrom<String, Error = InvalidId>>(
        self,
        text: &str,
    ) -> Result<Option<T>, DecodeError> {
        if text.is_empty() {
            Ok(None)
        } else {
            self.id(text).map(Some)
        }
    }

    pub(crate) fn address(self, text: &str) -> Result<SocketAddr, DecodeError> {
        text.parse().map_err(|_| DecodeError::Address {
            place: self.name(),
            text: text.to_owned(),
        })
    }

    pub(crate) fn shard(self, field: &'static str, number: u32) -> Result<ShardId, DecodeError> {
        self.narrow(field, u64::from(number)).map(ShardId)
    }

    pub(crate) fn narrow<T: TryFrom<u64>>(
        self,
        field: &'static str,
        value: u64,
    ) -> Result<T, DecodeError> {
        T::try_from(value).map_err(|_| DecodeError::Range {
            place: self.name(),
            field,
            value,
        })
    }

    pub(crate) fn version(self, version: wire::Version) -> Result<TableVersion, DecodeError> {
        if version.world.is_empty() {
            return Err(self.absent("version.world"));
        }
        Ok(TableVersion {
            world: version.world,
            number: version.number,
        })
    }

    pub(crate) fn version_or_none(
        self,
        version: Option<wire::Version>,
    ) -> Result<Option<TableVersion>, DecodeError> {
        version.map(|version| self.version(version)).transpose()
    }
}

/// The message of a version.
pub(crate) fn version(version: &TableVersion) -> wire::Version {
    wire::Version {
        world: version.world.clone(),
        number: version.number,
    }
}
