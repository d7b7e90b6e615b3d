//! Detection: who is lost, concluded from what observers report. Pure: times come in as numbers
//! (milliseconds of Unix time on the judge's own clock), verdicts go out as values.
//!
//! Two detectors. The *group* detector asks whether a data group's primary is gone; its verdict is
//! a group failover. The *place* detector asks whether a cell, zone or city is gone; its verdict
//! moves shards to other cells. [`guard`] says whether a verdict may be acted upon.
#![warn(missing_docs)]

mod detector;
mod group;
pub mod guard;
mod limits;
mod place;
mod reports;
mod verdict;

pub use detector::Detector;
pub use limits::Limits;
pub use reports::{
    CellView, Exit, GatewayReport, GroupView, Home, MemberReport, OpView, Reports, RunView, Seen,
};
pub use verdict::{
    FailoverVerdict, FrozenVerdict, Judged, LostVerdict, Scope, Signal, SignalKind, Verdict, Why,
};
