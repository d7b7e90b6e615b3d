//! The command line, as a client of control's API: what `atoll status`, `get`, `explain`, `shard`,
//! `switch` and `schema` do. stdout is data, stderr is talk; every error has a stable code, and the
//! exit code follows from it.
#![warn(missing_docs)]

mod automatic;
mod client;
mod command;
mod endpoints;
mod explain;
mod get;
mod output;
mod proof;
mod schema;
mod status;
mod switch;
mod table;

use std::io::Write;
use std::process::ExitCode;

use atoll_api::{Exit, Problem};
use atoll_runtime::{RealOptions, Runtime};

pub use client::ENDPOINT_LIMIT;
pub use command::Command;
pub use output::Format;

/// Runs a command of the real command line. Ctrl-C detaches: what was ordered goes on.
pub fn run(command: Command) -> ExitCode {
    let (mut data, mut talk) = (std::io::stdout(), std::io::stderr());
    let started = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = match started {
        Ok(runtime) => runtime,
        Err(error) => {
            writeln!(talk, "error: {error}").ok();
            return ExitCode::FAILURE;
        }
    };
    let exit = runtime.block_on(async {
        let real = Runtime::real(RealOptions::default());
        let mut screen = Screen {
            data: &mut data,
            talk: &mut talk,
        };
        tokio::select! {
            exit = execute(command, &real, &mut screen) => exit,
            _ = tokio::signal::ctrl_c() => Exit::Detached,
        }
    });
    if exit == Exit::Detached {
        writeln!(talk, "detached; what was ordered goes on").ok();
    }
    ExitCode::from(exit as u8)
}

/// Where a command's output goes. A reader that went away is no reason to fail.
pub struct Screen<'a> {
    /// Data, for people and for programs.
    pub data: &'a mut dyn Write,
    /// Talk, for people.
    pub talk: &'a mut dyn Write,
}

impl Screen<'_> {
    /// A line of data.
    pub fn data(&mut self, line: &str) {
        writeln!(self.data, "{line}").ok();
        self.data.flush().ok();
    }

    /// A line of talk.
    pub fn say(&mut self, line: &str) {
        writeln!(self.talk, "{line}").ok();
    }
}

/// Runs a command, writes to `screen`, and says how to end.
pub async fn execute(command: Command, runtime: &Runtime, screen: &mut Screen<'_>) -> Exit {
    let format = command.format();
    match command.execute(runtime, screen).await {
        Ok(exit) => exit,
        Err(problem) => {
            match format {
                Format::Json => screen.say(&output::json(&*problem)),
                _ => screen.say(&problem.in_lines()),
            }
            problem.stable_code().exit()
        }
    }
}

/// What a command answers with when it fails. Boxed, because it carries many words.
pub(crate) type Failure = Box<Problem>;
