//! What the data planes are told: one table, versioned.

mod publisher;
mod table;

pub use publisher::Publisher;
