//! PostgreSQL's frontend/backend protocol 3.0 as values and bytes, without I/O: frames are cut out
//! of a buffer and kept as they came, and only what the SQL router looks at has a typed view.
//! Beside it, the little SQL that the router must understand without parsing it: tokens, and where
//! a session or a statement says which user it serves.
//!
//! Source: PostgreSQL 15 documentation, chapter 55 "Frontend/Backend Protocol" and section 4.1
//! "Lexical Structure".
#![warn(missing_docs)]

pub mod backend;
mod frame;
pub mod frontend;
pub mod hint;
pub mod sql;
mod startup;

pub use frame::{Frame, FrameError, Limits, Peer, decode};
pub use startup::{
    CANCELS, CANCELS_KEPT_FROM_COMMITS, StartupMessage, StartupRequest, TERM, decode_startup,
};
