//! What the data planes are told: one table, versioned.

mod publisher;
mod table;

pub(crate) use publisher::Publisher;
