//! Mesh: takes tables from control, keeps the last one on disk, serves them to the data planes of
//! its cell, and passes their reports up. The death of control stops nothing here.
#![warn(missing_docs)]

mod app;
mod board;
mod config;
mod error;
mod uplink;

pub use app::serve;
pub use config::Config;
pub use error::Error;
