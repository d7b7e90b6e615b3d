//! `Call` and `Answer`.

use atoll_ownership::{Answer, Call, JoinPath, Refused};
use atoll_topology::{GroupId, MemberId, Term};

use super::rows;
use crate::proto::agent as wire;
use crate::text::{DecodeError, Place};

/// A call or an answer with its ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent<T> {
    /// The data group.
    pub group: GroupId,
    /// Who sends it.
    pub from: MemberId,
    /// What is sent.
    pub message: T,
}

/// The message of a call.
pub fn call_message(
    group: &GroupId,
    from: &MemberId,
    to: &MemberId,
    call: &Call,
) -> wire::MemberCall {
    use wire::member_call::Call as Wire;
    let call = match call {
        Call::Prepare { term } => Wire::Prepare(wire::Prepare { term: term.get() }),
        Call::Demote { term, target } => Wire::Demote(wire::Demote {
            term: term.get(),
            target: target.to_string(),
        }),
        Call::Follow {
            term,
            upstream,
            history,
            settled,
        } => Wire::Follow(wire::Follow {
            term: term.get(),
            upstream: upstream.to_string(),
            history: rows::history(history),
            settled: *settled,
        }),
        Call::Halt { term } => Wire::Halt(wire::Halt { term: term.get() }),
        Call::Keep { term, open } => Wire::Keep(wire::Keep {
            term: term.get(),
            open: open.get(),
        }),
    };
    wire::MemberCall {
        group: group.to_string(),
        from: from.to_string(),
        to: to.to_string(),
        call: Some(call),
    }
}

/// The call of a message, and whom it is meant for.
pub fn call(message: &wire::MemberCall) -> Result<(Sent<Call>, MemberId), DecodeError> {
    use wire::member_call::Call as Wire;
    let place = Place("member call");
    let call = match message.call.as_ref().ok_or_else(|| place.absent("call"))? {
        Wire::Prepare(call) => Call::Prepare {
            term: Term::new(call.term),
        },
        Wire::Demote(call) => Call::Demote {
            term: Term::new(call.term),
            target: place.id(&call.target)?,
        },
        Wire::Follow(call) => Call::Follow {
            term: Term::new(call.term),
            upstream: place.id(&call.upstream)?,
            history: rows::read_history(place, &call.history)?,
            settled: call.settled,
        },
        Wire::Halt(call) => Call::Halt {
            term: Term::new(call.term),
        },
        Wire::Keep(call) => Call::Keep {
            term: Term::new(call.term),
            open: Term::new(call.open),
        },
    };
    let sent = Sent {
        group: place.id(&message.group)?,
        from: place.id(&message.from)?,
        message: call,
    };
    Ok((sent, place.id(&message.to)?))
}

/// The message of an answer.
pub fn answer_message(group: &GroupId, from: &MemberId, answer: &Answer) -> wire::MemberAnswer {
    use wire::member_answer::Answer as Wire;
    let answer = match answer {
        Answer::Prepared {
            term,
            volume,
            recruit,
        } => Wire::Prepared(wire::Prepared {
            term: term.get(),
            volume: volume.clone(),
            recruit: recruit.as_ref().map(rows::recruit),
        }),
        Answer::Demoted { term, end, history } => Wire::Demoted(wire::Demoted {
            term: term.get(),
            end: Some(rows::end(*end)),
            history: rows::history(history),
        }),
        Answer::Following { term, path } => {
            let path = match path {
                JoinPath::Stream => wire::JoinPath::Stream,
                JoinPath::Rewind => wire::JoinPath::Rewind,
                JoinPath::Clone => wire::JoinPath::Clone,
            };
            Wire::Following(wire::Following {
                term: term.get(),
                path: path.into(),
            })
        }
        Answer::Halted { term } => Wire::Halted(wire::Halted { term: term.get() }),
        Answer::Kept { term } => Wire::Kept(wire::Kept { term: term.get() }),
        Answer::Refused { term, why } => Wire::Refused(refused(*term, why)),
    };
    wire::MemberAnswer {
        group: group.to_string(),
        from: from.to_string(),
        answer: Some(answer),
    }
}

fn refused(term: Term, why: &Refused) -> wire::Refused {
    let mut message = wire::Refused {
        term: term.get(),
        ..wire::Refused::default()
    };
    let why = match why {
        Refused::Promised { promise } => {
            message.promise = promise.get();
            wire::RefusedWhy::Promised
        }
        Refused::NotPrimary => wire::RefusedWhy::NotPrimary,
        Refused::Leading => wire::RefusedWhy::Leading,
        Refused::NotReady => wire::RefusedWhy::NotReady,
        Refused::Lost => wire::RefusedWhy::Lost,
        Refused::Failed { reason } => {
            message.reason.clone_from(reason);
            wire::RefusedWhy::Failed
        }
    };
    message.set_why(why);
    message
}

fn read_refused(place: Place<'_>, refused: &wire::Refused) -> Result<Refused, DecodeError> {
    Ok(match refused.why() {
        wire::RefusedWhy::Promised => Refused::Promised {
            promise: Term::new(refused.promise),
        },
        wire::RefusedWhy::NotPrimary => Refused::NotPrimary,
        wire::RefusedWhy::Leading => Refused::Leading,
        wire::RefusedWhy::NotReady => Refused::NotReady,
        wire::RefusedWhy::Lost => Refused::Lost,
        wire::RefusedWhy::Failed => Refused::Failed {
            reason: refused.reason.clone(),
        },
        wire::RefusedWhy::Unspecified => return Err(place.absent("refused.why")),
    })
}

/// The answer of a message.
pub fn answer(message: &wire::MemberAnswer) -> Result<Sent<Answer>, DecodeError> {
    use wire::member_answer::Answer as Wire;
    let place = Place("member answer");
    let answer = match message
        .answer
        .as_ref()
        .ok_or_else(|| place.absent("answer"))?
    {
        Wire::Prepared(answer) => Answer::Prepared {
            term: Term::new(answer.term),
            volume: answer.volume.clone(),
            recruit: answer
                .recruit
                .as_ref()
                .map(|recruit| rows::read_recruit(place, recruit))
                .transpose()?,
        },
        Wire::Demoted(answer) => Answer::Demoted {
            term: Term::new(answer.term),
            end: rows::read_end(answer.end.ok_or_else(|| place.absent("demoted.end"))?),
            history: rows::read_history(place, &answer.history)?,
        },
        Wire::Following(answer) => Answer::Following {
            term: Term::new(answer.term),
            path: match answer.path() {
                wire::JoinPath::Stream => JoinPath::Stream,
                wire::JoinPath::Rewind => JoinPath::Rewind,
                wire::JoinPath::Clone => JoinPath::Clone,
                wire::JoinPath::Unspecified => return Err(place.absent("following.path")),
            },
        },
        Wire::Halted(answer) => Answer::Halted {
            term: Term::new(answer.term),
        },
        Wire::Kept(answer) => Answer::Kept {
            term: Term::new(answer.term),
        },
        Wire::Refused(answer) => Answer::Refused {
            term: Term::new(answer.term),
            why: read_refused(place, answer)?,
        },
    };
    Ok(Sent {
        group: place.id(&message.group)?,
        from: place.id(&message.from)?,
        message: answer,
    })
}
