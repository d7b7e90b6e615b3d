//! Protections that can be switched off, one at a time, to see that the walker finds out.

use crate::{driver, gate, member};

/// One protection switched off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// A commit is acknowledged by the primary alone.
    AcknowledgeBeforeQuorum,
    /// Calls below the promise are obeyed.
    NoPromiseCheck,
    /// A member carries a log whatever it has promised, and promises nothing for it.
    FollowWithoutPromise,
    /// A second promotion for the same term is obeyed, also after a restart.
    PromoteTwice,
    /// Preparing a primary leaves its clients' sessions.
    PrepareLeavesSessions,
    /// A term row is written though a newer one stands in the log.
    TermRowWithoutGuard,
    /// An op that takes another over goes on under its term.
    ResumeUnderTheSameTerm,
    /// Whoever only kept its promise is counted as a recruit.
    KeepCountedAsARecruit,
    /// A promotion takes the next timeline, not the term's.
    TwoPromotionsWithOneTimeline,
    /// A member whose log cannot be read is counted as a recruit.
    RecruitWithoutReadableLog,
    /// The target promotes itself though another recruit is ahead.
    PromoteTheLowerPosition,
    /// Clients enter before the opening transaction is acknowledged.
    SessionWritesBeforeOpen,
    /// An owner change is written though the log has a newer epoch.
    OwnerChangeWithoutGuard,
    /// The opening transaction takes the shard from the cell that the record names, only.
    RevokeOnlyThePrevious,
    /// Calling a switch off gives the shards back under their old epochs.
    CallOffToTheOldEpoch,
    /// The store takes a record whoever wrote it last.
    BlindPut,
    /// The gateway believes an older table.
    GatewayTakesAnOlderTable,
    /// A policy change is published before the new quorum has the log.
    PolicyChangeWithoutBarrier,
    /// The gateway lets held requests go as soon as a new owner is named.
    ReleaseBeforeOpen,
    /// What a member that follows a third one gets does not wait for its promise.
    CascadeWithoutHold,
    /// Who follows a running primary that won again is told of a timeline that nobody is on.
    EveryWinIsAPromotion,
    /// A leader has all logs that do not fit given up at once.
    RewindsAllAtOnce,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Self; 22] = [
        Self::AcknowledgeBeforeQuorum,
        Self::NoPromiseCheck,
        Self::FollowWithoutPromise,
        Self::PromoteTwice,
        Self::PrepareLeavesSessions,
        Self::TermRowWithoutGuard,
        Self::ResumeUnderTheSameTerm,
        Self::KeepCountedAsARecruit,
        Self::TwoPromotionsWithOneTimeline,
        Self::RecruitWithoutReadableLog,
        Self::PromoteTheLowerPosition,
        Self::SessionWritesBeforeOpen,
        Self::OwnerChangeWithoutGuard,
        Self::RevokeOnlyThePrevious,
        Self::CallOffToTheOldEpoch,
        Self::BlindPut,
        Self::GatewayTakesAnOlderTable,
        Self::PolicyChangeWithoutBarrier,
        Self::ReleaseBeforeOpen,
        Self::CascadeWithoutHold,
        Self::EveryWinIsAPromotion,
        Self::RewindsAllAtOnce,
    ];

    /// It breaks no promise, but a group may never open again. The others are to be found by what
    /// they break.
    pub(super) fn harms_liveness_only(self) -> bool {
        matches!(self, Self::EveryWinIsAPromotion | Self::RewindsAllAtOnce)
    }

    pub(super) fn member(self) -> member::Weakened {
        member::Weakened {
            no_promise_check: self == Self::NoPromiseCheck,
            follow_without_promise: self == Self::FollowWithoutPromise,
            promote_twice: self == Self::PromoteTwice,
            prepare_leaves_sessions: self == Self::PrepareLeavesSessions,
            opens_before_open: self == Self::SessionWritesBeforeOpen,
        }
    }

    pub(super) fn driver(self) -> driver::Weakened {
        driver::Weakened {
            promote_the_lower: self == Self::PromoteTheLowerPosition,
            recruit_without_log: self == Self::RecruitWithoutReadableLog,
            keep_counts_as_recruit: self == Self::KeepCountedAsARecruit,
            every_win_is_a_promotion: self == Self::EveryWinIsAPromotion,
        }
    }

    pub(super) fn gate(self) -> gate::Weakened {
        gate::Weakened {
            takes_an_older_row: self == Self::GatewayTakesAnOlderTable,
            release_before_open: self == Self::ReleaseBeforeOpen,
        }
    }
}
