//! PostgreSQL as the ownership protocol needs it: started as an unprivileged child that dies with
//! its parent, always as a standby, promoted on a timeline that is the term; positions, the
//! opening transaction, the owner change under the drain lock, rewind and clone, schema files.
//!
//! The crate carries out single acts. In which order they are safe is `domain/ownership`'s matter.
#![warn(missing_docs)]

mod account;
mod binaries;
mod change;
mod control_file;
mod copying;
mod error;
mod exec;
mod hashes;
mod history;
mod launcher;
mod layout;
mod opening;
mod position;
mod privileges;
mod rejoin;
mod schema;
mod server;
mod session;
mod settings;
mod sql;
mod tail;
mod template;

pub use account::Account;
pub use binaries::Binaries;
pub use change::{DRAIN_ATTEMPTS_MAX, IdleSession, InPlace, Moved, change_owner, idle_sessions};
pub use control_file::ControlFile;
pub use error::Error;
pub use exec::exec_main;
pub use hashes::{TableHash, row_hashes};
pub use history::{
    Fork, Timelines, forget_unreached, left_at, placeholders, read_timelines, settle_histories,
};
pub use launcher::{Exit, Launch, Launcher, Running};
pub use layout::{Layout, mode};
pub use opening::{Opening, ShardMove, open_term};
pub use position::{Line, LogState, promote, read_end, read_line, read_log, timeline_of_primary};
pub use privileges::{Finding, check_privileges};
pub use rejoin::{Source, clone, rewind};
pub use schema::{Applied, SchemaFile, apply_schema};
pub use server::{Server, ServerOptions};
pub use session::Session;
pub use settings::MemberSettings;
pub use sql::{DATABASE, OWNER, REPLICATOR, SUPERUSER, cell_role};
pub use tail::{cut_torn_tail, has_torn_tail};
pub use template::Template;
