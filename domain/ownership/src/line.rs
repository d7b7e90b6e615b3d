//! Whether one log is a continuation of another: the rule that decides between streaming,
//! rewinding and cloning.

use crate::messages::{JoinPath, LogEnd, TermRow};

/// How a log that ends at `own` comes to fit an upstream whose term rows are `history`.
///
/// A timeline is written by one process, so whoever is on a timeline of the list is on the
/// upstream's line, up to the fork of the next row with *another* timeline (no limit for the last
/// one). It need not have replayed that timeline's row yet, and a primary that won again keeps its
/// timeline, so the fork of a row on the same timeline bounds nobody. But a row of its own that the
/// list does not have was never on that line. Otherwise it is rewound; where the timelines' ids are
/// equal a rewind would see no difference, so it is cloned.
pub fn join_path(own: LogEnd, history: &[TermRow]) -> JoinPath {
    let last_timeline = history.last().map(|row| row.timeline);
    let diverged = || {
        if last_timeline == Some(own.timeline) {
            JoinPath::Clone
        } else {
            JoinPath::Rewind
        }
    };
    // Term 1: born, and never led by anyone. The common template, which the first fork bounds.
    let born = own.position.term.get() <= 1;
    if !born && !history.iter().any(|row| row.term == own.position.term) {
        return diverged();
    }
    let next = match history.iter().rposition(|row| row.timeline == own.timeline) {
        Some(last) => history.get(last + 1),
        None if born && own.timeline <= 1 => history.first(),
        None => return diverged(),
    };
    match next {
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
        // Beyond the second row's fork, but on the one line that this timeline is.
        assert_eq!(join_path(end(2, 2, 60), &history), JoinPath::Stream);
    }

    #[test]
    fn a_log_that_has_passed_the_fork_and_not_yet_the_row_is_on_the_line() {
        let history = [row(2, 2, 10), row(3, 3, 50)];
        assert_eq!(join_path(end(2, 3, 60), &history), JoinPath::Stream);
        assert_eq!(join_path(end(1, 2, 11), &history), JoinPath::Stream);
        assert_eq!(join_path(end(1, 2, 51), &history), JoinPath::Rewind);
        // A promotion that was lost before its row: nobody's list has its timeline.
        assert_eq!(join_path(end(2, 4, 60), &history), JoinPath::Rewind);
    }
}
