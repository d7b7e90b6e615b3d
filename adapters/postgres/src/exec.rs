//! The hidden subcommand `postgres-exec`: becomes an unprivileged program that dies with its
//! parent. It runs in a process of its own because a credential change clears the death signal,
//! and because neither can be done safely between fork and exec of a threaded program.
//!
//! `postgres-exec --uid N --gid N --parent PID --death quit|kill --dir D -- PROGRAM ARG…`

use std::ffi::{CString, OsString};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::process::ExitCode;

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Pid, Uid, execv, getppid, setgroups, setresgid, setresuid, setsid};

/// The arguments of the hidden subcommand.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ExecArgs {
    pub(crate) account: Option<(u32, u32)>,
    pub(crate) parent: i32,
    pub(crate) death: Death,
    pub(crate) dir: PathBuf,
    pub(crate) command: Vec<OsString>,
}

/// How the program dies when its parent does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Death {
    /// A server: at once and without a shutdown record, so that its log ends where it is.
    Quit,
    /// A tool.
    Kill,
}

impl ExecArgs {
    /// As a command line, after the words that name the subcommand.
    pub(crate) fn to_words(&self) -> Vec<OsString> {
        let mut words: Vec<OsString> = Vec::new();
        if let Some((uid, gid)) = self.account {
            words.extend(["--uid".into(), uid.to_string().into()]);
            words.extend(["--gid".into(), gid.to_string().into()]);
        }
        words.extend(["--parent".into(), self.parent.to_string().into()]);
        let death = match self.death {
            Death::Quit => "quit",
            Death::Kill => "kill",
        };
        words.extend(["--death".into(), death.into(), "--dir".into()]);
        words.push(self.dir.clone().into());
        words.push("--".into());
        words.extend(self.command.iter().cloned());
        words
    }

    fn parse(words: impl Iterator<Item = OsString>) -> Option<Self> {
        let (mut uid, mut gid, mut parent, mut death, mut dir) = (None, None, None, None, None);
        let mut words = words;
        loop {
            let word = words.next()?;
            if word == "--" {
                break;
            }
            let value = words.next()?;
            match (word.to_str()?, value.to_str()) {
                ("--uid", Some(text)) => uid = Some(text.parse().ok()?),
                ("--gid", Some(text)) => gid = Some(text.parse().ok()?),
                ("--parent", Some(text)) => parent = Some(text.parse().ok()?),
                ("--death", Some("quit")) => death = Some(Death::Quit),
                ("--death", Some("kill")) => death = Some(Death::Kill),
                ("--dir", _) => dir = Some(PathBuf::from(value)),
                _ => return None,
            }
        }
        let account = match (uid, gid) {
            (Some(uid), Some(gid)) => Some((uid, gid)),
            (None, None) => None,
            _ => return None,
        };
        let command: Vec<OsString> = words.collect();
        (!command.is_empty()).then_some(())?;
        Some(Self {
            account,
            parent: parent?,
            death: death?,
            dir: dir?,
            command,
        })
    }
}

/// Becomes the program; returns only when that failed. `words` follow the subcommand's name.
pub fn exec_main(words: impl Iterator<Item = OsString>) -> ExitCode {
    let Some(args) = ExecArgs::parse(words) else {
        return complain(
            "usage: postgres-exec --parent PID --death quit|kill --dir D -- PROGRAM …",
        );
    };
    match become_program(args) {
        Ok(never) => match never {},
        Err(message) => complain(&message),
    }
}

fn complain(message: &str) -> ExitCode {
    use std::io::Write;
    // Our standard error is the server's log; if that is gone there is nobody to tell.
    writeln!(std::io::stderr(), "postgres-exec: {message}").ok();
    ExitCode::from(127)
}

fn become_program(args: ExecArgs) -> Result<std::convert::Infallible, String> {
    let step = |what: &'static str| move |errno: nix::Error| format!("{what}: {errno}");
    if let Some((uid, gid)) = args.account {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        setgroups(&[gid]).map_err(step("setgroups"))?;
        setresgid(gid, gid, gid).map_err(step("setresgid"))?;
        setresuid(uid, uid, uid).map_err(step("setresuid"))?;
    }
    if Uid::effective().is_root() {
        return Err("PostgreSQL never runs as root".into());
    }
    let signal = match args.death {
        Death::Quit => Signal::SIGQUIT,
        Death::Kill => Signal::SIGKILL,
    };
    set_pdeathsig(signal).map_err(step("set_pdeathsig"))?;
    // A parent that died before the line above sent no signal.
    if getppid() != Pid::from_raw(args.parent) {
        return Err("the parent is gone".into());
    }
    // A Ctrl-C in the agent's terminal is for the agent alone. It fails only if we already lead.
    setsid().ok();
    umask(Mode::from_bits_truncate(0o077));
    std::env::set_current_dir(&args.dir).map_err(|error| format!("{:?}: {error}", args.dir))?;
    let words: Vec<CString> = args
        .command
        .into_iter()
        .map(|word| CString::new(word.into_vec()).map_err(|_| "an argument with a zero byte"))
        .collect::<Result<_, _>>()?;
    let program = words.first().ok_or("no program")?;
    execv(program, &words).map_err(|errno| format!("{program:?}: {errno}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_comes_back_as_it_was_written() {
        let args = ExecArgs {
            account: Some((101, 104)),
            parent: 7,
            death: Death::Quit,
            dir: "/var/tmp".into(),
            command: vec!["/bin/true".into(), "--uid".into(), "--".into()],
        };
        assert_eq!(ExecArgs::parse(args.to_words().into_iter()), Some(args));
        assert_eq!(ExecArgs::parse(["--".into()].into_iter()), None);
        assert_eq!(
            ExecArgs::parse(["--uid".into(), "1".into()].into_iter()),
            None
        );
    }
}
