//! A member of a data group: what it promises, when it carries a log, when it leads.
//!
//! The agent feeds calls and events into [`Member::step`] and performs the outputs **in order, one
//! after the other**; where one fails, it performs none of the rest, cuts everything and answers
//! `Refused::Failed`. The next input waits until the outputs of the last one are done (the three
//! long ones, `Promote`, `OpeningTransaction` and `Rebuild`, run beside and report by an input).
//! What stands in `Durable` survives a crash, the rest does not: `Prepared` is never kept over a
//! restart, so a promotion is only for the process that made the promise.

use atoll_topology::{MemberId, Term};
use serde::{Deserialize, Serialize};

use crate::messages::{Answer, Call, Grant, JoinPath, LogEnd, Refused, TermRow};

/// What stands in the promise file.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Durable {
    /// The highest term that this member takes part in, and the lowest.
    pub promise: Term,
    /// Whose log it takes, under that promise.
    pub upstream: Option<MemberId>,
    /// What stands in the way of starting its PostgreSQL as it is.
    pub mark: Mark,
}

/// What stands in the way of starting a member's PostgreSQL as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mark {
    /// Nothing.
    None,
    /// A rewind or a clone was begun and not finished; it is repeated before any start.
    Rebuilding,
    /// It was rewound or cloned, and has not come up since: it may need more of the recorded
    /// upstream's log to be readable. Where it cannot have that any more, it is cloned.
    Rebuilt,
    /// The directory or the promise was lost: it promises, but it does not count and stays out.
    Lost,
}

/// What a member does at this moment.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "kebab-case")]
pub enum Role {
    /// Its PostgreSQL is not up; its log cannot be read.
    Down,
    /// A standby; linked to its durable upstream, or sealed.
    Standby {
        /// Whether it takes its upstream's log.
        linked: bool,
    },
    /// Being rewound or cloned.
    Rebuilding,
    /// Leads, or led until a newer promise.
    Primary {
        /// The term that it was promoted for.
        led: Term,
        /// How far it is.
        stage: Stage,
    },
}

/// How far a primary is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "stage", rename_all = "kebab-case")]
pub enum Stage {
    /// PostgreSQL leaves recovery.
    Promoting,
    /// Writable; its opening transaction is not acknowledged, so nobody may enter.
    Promoted,
    /// Its opening transaction is acknowledged.
    Opened,
    /// Serves clients.
    Serving,
    /// Serves nobody for now: it has not heard k standbys under its own term.
    Isolated,
    /// Promised a newer term.
    Closed,
    /// Promised a newer term while PostgreSQL leaves recovery: what its log shows, its timeline above
    /// all, is about to change.
    Overtaken,
    /// Demoted: feeds its target and nobody else.
    Demoted {
        /// The coming primary.
        target: MemberId,
    },
}

/// What happens to a member.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Input {
    /// The process has started: `Durable` was read, or is new.
    Started,
    /// Its PostgreSQL answers as a standby.
    StandbyUp,
    /// A driver or a leader calls.
    Call(Call),
    /// How its log fits the upstream that `Output::CompareLogs` named.
    Compared(LogEnd),
    /// Its PostgreSQL ended without having been told to.
    PostgresExited,
    /// The rewind or clone is done.
    Rebuilt,
    /// The rewind or clone failed; it will be tried again at the leader's next `Follow`.
    RebuildFailed,
    /// Local driver: lead `term`.
    Promote {
        /// The op's term.
        term: Term,
    },
    /// PostgreSQL has left recovery.
    Promoted {
        /// The term it was for.
        term: Term,
    },
    /// The promotion failed; nobody knows whether PostgreSQL goes on with it.
    NotPromoted {
        /// The term it was for.
        term: Term,
    },
    /// Local driver: write the opening transaction.
    OpeningTransaction {
        /// The op's term.
        term: Term,
        /// Shards that change hands.
        grants: Vec<Grant>,
    },
    /// The quorum has acknowledged the opening transaction.
    OpeningAcknowledged {
        /// The term it was for.
        term: Term,
    },
    /// Local driver: serve.
    Open {
        /// The op's term.
        term: Term,
    },
    /// Local driver, calling off: the term row of `term` is acknowledged in place.
    KeptOpen {
        /// The term that called off.
        term: Term,
    },
    /// A primary has not heard k standbys whose promise is its term, for the limit.
    Isolated,
    /// It hears them again.
    Heard,
}

/// What the agent has to do, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Output {
    /// Make this durable (fdatasync) before anything that follows; nothing to do where it is what
    /// the file holds.
    Persist(Durable),
    /// Stop listening, cut every client socket and the agent's own sessions; end no backend.
    ClosePort,
    /// Cut and hold all replication links, in both directions, but the one to `except`.
    CutLinks {
        /// The one that stays.
        except: Option<MemberId>,
    },
    /// Cut and hold the link to our own upstream; those who follow us stay.
    CutUpstream,
    /// Wait until the streaming receiver is gone, its log flushed and replayed.
    AwaitReceiverGone,
    /// Read the end of the log and the term rows; answer `Prepared` with them (no recruit where
    /// they cannot be read).
    AnswerPrepared {
        /// The term of the call.
        term: Term,
    },
    /// Read the end of the log and the term rows; answer `Demoted` with them.
    AnswerDemoted {
        /// The term of the call.
        term: Term,
    },
    /// Answer the call.
    Answer(Answer),
    /// Read the end of the log and feed it back as `Input::Compared`, before any other input.
    CompareLogs,
    /// Take the log of this upstream, under this promise; a link to it that stands is kept.
    Link {
        /// Whose log.
        upstream: MemberId,
        /// The promise.
        term: Term,
    },
    /// End PostgreSQL at once (SIGQUIT) and wait for its end.
    StopPostgres,
    /// Start PostgreSQL as a standby; `Input::StandbyUp` follows.
    StartStandby,
    /// Bring the log in line with this upstream's, then start as a standby; runs beside.
    Rebuild {
        /// Whose log.
        upstream: MemberId,
        /// The promise.
        term: Term,
        /// How.
        path: JoinPath,
    },
    /// Write the placeholder histories and promote; runs beside. `Input::Promoted` follows.
    Promote {
        /// The term, and the timeline that it will have.
        term: Term,
    },
    /// Write the opening transaction and wait for its quorum; runs beside.
    OpeningTransaction {
        /// The op's term.
        term: Term,
        /// Shards that change hands.
        grants: Vec<Grant>,
    },
    /// Accept clients, for this term.
    OpenPort {
        /// The open term.
        term: Term,
    },
    /// Tell the local driver that its order was refused.
    Deny(Refused),
}

/// A member, as its agent holds it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Member {
    id: MemberId,
    durable: Durable,
    role: Role,
    prepared: Option<Term>,
    /// The promise that this process made, until it is promoted for it.
    made: Option<Term>,
    comparing: Option<Comparing>,
    /// The term whose settled history its log was found to fit.
    settled: Option<Term>,
    weakened: Weakened,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Comparing {
    upstream: MemberId,
    term: Term,
    history: Vec<TermRow>,
    settled: bool,
}

/// Which protections are switched off, to show that the walker finds out. Only with the feature
/// `mutants`; the shipped binary has no such switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Weakened {
    #[cfg(feature = "mutants")]
    /// Calls below the promise are obeyed.
    pub no_promise_check: bool,
    #[cfg(feature = "mutants")]
    /// `Follow` is obeyed below the promise and raises none; a link needs no promise either.
    pub follow_without_promise: bool,
    #[cfg(feature = "mutants")]
    /// A second `Promote` is obeyed, also after a restart.
    pub promote_twice: bool,
    #[cfg(feature = "mutants")]
    /// `Prepare` on a running primary leaves its clients' sessions.
    pub prepare_leaves_sessions: bool,
    #[cfg(feature = "mutants")]
    /// The port opens when PostgreSQL is promoted, before the opening transaction.
    pub opens_before_open: bool,
}

macro_rules! weakened {
    ($member:expr, $switch:ident) => {{
        #[cfg(feature = "mutants")]
        {
            $member.weakened.$switch
        }
        #[cfg(not(feature = "mutants"))]
        {
            false
        }
    }};
}

mod calls;
mod leading;

impl Member {
    /// A member whose process has just read its promise file.
    pub fn new(id: MemberId, durable: Durable) -> Self {
        let weakened = Weakened::default();
        Self {
            id,
            durable,
            role: Role::Down,
            prepared: None,
            made: None,
            comparing: None,
            settled: None,
            weakened,
        }
    }

    /// The same, with protections switched off.
    #[cfg(feature = "mutants")]
    pub fn weakened(id: MemberId, durable: Durable, weakened: Weakened) -> Self {
        Self {
            weakened,
            ..Self::new(id, durable)
        }
    }

    /// Who it is.
    pub fn id(&self) -> &MemberId {
        &self.id
    }

    /// What stands, or is about to stand, in its promise file.
    pub fn durable(&self) -> &Durable {
        &self.durable
    }

    /// What it does.
    pub fn role(&self) -> &Role {
        &self.role
    }

    /// The term that it serves clients under, if it does.
    pub fn serving(&self) -> Option<Term> {
        match &self.role {
            Role::Primary {
                led,
                stage: Stage::Serving,
            } => Some(*led),
            _ => None,
        }
    }

    /// The term that it leads and whose opening transaction is acknowledged: it repeats
    /// `Follow(term, itself)` to every member while this lasts.
    pub fn leading(&self) -> Option<Term> {
        match &self.role {
            Role::Primary {
                led,
                stage: Stage::Opened | Stage::Serving | Stage::Isolated,
            } => Some(*led),
            _ => None,
        }
    }

    /// The term under which it calls the others while it leads: the one that it leads, or the one that it
    /// has promised to keep it through. Nobody who keeps that one as well could be told anything under the
    /// old one; and whoever has not answered `Kept` is asked to keep it first, for it may have promised
    /// itself to a term in between.
    pub fn calling(&self) -> Option<Term> {
        self.leading().map(|led| led.newest(self.durable.promise))
    }

    /// Whether it carries its log to `standby`, whose promise is `term`: both have promised the
    /// same, and it leads under it, feeds its target, or passes on what it follows itself.
    pub fn accepts_link(&self, standby: &MemberId, term: Term) -> bool {
        if term != self.durable.promise && !weakened!(self, follow_without_promise) {
            return false;
        }
        match &self.role {
            Role::Down | Role::Rebuilding => false,
            Role::Standby { .. } => true,
            Role::Primary {
                stage: Stage::Demoted { target },
                ..
            } => standby == target,
            Role::Primary {
                stage: Stage::Closed | Stage::Overtaken,
                ..
            } => self.prepared == Some(term),
            Role::Primary { .. } => true,
        }
    }

    /// Whether its log can make it a recruit.
    pub fn readable(&self) -> bool {
        let changing = matches!(
            self.role,
            Role::Down
                | Role::Rebuilding
                | Role::Primary {
                    stage: Stage::Overtaken,
                    ..
                }
        );
        self.durable.mark == Mark::None && !changing
    }

    /// What follows from `input`.
    pub fn step(&mut self, input: Input) -> Vec<Output> {
        match input {
            Input::Started => self.started(),
            Input::StandbyUp => self.standby_up(),
            Input::Call(call) => self.call(call),
            Input::Compared(end) => self.compared(end),
            Input::PostgresExited => self.postgres_exited(),
            Input::Rebuilt => self.rebuilt(),
            Input::RebuildFailed => self.rebuild_failed(),
            Input::Promote { term } => self.promote(term),
            Input::Promoted { term } => self.promoted(term),
            Input::NotPromoted { term } => self.not_promoted(term),
            Input::OpeningTransaction { term, grants } => self.opening(term, grants),
            Input::OpeningAcknowledged { term } => {
                self.advance(term, Stage::Promoted, Stage::Opened);
                vec![]
            }
            Input::Open { term } => self.open(term),
            Input::KeptOpen { term } => self.kept_open(term),
            Input::Isolated => self.isolated(),
            Input::Heard => self.heard(),
        }
    }

    fn started(&mut self) -> Vec<Output> {
        match self.durable.mark {
            Mark::None | Mark::Rebuilt => vec![Output::StartStandby],
            Mark::Rebuilding => {
                self.role = Role::Rebuilding;
                vec![]
            }
            Mark::Lost => vec![],
        }
    }

    /// A standby re-links exactly what it promised and recorded; anything else stays sealed.
    fn standby_up(&mut self) -> Vec<Output> {
        let upstream = self.durable.upstream.clone();
        self.role = Role::Standby {
            linked: upstream.is_some(),
        };
        let mut outputs = Vec::new();
        if self.durable.mark == Mark::Rebuilt {
            self.durable.mark = Mark::None;
            outputs.push(Output::Persist(self.durable.clone()));
        }
        outputs.extend(upstream.map(|upstream| Output::Link {
            upstream,
            term: self.durable.promise,
        }));
        outputs
    }

    fn postgres_exited(&mut self) -> Vec<Output> {
        self.prepared = None;
        // A rewind or a clone is under way, which needs no PostgreSQL, and will tell its own end.
        if self.role == Role::Rebuilding {
            return vec![];
        }
        // What it showed as a running primary, its timeline above all, is not true of a standby.
        if let Role::Primary { .. } = self.role {
            self.made = None;
        }
        self.role = Role::Down;
        if matches!(self.durable.mark, Mark::Rebuilding | Mark::Lost) {
            return vec![Output::ClosePort];
        }
        vec![
            Output::ClosePort,
            Output::CutLinks { except: None },
            Output::StartStandby,
        ]
    }

    fn rebuilt(&mut self) -> Vec<Output> {
        let rebuilt_from = self.comparing.take();
        if self.role != Role::Rebuilding {
            return vec![];
        }
        self.durable.mark = Mark::Rebuilt;
        // What was rewound is readable only after more of the upstream's log, so the upstream is
        // recorded before the first start; under any other promise it stays sealed.
        if let Some(wanted) = rebuilt_from.filter(|w| w.term == self.durable.promise) {
            self.durable.upstream = Some(wanted.upstream);
        }
        self.role = Role::Down;
        vec![Output::Persist(self.durable.clone()), Output::StartStandby]
    }

    fn rebuild_failed(&mut self) -> Vec<Output> {
        self.comparing = None;
        vec![]
    }

    /// Raises the promise in memory and says so on disk, before anything that follows.
    fn promise(&mut self, term: Term, upstream: Option<MemberId>) -> Vec<Output> {
        if self.durable.promise != term {
            self.prepared = None;
            self.made = Some(term);
        }
        self.durable = Durable {
            promise: term,
            upstream,
            mark: self.durable.mark,
        };
        vec![Output::Persist(self.durable.clone())]
    }

    fn advance(&mut self, term: Term, from: Stage, to: Stage) {
        if let Role::Primary { led, stage } = &mut self.role
            && *led == term
            && *stage == from
            && self.durable.promise == term
        {
            *stage = to;
        }
    }
}

fn refuse(term: Term, why: Refused) -> Vec<Output> {
    vec![Output::Answer(Answer::Refused { term, why })]
}
