//! What the data planes are told: one table, versioned.

mod decided;
mod publisher;
mod table;

pub(crate) use publisher::Publisher;
