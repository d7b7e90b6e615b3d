//! What is under way between agents, drivers, control and the store.

use atoll_topology::{MemberId, ShardId, Term};

use super::choice::Key;
use super::control::{Reload, Stored};
use super::log::Cell;
use super::node::At;
use crate::messages::{Admitted, Answer, Call, DriveOrder};
use std::rc::Rc;

/// The kind of `Call::Follow`, as a key names it.
pub(super) const FOLLOW: u8 = 2;
/// The last kind of message that goes from member to member.
pub(super) const REFUSED: u8 = 10;

/// Control, as a sender or receiver.
pub(super) const CONTROL: At = u8::MAX;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Message {
    Call {
        from: At,
        to: At,
        call: Call,
    },
    Answer {
        from: At,
        to: At,
        answer: Answer,
    },
    /// Control orders an op; with the cells that its shards leave, as the record says.
    Drive {
        to: At,
        order: Rc<DriveOrder>,
        leaving: Vec<(ShardId, Cell)>,
    },
    /// The target serves.
    Opened {
        from: At,
        group: u8,
        op: String,
        primary: MemberId,
    },
    /// A compare-and-swap on its way to the store.
    Put {
        replica: u8,
        group: u8,
        revision: u64,
        next: Rc<Stored>,
    },
    Reload {
        to: At,
        reload: Reload,
    },
    /// A policy change is in the log.
    Reloaded {
        from: At,
        group: u8,
        number: u64,
    },
    /// A member whose volume was lost comes back with an empty one.
    Admit {
        to: At,
        admitted: Admitted,
        term: Term,
    },
}

impl Message {
    pub(super) fn key(&self) -> Key {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the numbers of a walk are small, and a key need not be unique"
        )]
        let small = |number: u64| number as u8;
        let (kind, from, to, term) = match self {
            Self::Call { from, to, call } => {
                let kind = match call {
                    Call::Prepare { .. } => 0,
                    Call::Demote { .. } => 1,
                    Call::Follow { .. } => FOLLOW,
                    Call::Halt { .. } => 3,
                    Call::Keep { .. } => 4,
                };
                (kind, *from, *to, call.term().get())
            }
            Self::Answer { from, to, answer } => {
                let kind = match answer {
                    Answer::Prepared { .. } => 5,
                    Answer::Demoted { .. } => 6,
                    Answer::Following { .. } => 7,
                    Answer::Halted { .. } => 8,
                    Answer::Kept { .. } => 9,
                    Answer::Refused { .. } => REFUSED,
                };
                (kind, *from, *to, answer.term().get())
            }
            Self::Drive { to, order, .. } => (11, CONTROL, *to, order.term.get()),
            Self::Opened {
                from, group, op, ..
            } => {
                let number = op.rsplit('#').next().and_then(|n| n.parse().ok());
                (12, *from, *group, number.unwrap_or(0))
            }
            Self::Put {
                replica,
                group,
                revision,
                ..
            } => (13, *replica, *group, *revision),
            Self::Reload { to, reload } => (14, CONTROL, *to, reload.policy.number),
            Self::Reloaded {
                from,
                group,
                number,
            } => (15, *from, *group, *number),
            Self::Admit { to, term, .. } => (16, CONTROL, *to, term.get()),
        };
        Key {
            kind,
            from,
            to,
            term: small(term),
        }
    }
}
