//! What the rest of a simulated member sees of its state machine, published after each step.

use atoll_ownership::TermRow;
use atoll_ownership::member::{Mark, Member, Role};
use atoll_streams::agent::MemberRole;
use atoll_topology::{MemberId, Term};

/// A snapshot of the member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) volume: Option<String>,
    pub(crate) promise: Term,
    pub(crate) upstream: Option<MemberId>,
    pub(crate) role: MemberRole,
    pub(crate) led: Option<Term>,
    pub(crate) leading: Option<Term>,
    pub(crate) history: Vec<TermRow>,
}

impl View {
    pub(crate) fn unborn() -> Self {
        Self {
            volume: None,
            promise: Term::ZERO,
            upstream: None,
            role: MemberRole::Down,
            led: None,
            leading: None,
            history: Vec::new(),
        }
    }

    pub(crate) fn of(member: &Member, volume: &str) -> Self {
        let durable = member.durable();
        let led = match member.role() {
            Role::Primary { led, .. } => Some(*led),
            _ => None,
        };
        Self {
            volume: Some(volume.to_owned()),
            promise: durable.promise,
            upstream: durable.upstream.clone(),
            role: match durable.mark {
                Mark::Lost => MemberRole::Lost,
                _ => member.role().into(),
            },
            led,
            leading: member.leading(),
            history: Vec::new(),
        }
    }
}
