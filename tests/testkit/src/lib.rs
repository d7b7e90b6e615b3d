//! What tests of whole processes share: groups of real agents and PostgreSQL, and oracles.

pub mod data;
pub mod world;
