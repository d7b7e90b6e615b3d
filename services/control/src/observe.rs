//! Facts that come up: from agents and from data planes.

pub mod agents;
pub mod planes;
pub mod view;
