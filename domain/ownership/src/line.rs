//! Whether one log is a continuation of another: the rule that decides between streaming,
//! rewinding and cloning.

use crate::messages::{JoinPath, LogEnd, TermRow};

/// How a log that ends at `own` comes to fit an upstream whose term rows are `history`.
///
/// It may stream only if its own last (term, timeline) is in the upstream's list and its end is
/// not beyond the fork of the *next* row in that list (no limit for the last). Otherwise it is
/// rewound; where the timelines' ids are equal a rewind would see no difference, so it is cloned.
pub fn join_path(own: LogEnd, history: &[TermRow]) -> JoinPath {
    let last_timeline = history.last().map(|row| row.timeline);
    let diverged = || {
        if last_timeline == Some(own.timeline) {
            JoinPath::Clone
        } else {
            JoinPath::Rewind
        }
    };
    if own.position.term.get() <= 1 {
        // Born, and never led by anyone: the common template, which the first fork bounds.
        return match history.first() {
            Some(first) if own.position.lsn > first.fork => diverged(),
            _ => JoinPath::Stream,
        };
    }
    let Some(at) = history
        .iter()
        .position(|row| row.term == own.position.term && row.timeline == own.timeline)
    else {
        return diverged();
    };
    match history.get(at + 1) {
        Some(next) if own.position.lsn > next.fork => diverged(),
        _ => JoinPath::Stream,
    }
}

#[cfg(test)]
mod tests {
    use atoll_topology::{Lsn, MemberId, Position, Term};

    use super::*;

    fn row(term: u64, timeline: u32, fork: u64) -> TermRow {
        TermRow {
            term: Term::new(term),
            timeline,
            fork: Lsn(fork),
            primary: MemberId::parse("g-1").unwrap(),
            members: vec![],
            k: 1,
            op: String::new(),
        }
    }

    fn end(term: u64, timeline: u32, lsn: u64) -> LogEnd {
        LogEnd {
            position: Position {
                term: Term::new(term),
                lsn: Lsn(lsn),
            },
            timeline,
        }
    }

    #[test]
    fn a_log_on_the_line_streams_and_one_beyond_the_fork_is_rewound() {
        let history = [row(2, 2, 10), row(3, 3, 50)];
        assert_eq!(join_path(end(2, 2, 50), &history), JoinPath::Stream);
        assert_eq!(join_path(end(2, 2, 51), &history), JoinPath::Rewind);
        assert_eq!(join_path(end(3, 3, 900), &history), JoinPath::Stream);
        assert_eq!(join_path(end(4, 4, 60), &history), JoinPath::Rewind);
        assert_eq!(join_path(end(1, 1, 10), &history), JoinPath::Stream);
        assert_eq!(join_path(end(1, 1, 11), &history), JoinPath::Rewind);
    }

    #[test]
    fn where_the_timelines_are_equal_a_rewind_would_see_nothing_so_it_is_cloned() {
        // A primary that won again kept its timeline; the stray log holds a row of that timeline
        // which the list does not know.
        let history = [row(2, 2, 10), row(4, 2, 50)];
        assert_eq!(join_path(end(3, 2, 60), &history), JoinPath::Clone);
        assert_eq!(join_path(end(2, 2, 60), &history), JoinPath::Clone);
    }
}
