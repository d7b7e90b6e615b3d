//! What the walker found, each once more by hand.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use atoll_ownership::driver::{self, Driver};
use atoll_ownership::member::{Durable, Input, Mark, Member, Output};
use atoll_ownership::{
    Admitted, Answer, Call, DriveOrder, JoinPath, LogEnd, OpKind, Recruit, Refused, TermRow,
};
use atoll_topology::{GroupId, Lsn, MemberId, Position, Term};

fn started(id: MemberId, promise: u64) -> Member {
    let durable = Durable {
        promise: Term::new(promise),
        upstream: None,
        mark: Mark::None,
    };
    let mut member = Member::new(id, durable);
    member.step(Input::Started);
    member.step(Input::StandbyUp);
    member
}

/// A member led term 2, its PostgreSQL died, and the order of term 2 came once more. Promoted
/// again it would have begun timeline 3, which is the next term's.
#[test]
fn a_promise_that_was_used_makes_no_second_primary() {
    let term = Term::new(2);
    let mut member = started(MemberId::parse("a").unwrap(), 1);
    member.step(Input::Call(Call::Prepare { term }));
    assert_eq!(
        member.step(Input::Promote { term }),
        [Output::Promote { term }]
    );
    member.step(Input::Promoted { term });
    member.step(Input::PostgresExited);
    member.step(Input::StandbyUp);
    let again = member.step(Input::Call(Call::Prepare { term }));
    assert!(
        again.contains(&Output::AnswerPrepared { term }),
        "a recruit all the same"
    );
    assert_eq!(
        member.step(Input::Promote { term }),
        [Output::Deny(Refused::NotReady)]
    );
}

/// The same where the agent's process was started anew in between.
#[test]
fn a_promise_that_was_read_from_the_disk_makes_no_primary() {
    let term = Term::new(3);
    let mut member = started(MemberId::parse("a").unwrap(), 3);
    let prepared = member.step(Input::Call(Call::Prepare { term }));
    assert!(prepared.contains(&Output::AnswerPrepared { term }));
    assert_eq!(
        member.step(Input::Promote { term }),
        [Output::Deny(Refused::NotReady)]
    );
}

fn id(name: &str) -> MemberId {
    MemberId::parse(name).unwrap()
}

fn order(term: u64) -> DriveOrder {
    let admitted = |name| Admitted {
        id: id(name),
        volume: name.to_owned(),
    };
    DriveOrder {
        group: GroupId::parse("g1").unwrap(),
        kind: OpKind::Failover,
        term: Term::new(term),
        open: Some((Term::new(2), id("a"))),
        target: id("a"),
        members: ["a", "b", "c"].map(admitted).to_vec(),
        k: 1,
        grants: vec![],
        op: "#1".to_owned(),
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

/// A recruit of term 2, which was opened on timeline 2.
fn recruit(end: LogEnd, left: u64, primary: bool) -> Recruit {
    let mut row = order(2).term_row(2, Lsn(10));
    row.term = Term::new(2);
    Recruit {
        end,
        history: vec![row],
        left: Lsn(left),
        primary,
    }
}

fn answered(driver: &mut Driver, from: &str, answer: Answer) -> Vec<driver::Output> {
    let from = id(from);
    driver.step(driver::Input::Answer { from, answer })
}

fn prepared(driver: &mut Driver, from: &str, recruit: Recruit) -> Vec<driver::Output> {
    let term = driver.order().term;
    let volume = from.to_owned();
    let recruit = Some(recruit);
    let answer = Answer::Prepared {
        term,
        volume,
        recruit,
    };
    answered(driver, from, answer)
}

/// A driver whose target, A, has won against C and is promoted; what it asks of the others.
fn promoted(own: Recruit) -> (Driver, Vec<driver::Output>) {
    let mut driver = Driver::new(order(5));
    driver.step(driver::Input::Start);
    prepared(&mut driver, "a", own);
    let mut outputs = prepared(&mut driver, "c", recruit(end(2, 3, 40), 40, false));
    outputs.extend(driver.step(driver::Input::Promoted));
    (driver, outputs)
}

fn follows(outputs: &[driver::Output]) -> Vec<(&str, bool, &TermRow)> {
    let mut found = Vec::new();
    for output in outputs {
        if let driver::Output::Call { to, call } = output
            && let Call::Follow {
                settled, history, ..
            } = call
        {
            found.push((to.as_str(), *settled, history.last().unwrap()));
        }
    }
    found
}

/// A running primary won again, both others had to be rewound, and were rewound for ever: they were
/// told of the timeline of a promotion that there was not.
#[test]
fn the_row_of_a_running_primary_that_wins_again_names_the_timeline_that_it_has() {
    let (_, outputs) = promoted(recruit(end(2, 2, 60), 60, true));
    let (_, _, coming) = follows(&outputs)[0];
    assert_eq!((coming.timeline, coming.fork), (2, Lsn(60)));
    let (_, outputs) = promoted(recruit(end(2, 2, 60), 60, false));
    let (_, _, coming) = follows(&outputs)[0];
    assert_eq!((coming.timeline, coming.fork), (5, Lsn(60)));
}

/// The target had been promoted before, and lost before its row: it left the last row's timeline
/// there, and not at its end.
#[test]
fn the_coming_row_forks_where_the_last_rows_timeline_was_left() {
    let (_, outputs) = promoted(recruit(end(2, 4, 60), 55, false));
    let (_, _, coming) = follows(&outputs)[0];
    assert_eq!((coming.timeline, coming.fork), (5, Lsn(55)));
}

fn off_the_line(driver: &mut Driver, from: &str) -> Vec<driver::Output> {
    let term = driver.order().term;
    let path = JoinPath::Rewind;
    answered(driver, from, Answer::Following { term, path })
}

/// B's directory was lost, C had to be rewound, and the driver went on hoping for B.
#[test]
fn a_member_whose_log_was_lost_is_not_waited_for() {
    let (mut driver, _) = promoted(recruit(end(2, 2, 60), 60, true));
    assert_eq!(off_the_line(&mut driver, "c"), []);
    let (term, why) = (Term::new(5), Refused::Lost);
    let outputs = answered(&mut driver, "b", Answer::Refused { term, why });
    let asked = follows(&outputs);
    assert_eq!((asked.len(), asked[0].0, asked[0].1), (1, "c", true));
}

/// Both were rewound at once, the primary failed as well, and nobody's log could be read any more.
#[test]
fn before_the_row_is_acknowledged_no_more_logs_are_given_up_than_its_quorum_needs() {
    let (mut driver, _) = promoted(recruit(end(2, 2, 60), 60, true));
    off_the_line(&mut driver, "c");
    let outputs = off_the_line(&mut driver, "b");
    assert_eq!(follows(&outputs).len(), 1);
    let first = follows(&outputs)[0].0.to_owned();
    for from in ["b", "c"] {
        let outputs = off_the_line(&mut driver, from);
        assert_eq!(follows(&outputs)[0].0, first, "who has begun goes on");
        assert_eq!(follows(&outputs).len(), 1);
    }
}

fn follow(term: u64, upstream: &str, history: &[TermRow], settled: bool) -> Input {
    Input::Call(Call::Follow {
        term: Term::new(term),
        upstream: id(upstream),
        history: history.to_vec(),
        settled,
    })
}

/// A member was rewound, its upstream lost the term before the member had come up, and it sat
/// there, sealed, waiting for more of a log that nobody would send.
#[test]
fn a_member_that_cannot_come_up_after_its_rewind_is_cloned() {
    let history = recruit(end(2, 2, 60), 60, true).history;
    let mut member = started(id("b"), 2);
    member.step(follow(2, "a", &history, true));
    member.step(Input::Compared(end(2, 3, 40)));
    member.step(Input::Rebuilt);
    assert_eq!(member.durable().mark, Mark::Rebuilt);
    // While it may come up by itself, it is left alone.
    let still = member.step(follow(2, "a", &history, true));
    assert!(!still.iter().any(|o| matches!(o, Output::Rebuild { .. })));
    member.step(Input::Call(Call::Prepare { term: Term::new(3) }));
    let (term, path) = (Term::new(3), JoinPath::Clone);
    let mut history = history;
    let row = |row: &TermRow| TermRow {
        term,
        timeline: 3,
        primary: id("c"),
        ..row.clone()
    };
    history.extend(history.last().map(row));
    let says = member.step(follow(3, "c", &history, false));
    assert!(says.contains(&Output::Answer(Answer::Following { term, path })));
    let rebuilt = member.step(follow(3, "c", &history, true));
    let from = id("c");
    assert!(rebuilt.contains(&Output::Rebuild {
        upstream: from,
        term,
        path
    }));
}

/// Five members, two awaited. A switch from A to T was called off: A, C and D kept (term 4), B and T
/// did not, so their promise stayed at 2; B carried and acknowledged A's log of term 4 all the same.
/// Then a `Follow(2, T)` of before the call-off arrived at B, which would have been cloned from T.
#[test]
fn a_log_with_a_newer_terms_row_is_not_given_up_for_an_older_terms_follow() {
    let history = recruit(end(2, 2, 60), 60, true).history;
    let mut member = started(id("b"), 2);
    member.step(follow(2, "a", &history, true));
    member.step(Input::Compared(end(2, 2, 50)));
    member.step(follow(2, "t", &history, true));
    let promise = Term::new(4);
    let (term, why) = (Term::new(2), Refused::Promised { promise });
    let outputs = member.step(Input::Compared(end(4, 2, 70)));
    assert_eq!(outputs, [Output::Answer(Answer::Refused { term, why })]);
    assert_eq!(member.durable().mark, Mark::None);
}

/// A led. B had been rewound, acknowledged a write and was not up yet; C had less, or had left the
/// line. Ahead of a switch to C, A told B to follow C, and B was cloned from C: the write was in A's
/// log only.
#[test]
fn a_log_is_given_up_only_for_that_of_whoever_wrote_the_last_row() {
    let history = recruit(end(2, 2, 60), 60, true).history;
    let (term, path) = (Term::new(2), JoinPath::Clone);
    let mut member = started(id("b"), 2);
    member.step(follow(2, "a", &history, true));
    member.step(Input::Compared(end(2, 3, 40)));
    member.step(Input::Rebuilt);
    let says = member.step(follow(2, "c", &history, true));
    assert!(says.contains(&Output::Answer(Answer::Following { term, path })));
    assert!(!says.iter().any(|o| matches!(o, Output::Rebuild { .. })));
    let rebuilt = member.step(follow(2, "a", &history, true));
    assert!(rebuilt.iter().any(|o| matches!(o, Output::Rebuild { .. })));
}

/// The same where its log has left the line.
#[test]
fn a_log_that_has_left_the_line_is_not_rewound_from_a_third_member() {
    let history = recruit(end(2, 2, 60), 60, true).history;
    let mut member = started(id("b"), 2);
    member.step(follow(2, "c", &history, true));
    let outputs = member.step(Input::Compared(end(2, 3, 40)));
    assert!(!outputs.iter().any(|o| matches!(o, Output::Rebuild { .. })));
    assert_eq!(member.durable().mark, Mark::None);
}

/// A call-off's `Keep` reached a member that was coming up: its link went on greeting under the term
/// before, was refused, and the member never came up.
#[test]
fn a_member_that_is_coming_up_links_under_the_term_that_it_keeps() {
    let history = recruit(end(2, 2, 60), 60, true).history;
    let mut member = started(id("b"), 2);
    member.step(follow(2, "a", &history, true));
    member.step(Input::Compared(end(2, 3, 40)));
    member.step(Input::Rebuilt);
    let (term, open) = (Term::new(3), Term::new(2));
    let upstream = id("a");
    let kept = member.step(Input::Call(Call::Keep { term, open }));
    assert!(kept.contains(&Output::Link { upstream, term }));
}

/// Its PostgreSQL had died, a rewind began before that was told, and the member took no notice of the
/// rewind's end: it answered that it was coming up, for ever.
#[test]
fn a_rewind_goes_on_though_the_end_of_postgresql_is_told_late() {
    let history = recruit(end(2, 2, 60), 60, true).history;
    let mut member = started(id("b"), 2);
    member.step(follow(2, "a", &history, true));
    member.step(Input::Compared(end(2, 3, 40)));
    assert_eq!(member.step(Input::PostgresExited), []);
    assert!(member.step(Input::Rebuilt).contains(&Output::StartStandby));
}

/// A member was prepared for term 10 while its PostgreSQL was being promoted for term 9. It showed
/// a standby's timeline, won, and kept another one than everybody had been told.
#[test]
fn a_member_that_is_being_promoted_is_no_recruit_until_that_is_over() {
    let (nine, ten) = (Term::new(9), Term::new(10));
    let mut member = promoting(nine);
    for _ in 0..2 {
        let answers = member.step(Input::Call(Call::Prepare { term: ten }));
        assert!(answers.contains(&Output::ClosePort));
        assert!(!member.readable());
        let denied = [Output::Deny(Refused::NotReady)];
        assert_eq!(member.step(Input::Promote { term: ten }), denied);
    }
    member.step(Input::Promoted { term: nine });
    assert!(member.readable());
    member.step(Input::Call(Call::Prepare { term: ten }));
    // A running primary by now: only its row is new.
    assert_eq!(member.step(Input::Promote { term: ten }), []);
}

fn promoting(term: Term) -> Member {
    let mut member = started(id("g-1"), 2);
    member.step(Input::Call(Call::Prepare { term }));
    member.step(Input::Promote { term });
    member
}

/// A promotion fails, as on a full disk, before or after the next term is heard of. PostgreSQL may go on
/// with it, or be a standby: it ends, and is a recruit when it has come back.
#[test]
fn a_member_whose_promotion_failed_comes_back_as_a_standby() {
    let (nine, ten) = (Term::new(9), Term::new(10));
    for overtaken in [false, true] {
        let mut member = promoting(nine);
        if overtaken {
            member.step(Input::Call(Call::Prepare { term: ten }));
        }
        let outputs = member.step(Input::NotPromoted { term: nine });
        assert!(outputs.ends_with(&[Output::StopPostgres, Output::StartStandby]));
        assert!(!member.readable());
        member.step(Input::StandbyUp);
        let again = Term::new(11);
        member.step(Input::Call(Call::Prepare { term: again }));
        assert!(member.readable());
        let promotes = [Output::Promote { term: again }];
        assert_eq!(member.step(Input::Promote { term: again }), promotes);
    }
}

/// A member that leads term 3, and has promised to keep it through term 5.
fn keeping() -> Member {
    let (three, five) = (Term::new(3), Term::new(5));
    let mut member = promoting(three);
    member.step(Input::Promoted { term: three });
    member.step(Input::OpeningAcknowledged { term: three });
    assert_eq!(member.calling(), Some(three));
    member.step(Input::Open { term: three });
    let keep = Call::Keep {
        term: five,
        open: three,
    };
    member.step(Input::Call(keep));
    member
}

/// A primary was isolated for a moment when its call-off's row was acknowledged, and never opened again.
#[test]
fn an_isolated_primary_whose_call_off_is_acknowledged_opens_again() {
    let five = Term::new(5);
    let mut member = keeping();
    assert_eq!(member.step(Input::Isolated), [Output::ClosePort]);
    assert_eq!(
        member.step(Input::Heard),
        [],
        "nobody knows who has kept it"
    );
    member.step(Input::KeptOpen { term: five });
    assert_eq!(member.step(Input::Heard), [Output::OpenPort { term: five }]);
}

/// The row of a call-off came over a link that stood, before its leader had read it: the leader's list
/// is out of date, and the link stays.
#[test]
fn a_member_that_has_the_row_of_a_call_off_keeps_its_link() {
    let mut member = started(id("g-2"), 3);
    let rows = [TermRow {
        term: Term::new(3),
        timeline: 3,
        fork: Lsn(50),
        primary: id("g-1"),
        members: vec![],
        k: 1,
        op: String::new(),
    }];
    member.step(follow(3, "g-1", &rows, true));
    member.step(Input::Compared(end(3, 3, 60)));
    member.step(follow(5, "g-1", &rows, false));
    let outputs = member.step(Input::Compared(end(5, 3, 70)));
    assert!(!outputs.contains(&Output::CutLinks { except: None }));
    let upstream = member.durable().upstream.clone();
    assert_eq!(upstream, Some(id("g-1")));
}

/// While a switch is called off, the leader calls under the term that it keeps.
#[test]
fn a_leader_calls_under_the_term_that_it_has_promised_to_keep() {
    let (three, five) = (Term::new(3), Term::new(5));
    let mut member = keeping();
    let terms = |member: &Member| (member.leading(), member.calling());
    assert_eq!(terms(&member), (Some(three), Some(five)));
    member.step(Input::KeptOpen { term: five });
    assert_eq!(terms(&member), (Some(five), Some(five)));
    member.step(Input::Call(Call::Prepare { term: Term::new(6) }));
    assert_eq!(member.calling(), None);
}
