//! One process of this machine, named so that a reused pid cannot be mistaken for it.

use std::fs;
use std::io;

use nix::errno::Errno;
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// A pid and when it started, in clock ticks since boot (`/proc/PID/stat`, field 22).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProcessRef {
    /// The kernel's number.
    pub pid: i32,
    /// Start time, in ticks since boot; with the pid it is unique until the next boot.
    pub started: u64,
}

/// What the kernel says about a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It exists and may run.
    Running,
    /// It exists and was stopped by a signal.
    Stopped,
    /// It does not exist any more, or has only its exit status left.
    Gone,
}

/// The fields of `/proc/PID/stat` that we use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) process: ProcessRef,
    pub(crate) parent: i32,
    pub(crate) state: State,
}

/// Reads `/proc/PID/stat`; `None` where there is no such process.
pub(crate) fn stat(pid: i32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The command's name stands in parentheses and may itself hold parentheses and spaces, so the
/// fields are counted from the last closing one.
fn parse_stat(text: &str) -> Option<Stat> {
    let pid = text.split_once(' ')?.0.parse().ok()?;
    let rest = text.rsplit_once(')')?.1;
    let mut fields = rest.split_whitespace();
    let state = match fields.next()? {
        "Z" | "X" | "x" => State::Gone,
        "T" | "t" => State::Stopped,
        _ => State::Running,
    };
    let parent = fields.next()?.parse().ok()?;
    // The state is field 3 and the parent field 4; the start time is field 22.
    let started = fields.nth(17)?.parse().ok()?;
    Some(Stat {
        process: ProcessRef { pid, started },
        parent,
        state,
    })
}

impl ProcessRef {
    /// The process that has this pid now; `None` where there is none.
    pub fn of(pid: i32) -> Option<Self> {
        stat(pid).map(|s| s.process)
    }

    /// The process that asks.
    pub fn own() -> Option<Self> {
        Self::of(Pid::this().as_raw())
    }

    /// What it does now. A zombie is `Gone`: it holds no socket and writes nothing.
    pub fn state(self) -> State {
        match stat(self.pid) {
            Some(found) if found.process == self => found.state,
            _ => State::Gone,
        }
    }

    /// Whether it exists, frozen or not.
    pub fn is_alive(self) -> bool {
        self.state() != State::Gone
    }

    /// Sends `signal` if the pid still belongs to this process; `Gone` is not an error.
    pub fn signal(self, signal: Signal) -> io::Result<State> {
        let state = self.state();
        if state == State::Gone {
            return Ok(State::Gone);
        }
        match signal::kill(Pid::from_raw(self.pid), signal) {
            Ok(()) => Ok(state),
            Err(Errno::ESRCH) => Ok(State::Gone),
            Err(errno) => Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_name_with_parentheses_does_not_shift_the_fields() {
        let line = "77 (a) b (c) S 1 77 77 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 8800 9 9";
        let found = parse_stat(line).expect("a stat line");
        assert_eq!(
            found.process,
            ProcessRef {
                pid: 77,
                started: 8800
            }
        );
        assert_eq!((found.parent, found.state), (1, State::Running));
    }

    #[test]
    fn a_pid_with_another_start_time_is_gone_and_never_signalled() {
        let own = ProcessRef::own().expect("a process knows itself");
        assert!(own.is_alive());
        let other = ProcessRef {
            started: own.started + 1,
            ..own
        };
        assert_eq!(
            other.signal(Signal::SIGKILL).expect("no error"),
            State::Gone
        );
    }
}
