//! The proof of a switch: what an execution did and found, sealed so that it can be believed without
//! asking anybody.
//!
//! A proof is one JSON object in canonical form: no white space, members in the order of their names'
//! bytes, numbers whole, strings escaped only where JSON demands it (RFC 8785, without fractions).
//! It holds `sections`; `digests`, the SHA-256 of each section's canonical form; the public `key`;
//! and the Ed25519 `signature` of the canonical form of the object without `sections` and
//! `signature`. So a verifier can say which section was changed.
#![warn(missing_docs)]

mod canonical;
mod document;
mod seal;

pub use canonical::{NotCanonical, canonical};
pub use document::{
    Execution, Gateway, Group, Hold, Member, Plan, Proxy, Sections, ShardRows, Step,
};
pub use seal::{FORMAT, Flaw, Key, Verified, seal, verify};
