//! What the router says instead of PostgreSQL: one table from what happened to SQLSTATE, message,
//! detail and hint. Codes of class ZA are ours (classes from I on are left to implementations).

use std::time::Duration;

use atoll_pgwire::FrameError;
use atoll_pgwire::backend::{Report, Severity, put_report};
use atoll_topology::{CellId, InvalidId, ShardId};
use bytes::BytesMut;
use thiserror::Error;

/// Why the process could not serve.
#[derive(Debug, Error)]
pub enum Error {
    /// A port could not be listened on.
    #[error("could not listen on {at} ({port})")]
    Listen {
        /// The address.
        at: std::net::SocketAddr,
        /// What it is for.
        port: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// A metric could not be made.
    #[error("could not set up metrics")]
    Metrics(#[from] atoll_telemetry::MetricsError),
    /// The configuration does not make sense.
    #[error("the configuration is not usable: {0}")]
    Config(String),
}

/// Why a statement, a transaction or a connection got no answer from PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refusal {
    /// Nothing says whose data is meant.
    #[error("the statement does not say which user it serves")]
    NoKey,
    /// The key is not a user id.
    #[error("the key {text:?} is not a user id")]
    BadKey {
        /// The key as given.
        text: String,
        /// The rule that it breaks.
        rule: String,
    },
    /// The hint points to a bound value that cannot be read as a key.
    #[error("parameter ${0}, named by the key comment, cannot be read as a user id")]
    KeyParameter(u16),
    /// A second shard in one transaction.
    #[error("a transaction on shard {held} cannot also use shard {asked}")]
    TwoShards {
        /// The transaction's.
        held: ShardId,
        /// The statement's.
        asked: ShardId,
    },
    /// Another cell owns the shard.
    #[error("shard {shard} belongs to cell {owner}, not to {here}")]
    NotOwner {
        /// The shard.
        shard: ShardId,
        /// Its owner.
        owner: CellId,
        /// This router's cell.
        here: CellId,
    },
    /// Something the router does not let through.
    #[error("{what} is not taken through the router")]
    Feature {
        /// What it is.
        what: &'static str,
        /// What to do instead.
        hint: &'static str,
    },
    /// The statement cannot be read.
    #[error("{0}")]
    Syntax(String),
    /// An unknown prepared statement or portal.
    #[error("{what} \"{name}\" does not exist")]
    Unknown {
        /// Which kind of thing.
        what: &'static str,
        /// SQLSTATE.
        sqlstate: &'static str,
        /// Its name.
        name: String,
    },
    /// A prepared statement with such a name exists.
    #[error("prepared statement \"{0}\" already exists")]
    Duplicate(String),
    /// A limit of the router.
    #[error("the limit {name} ({limit}) is reached")]
    Limit {
        /// Its name.
        name: &'static str,
        /// What is allowed.
        limit: usize,
    },
    /// The shard did not become writable in time; nothing was executed.
    #[error("shard {shard} did not become writable within {waited:?}")]
    Held {
        /// The shard.
        shard: ShardId,
        /// How long it was waited for.
        waited: Duration,
    },
    /// No table has arrived yet, or the group was never opened.
    #[error("the router does not know yet where shard {0} is")]
    Unplaced(ShardId),
    /// Committed or not: nobody knows.
    #[error("it is not known whether the transaction was committed")]
    OutcomeUnknown(String),
    /// Surely not committed; the transaction may be repeated.
    #[error("the transaction was rolled back and may be repeated")]
    Repeat(String),
    /// A statement in a transaction that the router has given up.
    #[error("current transaction is aborted, commands ignored until end of transaction block")]
    InFailedTransaction,
    /// PostgreSQL refused what the router does before a transaction for its client.
    #[error("{what}: {message}")]
    Setting {
        /// What it was.
        what: &'static str,
        /// PostgreSQL's SQLSTATE.
        sqlstate: String,
        /// PostgreSQL's message.
        message: String,
    },
    /// The router is about to end.
    #[error("the router is shutting down")]
    ShuttingDown,
    /// The peer does not speak the protocol.
    #[error("protocol violation: {0}")]
    Protocol(String),
}

impl From<FrameError> for Refusal {
    fn from(error: FrameError) -> Self {
        Self::Protocol(error.to_string())
    }
}

impl From<InvalidId> for Refusal {
    fn from(error: InvalidId) -> Self {
        Self::BadKey {
            rule: error.rule.to_owned(),
            text: error.text,
        }
    }
}

const KEY_HINT: &str = "Say it by the startup option -c atoll.key=ID, by SET [LOCAL] atoll.key = \
    'ID', or by a comment in front of the statement: /*key=ID*/ or /*key=$1*/.";

impl Refusal {
    /// Its five characters. Stable: applications depend on them.
    pub fn sqlstate(&self) -> &str {
        match self {
            Self::NoKey => "ZA001",
            Self::TwoShards { .. } => "ZA002",
            Self::BadKey { .. } | Self::KeyParameter(_) => "ZA003",
            Self::NotOwner { .. } => "ZA004",
            Self::Feature { .. } => "0A000",
            Self::Syntax(_) => "42601",
            Self::Unknown { sqlstate, .. } => sqlstate,
            Self::Setting { sqlstate, .. } => sqlstate,
            Self::Duplicate(_) => "42P05",
            Self::Limit { .. } => "53400",
            Self::Held { .. } | Self::Unplaced(_) => "57P03",
            Self::OutcomeUnknown(_) => "08007",
            Self::Repeat(_) => "40001",
            Self::InFailedTransaction => "25P02",
            Self::ShuttingDown => "57P01",
            Self::Protocol(_) => "08P01",
        }
    }

    fn detail(&self) -> String {
        match self {
            Self::BadKey { rule, .. } => format!("A user id is {rule}."),
            Self::KeyParameter(_) => {
                "It must be text, an integer or a UUID; sent in binary, its type must be known from \
                 an earlier Describe or from the statement's declared types."
                    .to_owned()
            }
            Self::TwoShards { .. } => "The data of one transaction lies in one shard.".to_owned(),
            Self::Held { .. } | Self::Unplaced(_) | Self::NotOwner { .. } => {
                "Nothing of the transaction was executed.".to_owned()
            }
            Self::OutcomeUnknown(why) | Self::Repeat(why) => why.clone(),
            _ => String::new(),
        }
    }

    fn hint(&self) -> &'static str {
        match self {
            Self::NoKey => KEY_HINT,
            Self::TwoShards { .. } => {
                "End the transaction first; a pipeline up to its Sync is one transaction too."
            }
            Self::NotOwner { .. } => "Send the user's request through a gateway.",
            Self::Feature { hint, .. } => hint,
            Self::OutcomeUnknown(_) => {
                "Look whether it is there before repeating it, or repeat it under an idempotency key."
            }
            Self::Held { .. } | Self::Unplaced(_) | Self::Repeat(_) => "Repeat the transaction.",
            _ => "",
        }
    }

    /// Writes the ErrorResponse; a fatal one says that the connection ends.
    pub fn put(&self, out: &mut BytesMut, severity: Severity) {
        let (message, detail) = (self.to_string(), self.detail());
        put_report(
            out,
            Report {
                severity,
                sqlstate: self.sqlstate(),
                message: &message,
                detail: &detail,
                hint: self.hint(),
            },
        );
    }
}
