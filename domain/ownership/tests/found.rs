//! What the walker found, each once more by hand.

use atoll_ownership::member::{Durable, Input, Mark, Member, Output};
use atoll_ownership::{Call, Refused};
use atoll_topology::{MemberId, Term};

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
