//! P3–P7: the target's agent carries an op out, calling the other members directly.
//!
//! The agent performs the outputs in order, each after the one before it is done: `Open` is done
//! when the port is open, so `Progress::Open` is never reported before. A call that was refused
//! with `NotReady`, or was not answered, is repeated until the driver has ended.
//!
//! Safety never depends on there being only one driver, nor on this one's memory: every call
//! carries the op's term, and every member checks it against its promise.

use std::collections::{BTreeMap, BTreeSet};

use atoll_topology::{Lsn, MemberId, Position, Quorum, Term};

use crate::line::join_path;
use crate::messages::{
    Answer, Call, DriveOrder, Grant, JoinPath, OpKind, Progress, Recruit, Refused, TermRow,
};

/// What happens to a driver.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Input {
    /// Begin.
    Start,
    /// A member answered; the target's own member too.
    Answer {
        /// Who.
        from: MemberId,
        /// What.
        answer: Answer,
    },
    /// A member cannot be reached; it is called again by the agent until the driver ends.
    Unreachable {
        /// Who.
        from: MemberId,
    },
    /// The target's standby has replayed at least the LSN of `Output::AwaitReplayed`.
    Replayed,
    /// The target's PostgreSQL is writable.
    Promoted,
    /// The quorum has acknowledged the opening transaction; this is the row it wrote.
    Acknowledged {
        /// The term row; none for an owner change.
        row: Option<TermRow>,
    },
    /// The target's own member refused a local order, or the transaction found itself stale.
    Denied {
        /// Why.
        reason: String,
    },
}

/// What the agent has to do.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Output {
    /// Call a member; the target's own member too.
    Call {
        /// Whom.
        to: MemberId,
        /// What.
        call: Call,
    },
    /// Wait until the target's standby has replayed this.
    AwaitReplayed(Lsn),
    /// Local member: `Input::Promote`.
    Promote {
        /// The op's term.
        term: Term,
    },
    /// Local member: `Input::OpeningTransaction`.
    OpeningTransaction {
        /// The op's term.
        term: Term,
        /// Shards that change hands.
        grants: Vec<Grant>,
    },
    /// On the running primary: the owner change under the drain lock, without a term row.
    ChangeOwners {
        /// The open term.
        term: Term,
        /// Shards that change hands.
        grants: Vec<Grant>,
    },
    /// On the running primary: the term row of a call-off, written in place.
    KeepOpen {
        /// The term that calls off.
        term: Term,
        /// Shards that go back.
        grants: Vec<Grant>,
    },
    /// Local member: `Input::Open`.
    Open {
        /// The op's term.
        term: Term,
    },
    /// Tell control.
    Report(Progress),
}

/// Which protections are switched off in a test build; see `member::Weakened`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Weakened {
    #[cfg(feature = "mutants")]
    /// Promotes itself though another recruit is ahead.
    pub promote_the_lower: bool,
    #[cfg(feature = "mutants")]
    /// Counts a member whose log cannot be read as a recruit.
    pub recruit_without_log: bool,
    #[cfg(feature = "mutants")]
    /// Asks the others for a `Keep` only, and counts each as a recruit.
    pub keep_counts_as_recruit: bool,
    #[cfg(feature = "mutants")]
    /// Names a promotion's timeline, also where the target is a running primary that wins again.
    pub every_win_is_a_promotion: bool,
}

macro_rules! weakened {
    ($driver:expr, $switch:ident) => {{
        #[cfg(feature = "mutants")]
        {
            $driver.weakened.$switch
        }
        #[cfg(not(feature = "mutants"))]
        {
            false
        }
    }};
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Step {
    Idle,
    /// Planned: waiting for `Demoted`.
    Demoting,
    /// Waiting for the target to replay the old primary's last position.
    CatchingUp,
    /// Planned: the target cuts its own link.
    Sealing,
    /// Unplanned: collecting recruits.
    Recruiting,
    /// Unplanned: the target takes what a recruit has more than it.
    Fetching {
        from: MemberId,
    },
    Promoting,
    Opening,
    ChangingOwners,
    Keeping,
    Kept,
    Open,
    GaveUp,
}

/// One run of P3–P7 for one order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Driver {
    order: DriveOrder,
    step: Step,
    recruits: BTreeMap<MemberId, Recruit>,
    kept: BTreeSet<MemberId>,
    following: BTreeSet<MemberId>,
    mismatched: BTreeSet<MemberId>,
    /// Asked to be rewound or cloned before P6.
    asked: BTreeSet<MemberId>,
    /// Cannot be reached, as far as was heard last, or has nothing to follow with.
    away: BTreeSet<MemberId>,
    /// The old primary's last position, once it was demoted.
    last: Option<Position>,
    history: Vec<TermRow>,
    weakened: Weakened,
}

impl Driver {
    /// For one order; the same order after a restart makes a new driver.
    pub fn new(order: DriveOrder) -> Self {
        Self {
            order,
            step: Step::Idle,
            recruits: BTreeMap::new(),
            kept: BTreeSet::new(),
            following: BTreeSet::new(),
            mismatched: BTreeSet::new(),
            asked: BTreeSet::new(),
            away: BTreeSet::new(),
            last: None,
            history: Vec::new(),
            weakened: Weakened::default(),
        }
    }

    /// The same, with protections switched off.
    #[cfg(feature = "mutants")]
    pub fn weakened(order: DriveOrder, weakened: Weakened) -> Self {
        Self {
            weakened,
            ..Self::new(order)
        }
    }

    /// What it was ordered.
    pub fn order(&self) -> &DriveOrder {
        &self.order
    }

    /// Whether it has nothing left to do.
    pub fn ended(&self) -> bool {
        matches!(self.step, Step::Open | Step::GaveUp)
    }

    /// What follows from `input`.
    pub fn step(&mut self, input: Input) -> Vec<Output> {
        if self.ended() {
            return vec![];
        }
        match input {
            Input::Start => self.start(),
            Input::Answer { from, answer } => self.answer(from, answer),
            Input::Unreachable { from } => self.unreachable(&from),
            Input::Replayed => self.replayed(),
            Input::Promoted => self.promoted(),
            Input::Acknowledged { row } => self.acknowledged(row),
            Input::Denied { reason } => self.give_up(reason, None),
        }
    }

    fn start(&mut self) -> Vec<Output> {
        let term = self.order.term;
        match (self.order.kind, self.order.open.clone()) {
            (OpKind::Switchover, Some((_, primary))) => {
                self.step = Step::Demoting;
                let target = self.order.target.clone();
                let mut outputs = vec![Output::Report(Progress::Recruiting)];
                outputs.push(call(&primary, Call::Demote { term, target }));
                outputs
            }
            (OpKind::OwnerChange, Some(_)) => {
                self.step = Step::ChangingOwners;
                let grants = self.order.grants.clone();
                vec![
                    Output::Report(Progress::Opening),
                    Output::ChangeOwners { term, grants },
                ]
            }
            (OpKind::CallOff, Some((open, _))) => {
                self.step = Step::Keeping;
                self.to_all(|_| Call::Keep { term, open })
            }
            // Birth is a failover with nobody to succeed.
            (OpKind::Failover | OpKind::Switchover | OpKind::OwnerChange | OpKind::CallOff, _) => {
                self.step = Step::Recruiting;
                let mut outputs = vec![Output::Report(Progress::Recruiting)];
                let target = self.order.target.clone();
                let open = self.order.open.as_ref().map(|(open, _)| *open);
                let gentle = open.filter(|_| weakened!(self, keep_counts_as_recruit));
                outputs.extend(self.to_all(|to| match gentle {
                    Some(open) if *to != target => Call::Keep { term, open },
                    _ => Call::Prepare { term },
                }));
                outputs
            }
        }
    }

    fn answer(&mut self, from: MemberId, answer: Answer) -> Vec<Output> {
        if answer.term() != self.order.term {
            return vec![];
        }
        self.away.remove(&from);
        match answer {
            Answer::Demoted { end, history, .. } => self.demoted(&from, end.position, history),
            // It was asked to for its log's sake only.
            Answer::Halted { .. } => vec![],
            Answer::Prepared {
                volume, recruit, ..
            } => self.prepared(from, &volume, recruit),
            Answer::Following { path, .. } => self.follows(from, path),
            Answer::Kept { .. } => self.keeps(from),
            Answer::Refused { why, .. } => self.refused(&from, &why),
        }
    }

    fn demoted(&mut self, from: &MemberId, end: Position, history: Vec<TermRow>) -> Vec<Output> {
        if self.step != Step::Demoting {
            return vec![];
        }
        self.step = Step::CatchingUp;
        self.last = Some(end);
        self.history = history;
        let (term, target) = (self.order.term, self.order.target.clone());
        let follow = |upstream: &MemberId| Call::Follow {
            term,
            upstream: upstream.clone(),
            history: self.history.clone(),
            settled: false,
        };
        let mut outputs = vec![Output::Report(Progress::CatchingUp)];
        outputs.push(call(&target, follow(from)));
        for other in self.others().filter(|other| other != from) {
            outputs.push(call(&other, follow(&target)));
        }
        outputs
    }

    fn follows(&mut self, from: MemberId, path: JoinPath) -> Vec<Output> {
        if from != self.order.target {
            return self.other_follows(from, path);
        }
        if path != JoinPath::Stream {
            let reason = "the target's log has left the line of the log that it must continue";
            return self.give_up(reason.to_owned(), self.best_other());
        }
        match &self.step {
            Step::CatchingUp => self
                .last
                .map(|last| vec![Output::AwaitReplayed(last.lsn)])
                .unwrap_or_default(),
            Step::Fetching { from } => self
                .recruits
                .get(from)
                .map(|recruit| vec![Output::AwaitReplayed(recruit.end.position.lsn)])
                .unwrap_or_default(),
            _ => vec![],
        }
    }

    /// Someone else joins the target's log, or cannot yet.
    fn other_follows(&mut self, from: MemberId, path: JoinPath) -> Vec<Output> {
        if path == JoinPath::Stream {
            self.mismatched.remove(&from);
            self.following.insert(from);
            return vec![];
        }
        self.mismatched.insert(from);
        self.bring_in_line()
    }

    /// Where the opening transaction's quorum cannot be had without those whose logs do not fit,
    /// as many as it needs are brought in line before P6, and no more: a log that is being rewound
    /// cannot be read, and where this primary fails too, the others are all the recruits there are.
    fn bring_in_line(&mut self) -> Vec<Output> {
        let out: BTreeSet<&MemberId> = self.mismatched.union(&self.away).collect();
        let possible = self.order.members.len() - 1 - out.len();
        let missing = usize::from(self.order.k).saturating_sub(possible);
        if self.step != Step::Opening || missing == 0 {
            return vec![];
        }
        let reached = self.mismatched.difference(&self.away);
        // Who has begun goes on.
        let (begun, rest): (Vec<_>, Vec<_>) =
            reached.cloned().partition(|id| self.asked.contains(id));
        let chosen: Vec<MemberId> = begun.into_iter().chain(rest).take(missing).collect();
        self.asked.extend(chosen.iter().cloned());
        chosen
            .iter()
            .map(|id| call(id, self.follow_me(true)))
            .collect()
    }

    fn replayed(&mut self) -> Vec<Output> {
        let term = self.order.term;
        match &self.step {
            Step::CatchingUp => {
                self.step = Step::Sealing;
                let target = self.order.target.clone();
                // The old primary has promised the term, and nobody hears it any more. Its end
                // only keeps its log from going beyond the fork, which a rewind would mend, so
                // nobody waits for it.
                let old = self.order.open.iter().map(|(_, primary)| primary);
                old.map(|primary| call(primary, Call::Halt { term }))
                    .chain([call(&target, Call::Prepare { term })])
                    .collect()
            }
            Step::Fetching { .. } => {
                self.step = Step::Recruiting;
                self.recruits.remove(&self.order.target);
                vec![call(&self.order.target, Call::Prepare { term })]
            }
            _ => vec![],
        }
    }

    fn prepared(&mut self, from: MemberId, volume: &str, recruit: Option<Recruit>) -> Vec<Output> {
        let admitted = self
            .order
            .members
            .iter()
            .any(|m| m.id == from && m.volume == volume);
        let recruit = match recruit {
            Some(recruit) if admitted => recruit,
            _ if weakened!(self, recruit_without_log) => Recruit {
                end: crate::messages::LogEnd {
                    position: Position::default(),
                    timeline: 1,
                },
                history: vec![],
                left: Lsn(0),
                primary: false,
            },
            _ => return vec![],
        };
        match self.step {
            Step::Sealing if from == self.order.target => self.sealed(recruit),
            Step::Recruiting => {
                self.recruits.insert(from, recruit);
                self.try_promote()
            }
            // A late recruit takes part as a follower.
            Step::Promoting | Step::Opening if from != self.order.target => {
                vec![call(&from, self.follow_me(false))]
            }
            _ => vec![],
        }
    }

    /// Planned: the target has everything that the old primary wrote, and takes nothing more.
    fn sealed(&mut self, own: Recruit) -> Vec<Output> {
        if self
            .last
            .is_some_and(|last| last.ahead_of(own.end.position))
        {
            return self.give_up("the target lost what it had replayed".to_owned(), None);
        }
        self.step = Step::Promoting;
        self.history.push(self.coming_row(&own));
        let term = self.order.term;
        vec![
            Output::Report(Progress::Promoting),
            Output::Promote { term },
        ]
    }

    /// Unplanned: with F recruits, whoever led, every acknowledged write is among their logs.
    fn try_promote(&mut self) -> Vec<Output> {
        let quorum = Quorum {
            members: self.order.members.len(),
            k: usize::from(self.order.k),
        };
        let target = self.order.target.clone();
        let kept = if weakened!(self, keep_counts_as_recruit) {
            self.kept.len()
        } else {
            0
        };
        if self.recruits.len() + kept < quorum.recruits() {
            return vec![];
        }
        let Some(own) = self.recruits.get(&target).cloned() else {
            return vec![];
        };
        let ahead = self
            .recruits
            .iter()
            .filter(|(_, recruit)| recruit.end.position.ahead_of(own.end.position))
            .reduce(|a, b| {
                if b.1.end.position.ahead_of(a.1.end.position) {
                    b
                } else {
                    a
                }
            })
            .map(|(id, recruit)| (id.clone(), recruit.clone()));
        let term = self.order.term;
        if let Some((from, recruit)) = ahead.filter(|_| !weakened!(self, promote_the_lower)) {
            // A promotion that never wrote its row left a line of its own, which rows do not show.
            let rowless = recruit
                .history
                .last()
                .is_some_and(|row| row.timeline != recruit.end.timeline);
            if rowless || join_path(own.end, &recruit.history) != JoinPath::Stream {
                let reason = format!("{from} is ahead on another line");
                return self.give_up(reason, Some(from));
            }
            let (upstream, history) = (from.clone(), recruit.history);
            self.step = Step::Fetching { from };
            return vec![call(
                &target,
                Call::Follow {
                    term,
                    upstream,
                    history,
                    settled: false,
                },
            )];
        }
        let coming = self.coming_row(&own);
        self.history = own.history;
        self.history.push(coming);
        self.step = Step::Promoting;
        let mut outputs = vec![
            Output::Report(Progress::Promoting),
            Output::Promote { term },
        ];
        for other in self
            .others()
            .filter(|other| self.recruits.contains_key(other))
        {
            outputs.push(call(&other, self.follow_me(false)));
        }
        outputs
    }

    fn promoted(&mut self) -> Vec<Output> {
        if self.step != Step::Promoting {
            return vec![];
        }
        self.step = Step::Opening;
        let (term, grants) = (self.order.term, self.order.grants.clone());
        let mut outputs = vec![Output::Report(Progress::Opening)];
        outputs.push(Output::OpeningTransaction { term, grants });
        for other in self
            .others()
            .filter(|other| !self.following.contains(other))
        {
            outputs.push(call(&other, self.follow_me(false)));
        }
        outputs
    }

    fn acknowledged(&mut self, row: Option<TermRow>) -> Vec<Output> {
        let term = self.order.term;
        match self.step {
            Step::Opening => {
                self.step = Step::Open;
                vec![
                    Output::Open { term },
                    Output::Report(Progress::Open { row }),
                ]
            }
            Step::ChangingOwners | Step::Kept => {
                self.step = Step::Open;
                vec![Output::Report(Progress::Open { row })]
            }
            _ => vec![],
        }
    }

    fn keeps(&mut self, from: MemberId) -> Vec<Output> {
        self.kept.insert(from);
        if self.step == Step::Recruiting {
            return self.try_promote();
        }
        let Some((_, primary)) = &self.order.open else {
            return vec![];
        };
        let quorum = Quorum {
            members: self.order.members.len(),
            k: usize::from(self.order.k),
        };
        if self.step != Step::Keeping
            || self.kept.len() < quorum.recruits()
            || !self.kept.contains(primary)
        {
            return vec![];
        }
        self.step = Step::Kept;
        vec![Output::KeepOpen {
            term: self.order.term,
            grants: self.order.grants.clone(),
        }]
    }

    fn refused(&mut self, from: &MemberId, why: &Refused) -> Vec<Output> {
        let critical = match &self.step {
            Step::Demoting => {
                self.order
                    .open
                    .as_ref()
                    .is_some_and(|(_, primary)| primary == from)
                    || *from == self.order.target
            }
            _ => *from == self.order.target,
        };
        let newer =
            matches!(why, Refused::Promised { promise } if promise.supersedes(self.order.term));
        if critical || newer {
            return self.give_up(format!("{from} refused: {why}"), None);
        }
        // A standby that is coming up is asked again by the agent; see `Unreachable`. A member whose
        // log was lost will not be there, however often it is asked.
        if *why == Refused::Lost {
            self.away.insert(from.clone());
            return self.bring_in_line();
        }
        vec![]
    }

    /// The old primary cannot be reached: from here only the unplanned path is safe, and that
    /// asks for a term of its own.
    fn unreachable(&mut self, from: &MemberId) -> Vec<Output> {
        self.away.insert(from.clone());
        let old = self.order.open.as_ref().map(|(_, primary)| primary);
        match self.step {
            Step::Demoting if old == Some(from) => {
                self.give_up(format!("{from}, the old primary, cannot be reached"), None)
            }
            _ => self.bring_in_line(),
        }
    }

    fn give_up(&mut self, reason: String, better: Option<MemberId>) -> Vec<Output> {
        self.step = Step::GaveUp;
        vec![Output::Report(Progress::GaveUp { reason, better })]
    }

    fn best_other(&self) -> Option<MemberId> {
        self.recruits
            .iter()
            .filter(|(id, _)| **id != self.order.target)
            .reduce(|a, b| {
                if b.1.end.position.ahead_of(a.1.end.position) {
                    b
                } else {
                    a
                }
            })
            .map(|(id, _)| id.clone())
    }

    fn others(&self) -> impl Iterator<Item = MemberId> + '_ {
        let ids = self.order.members.iter().map(|member| member.id.clone());
        ids.filter(|id| *id != self.order.target)
    }

    fn to_all(&self, what: impl Fn(&MemberId) -> Call) -> Vec<Output> {
        self.order
            .members
            .iter()
            .map(|member| call(&member.id, what(&member.id)))
            .collect()
    }

    fn follow_me(&self, settled: bool) -> Call {
        Call::Follow {
            term: self.order.term,
            upstream: self.order.target.clone(),
            history: self.history.clone(),
            settled,
        }
    }

    /// The row that the opening transaction will write, as far as it is known before: enough for
    /// a follower to see whether its log goes beyond the fork. A running primary that wins again
    /// keeps its timeline: by any other name, whoever follows it would look as if it had left the
    /// line as soon as it has more than was there at the fork, and be rewound again and again.
    fn coming_row(&self, own: &Recruit) -> TermRow {
        let timeline = if own.primary && !weakened!(self, every_win_is_a_promotion) {
            own.end.timeline
        } else {
            u32::try_from(self.order.term.get()).unwrap_or(u32::MAX)
        };
        self.order.term_row(timeline, own.left)
    }
}

fn call(to: &MemberId, call: Call) -> Output {
    Output::Call {
        to: to.clone(),
        call,
    }
}
