//! Intent that comes in: resources over HTTP.

pub mod resources;
