//! Facts that come up: from agents and from data planes.

pub(crate) mod agents;
pub(crate) mod planes;
pub(crate) mod view;
