//! What the rest of the agent sees of its member, published after each step.

use atoll_ownership::TermRow;
use atoll_ownership::member::{Durable, Mark, Member, Role};
use atoll_streams::agent::{MemberRole, PostgresExit};
use atoll_topology::{MemberId, Term};

/// A snapshot of the member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// Nonce of its volume; none before it is admitted.
    pub volume: Option<String>,
    /// Its promise.
    pub promise: Term,
    /// Whose log it takes.
    pub upstream: Option<MemberId>,
    /// What it is.
    pub role: MemberRole,
    /// The term that it was promoted for.
    pub led: Option<Term>,
    /// The term whose clients it serves.
    pub serving: Option<Term>,
    /// The term that it leads, its opening transaction acknowledged.
    pub leading: Option<Term>,
    /// The term under which it calls the others while it leads.
    pub calling: Option<Term>,
    /// Its term rows, once it leads.
    pub history: Vec<TermRow>,
    /// How its PostgreSQL ended last.
    pub exit: Option<PostgresExit>,
}

impl View {
    /// Before the member is admitted.
    pub fn unborn() -> Self {
        Self {
            volume: None,
            promise: Term::ZERO,
            upstream: None,
            role: MemberRole::Down,
            led: None,
            serving: None,
            leading: None,
            calling: None,
            history: Vec::new(),
            exit: None,
        }
    }

    /// After a step.
    pub fn of(member: &Member, volume: &str) -> Self {
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
            calling: member.calling(),
            history: Vec::new(),
            exit: None,
        }
    }
}
