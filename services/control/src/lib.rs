//! Control: keeps intent, decides by the rules of `domain`, and brings decisions about.
//!
//! `api` takes intent in, `reconcile` carries it out, `observe` takes facts in, `publish` tells
//! the data planes. Only control writes intent; the loss of control stops no shard that is Active.

mod admin;
mod api;
mod app;
mod automatic;
mod config;
mod error;
mod follow;
#[cfg(fuzzing)]
pub mod fuzzing;
mod guard;
mod observe;
mod places;
mod plans;
mod proof;
mod publish;
mod reconcile;
mod records;
mod seat;
mod signing;
mod stored;
mod streams;
mod timeline;
#[cfg(test)]
mod trials;

pub use app::{serve, serve_on};
pub use config::Config;
pub use error::Error;
pub use places::{Place, PlaceRole};
