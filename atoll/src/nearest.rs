//! Whom a question goes to when nobody says: the only local world of this user that is up.

use std::ffi::OsString;

use atoll_world::LocalWorld;

/// The commands that ask control.
const ASKING: [&str; 6] = ["status", "get", "explain", "shard", "switch", "schema"];
/// Words that name a server.
const NAMING: [&str; 2] = ["--server", "--world"];
/// The variable that names a server.
const SERVER: &str = "ATOLL_SERVER";

/// Adds `--world DIR` to a command that asks and does not say whom, where there is no doubt.
pub(crate) fn with_server(words: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut words: Vec<OsString> = words.collect();
    if asks(&words)
        && std::env::var_os(SERVER).is_none()
        && let [world] = LocalWorld::all_up().as_slice()
    {
        words.push("--world".into());
        words.push(world.directory().root().into());
    }
    words
}

fn asks(words: &[OsString]) -> bool {
    let text: Vec<&str> = words.iter().filter_map(|w| w.to_str()).collect();
    let asks = text.get(1).is_some_and(|word| ASKING.contains(word));
    let word = |w: &&str| {
        NAMING
            .iter()
            .any(|n| w == n || w.starts_with(&format!("{n}=")))
    };
    // After `--help` nothing is asked, and after `--` everything is a name.
    let plain = !text.iter().any(|w| ["--", "-h", "--help"].contains(w));
    asks && plain && !text.iter().any(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_question_that_names_no_server_is_completed() {
        let words = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert!(asks(&words("atoll status -o json")));
        for line in [
            "atoll dev status",
            "atoll status --world=/w",
            "atoll get cells --server 1.2.3.4:5",
        ] {
            assert!(!asks(&words(line)), "{line}");
        }
    }
}
