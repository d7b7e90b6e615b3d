//! Data groups of real agents and real PostgreSQL, 15 ms apart, without gateway or router: what a
//! switch and a loss do to acknowledged writes. Control's part is played by the test.

#![expect(
    clippy::print_stdout,
    reason = "figures, for whoever runs with --nocapture"
)]

mod call_off;
mod cancels;
mod controls;
mod disks;
mod drivers;
mod faults;
mod privileges;
mod promotions;
mod records;
mod switches;

use std::time::Duration;

/// For writes to get through on a busy machine.
const WRITES_LIMIT: Duration = Duration::from_secs(30);
