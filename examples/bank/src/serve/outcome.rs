//! What a failed statement means for the money: nothing was done, or nobody knows.

use std::fmt;

use tokio_postgres::error::SqlState;

/// How far a piece of work had come when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// No statement sent yet could have committed anything.
    BeforeCommit,
    /// A COMMIT, or a statement that commits by itself, was sent.
    CommitSent,
}

/// Why a request was not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Surely nothing was committed, and a repetition may succeed at once.
    Again(String),
    /// Surely nothing was committed.
    NotExecuted(String),
    /// It may have been committed.
    Unknown(String),
    /// The bank says no.
    Refused(Refusal),
}

/// A no of the bank's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The payer has too little.
    Insufficient,
    /// Payer or payee has no account here.
    NoAccount,
    /// The idempotency key stands for something else.
    Conflict,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Again(why) | Self::NotExecuted(why) => write!(f, "not executed: {why}"),
            Self::Unknown(why) => write!(f, "outcome unknown: {why}"),
            Self::Refused(refusal) => write!(f, "refused: {refusal:?}"),
        }
    }
}

/// Judges a database error.
pub(crate) fn judge(error: &tokio_postgres::Error, stage: Stage) -> Failure {
    let why = match error.as_db_error() {
        Some(answer) => answer.message().to_owned(),
        None => std::error::Error::source(error).map_or(error.to_string(), ToString::to_string),
    };
    judge_state(error.code(), why, stage)
}

/// SQLSTATE classes whose errors come before a commit could: data, constraint, transaction state,
/// authorisation, missing object, syntax and access, resources.
const BEFORE_ANY_COMMIT: [&str; 8] = ["22", "23", "25", "28", "3D", "3F", "42", "53"];

fn judge_state(state: Option<&SqlState>, why: String, stage: Stage) -> Failure {
    let Some(state) = state else {
        // The connection broke. Without a COMMIT on its way the transaction died with it.
        return match stage {
            Stage::BeforeCommit => Failure::Again(why),
            Stage::CommitSent => Failure::Unknown(why),
        };
    };
    let why = format!("{why} (SQLSTATE {})", state.code());
    if *state == SqlState::TRANSACTION_RESOLUTION_UNKNOWN
        || *state == SqlState::T_R_STATEMENT_COMPLETION_UNKNOWN
    {
        return Failure::Unknown(why);
    }
    if state.code().starts_with("40") {
        return Failure::Again(why);
    }
    let certain = BEFORE_ANY_COMMIT
        .iter()
        .any(|class| state.code().starts_with(class))
        || *state == SqlState::CANNOT_CONNECT_NOW;
    match stage {
        Stage::BeforeCommit => Failure::NotExecuted(why),
        Stage::CommitSent if certain => Failure::NotExecuted(why),
        Stage::CommitSent => Failure::Unknown(why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(code: &str, stage: Stage) -> Failure {
        judge_state(Some(&SqlState::from_code(code)), String::new(), stage)
    }

    #[test]
    fn an_unknown_outcome_is_never_called_anything_else() {
        for stage in [Stage::BeforeCommit, Stage::CommitSent] {
            assert!(matches!(of("08007", stage), Failure::Unknown(_)));
            assert!(matches!(of("40003", stage), Failure::Unknown(_)));
        }
        assert!(matches!(
            of("57P01", Stage::CommitSent),
            Failure::Unknown(_)
        ));
        assert!(matches!(
            of("XX000", Stage::CommitSent),
            Failure::Unknown(_)
        ));
        let lost = judge_state(None, "connection closed".into(), Stage::CommitSent);
        assert!(matches!(lost, Failure::Unknown(_)));
    }

    #[test]
    fn what_surely_did_nothing_may_be_repeated() {
        assert!(matches!(
            of("40001", Stage::BeforeCommit),
            Failure::Again(_)
        ));
        assert!(matches!(of("40001", Stage::CommitSent), Failure::Again(_)));
        assert!(matches!(
            of("40P01", Stage::BeforeCommit),
            Failure::Again(_)
        ));
        assert!(matches!(
            of("42501", Stage::BeforeCommit),
            Failure::NotExecuted(_)
        ));
        let lost = judge_state(None, "connection closed".into(), Stage::BeforeCommit);
        assert!(matches!(lost, Failure::Again(_)));
    }
}
