//! A small bank: the application that Atoll is shown with, the load that drives it as many users,
//! and the oracle that says whether any acknowledged transfer was lost or doubled.
//!
//! `serve` is the application; `load` the users; `oracle` and `analyse` judge; `page` draws.
#![warn(missing_docs)]

pub mod analyse;
pub mod clock;
pub mod load;
pub mod oracle;
pub mod page;
pub mod report;
pub mod serve;
pub mod talk;
