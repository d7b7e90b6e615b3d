//! What calls, orders and reports have in common: term rows, ends of logs.

use atoll_ownership::{LogEnd, Recruit, TermRow};
use atoll_topology::{Lsn, Position, Term};

use crate::proto::agent as wire;
use crate::text::{DecodeError, Place};

pub(super) fn row(row: &TermRow) -> wire::TermRow {
    wire::TermRow {
        term: row.term.get(),
        timeline: row.timeline,
        fork_lsn: row.fork.0,
        primary: row.primary.to_string(),
        members: row.members.iter().map(ToString::to_string).collect(),
        k: u32::from(row.k),
        op: row.op.clone(),
    }
}

pub(super) fn read_row(place: Place<'_>, row: &wire::TermRow) -> Result<TermRow, DecodeError> {
    Ok(TermRow {
        term: Term::new(row.term),
        timeline: row.timeline,
        fork: Lsn(row.fork_lsn),
        primary: place.id(&row.primary)?,
        members: row
            .members
            .iter()
            .map(|id| place.id(id))
            .collect::<Result<_, _>>()?,
        k: place.narrow("k", u64::from(row.k))?,
        op: row.op.clone(),
    })
}

pub(super) fn history(rows: &[TermRow]) -> Vec<wire::TermRow> {
    rows.iter().map(row).collect()
}

pub(super) fn read_history(
    place: Place<'_>,
    rows: &[wire::TermRow],
) -> Result<Vec<TermRow>, DecodeError> {
    rows.iter().map(|row| read_row(place, row)).collect()
}

pub(super) fn end(end: LogEnd) -> wire::LogEnd {
    wire::LogEnd {
        term: end.position.term.get(),
        lsn: end.position.lsn.0,
        timeline: end.timeline,
    }
}

pub(super) fn read_end(end: wire::LogEnd) -> LogEnd {
    LogEnd {
        position: Position {
            term: Term::new(end.term),
            lsn: Lsn(end.lsn),
        },
        timeline: end.timeline,
    }
}

pub(super) fn recruit(recruit: &Recruit) -> wire::Recruit {
    wire::Recruit {
        end: Some(end(recruit.end)),
        history: history(&recruit.history),
        left_lsn: recruit.left.0,
        primary: recruit.primary,
    }
}

pub(super) fn read_recruit(
    place: Place<'_>,
    recruit: &wire::Recruit,
) -> Result<Recruit, DecodeError> {
    Ok(Recruit {
        end: read_end(recruit.end.ok_or_else(|| place.absent("recruit.end"))?),
        history: read_history(place, &recruit.history)?,
        left: Lsn(recruit.left_lsn),
        primary: recruit.primary,
    })
}
