//! What the rest of the agent sees of its member, published after each step.

use atoll_ownership::member::{Durable, Mark, Member, Role};
use atoll_ownership::{LogEnd, TermRow};
use atoll_streams::agent::{MemberRole, PostgresExit};
use atoll_topology::{MemberId, Term};

/// A snapshot of the member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct View {
    /// Nonce of its volume; none before it is admitted.
    pub(crate) volume: Option<String>,
    pub(crate) promise: Term,
    pub(crate) upstream: Option<MemberId>,
    pub(crate) role: MemberRole,
    /// The term that it was promoted for.
    pub(crate) led: Option<Term>,
    /// The term whose clients it serves.
    pub(crate) serving: Option<Term>,
    /// The term that it leads, its opening transaction acknowledged.
    pub(crate) leading: Option<Term>,
    /// Its term rows, once it leads.
    pub(crate) history: Vec<TermRow>,
    pub(crate) exit: Option<PostgresExit>,
}

impl View {
    /// Before the member is admitted.
    pub(crate) fn unborn() -> Self {
        Self {
            volume: None,
            promise: Term::ZERO,
            upstream: None,
            role: MemberRole::Down,
            led: None,
            serving: None,
            leading: None,
            history: Vec::new(),
            exit: None,
        }
    }

    /// After a step.
    pub(crate) fn of(member: &Member, volume: &str) -> Self {
        let Durable {
            promise,
            upstream,
            mark,
        } = member.durable().clone();
        let led = match member.role() {
            Role::Primary { led, .. } => Some(*led),
            _ => None,
        };
        Self {
            volume: Some(volume.to_owned()),
            promise,
            upstream,
            role: if mark == Mark::Lost {
                MemberRole::Lost
            } else {
                member.role().into()
            },
            led,
            serving: member.serving(),
            leading: member.leading(),
            history: Vec::new(),
            exit: None,
        }
    }
}

/// The end of the log, as last read; none while PostgreSQL does not answer.
pub(crate) type Seen = Option<LogEnd>;
