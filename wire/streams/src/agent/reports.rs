//! What an agent says to control, and members to one another.

use atoll_ownership::{LogEnd, Progress, member};
use atoll_topology::{GroupId, Lsn, MemberId, ProcessId, ShardId, Term};

use super::rows;
use crate::proto::agent as wire;
use crate::text::{DecodeError, Place};

/// From an agent to control.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentReport {
    /// The agent.
    pub process: ProcessId,
    /// Its member's group.
    pub group: GroupId,
    /// Its member.
    pub member: MemberId,
    /// Its wall clock.
    pub unix_ms: u64,
    /// What it says.
    pub body: ReportBody,
}

/// What an agent says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReportBody {
    /// How its member is.
    Status(MemberStatus),
    /// How far the op that it drives is.
    Progress {
        /// The op's term.
        term: Term,
        /// The execution.
        op: String,
        /// The step.
        progress: Progress,
    },
    /// Answer to `Order::ApplySchema`.
    SchemaApplied(SchemaApplied),
    /// Answer to `Order::HashRows`.
    RowsHashed(RowsHashed),
}

/// What a member does at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberRole {
    /// Its PostgreSQL is not up.
    Down,
    /// A standby that takes no log.
    Sealed,
    /// A standby that takes its upstream's log.
    Following,
    /// Being rewound or cloned.
    Rebuilding,
    /// PostgreSQL leaves recovery.
    Promoting,
    /// Writable, not opened.
    Promoted,
    /// Its opening transaction is acknowledged.
    Opened,
    /// Serves clients.
    Serving,
    /// Serves nobody: it has not heard k standbys under its own term.
    Isolated,
    /// Promised a newer term.
    Closed,
    /// Demoted: feeds its target only.
    Demoted,
    /// Its directory or its promise was lost; it stays out.
    Lost,
}

/// How a member is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its promise.
    pub promise: Term,
    /// What it does.
    pub role: MemberRole,
    /// Its volume's nonce; none: not initialised.
    pub volume: Option<String>,
    /// End of its log; none: cannot be read.
    pub position: Option<LogEnd>,
    /// The term that it was promoted for.
    pub led: Option<Term>,
    /// The term whose client port is open.
    pub open: Option<Term>,
    /// Whose log it takes.
    pub upstream: Option<MemberId>,
    /// When it last heard the others.
    pub heard: Vec<Heard>,
    /// How its PostgreSQL last ended since the agent started.
    pub exit: Option<PostgresExit>,
    /// Received and not yet replayed, as a standby.
    pub replay_lag_bytes: u64,
    /// Age of the oldest transaction that writes, where it leads.
    pub oldest_transaction_ms: u64,
    /// What goes round the owner's privilege, where it leads: rule and object; none: nothing.
    pub broken_privilege: Option<String>,
}

/// When a member last heard another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// The other one.
    pub member: MemberId,
    /// How long ago.
    pub ago_ms: u64,
    /// Its promise, as it said then.
    pub promise: Term,
}

/// How a member's PostgreSQL ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostgresExit {
    /// When.
    pub unix_ms: u64,
    /// Whether the agent ordered it: then it is no failure.
    pub ordered: bool,
    /// In words.
    pub status: String,
}

/// What came of `Order::ApplySchema`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemaApplied {
    /// The order's.
    pub id: String,
    /// By shard: done, now or earlier, or why not.
    pub shards: Vec<(ShardId, Result<(), String>)>,
    /// What is wrong apart from single shards.
    pub error: Option<String>,
}

/// What came of `Order::HashRows`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowsHashed {
    /// The order's.
    pub id: String,
    /// Replayed when the rows were read.
    pub lsn: Lsn,
    /// By table.
    pub tables: Vec<TableHash>,
    /// Why there are none.
    pub error: Option<String>,
}

/// One table's rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableHash {
    /// Its shard.
    pub shard: ShardId,
    /// Its name within the shard's schema.
    pub table: String,
    /// How many rows.
    pub rows: u64,
    /// Hash of them all, whatever their order.
    pub hash: u64,
}

/// From member to member, every 200 ms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beat {
    /// The group.
    pub group: GroupId,
    /// Who beats.
    pub member: MemberId,
    /// Its promise.
    pub promise: Term,
    /// What it does.
    pub role: MemberRole,
    /// End of its log; none: cannot be read.
    pub position: Option<LogEnd>,
    /// Grows with each beat of one process.
    pub number: u64,
    /// The last number heard from the other end; 0: none.
    pub heard: u64,
}

impl From<&member::Role> for MemberRole {
    fn from(role: &member::Role) -> Self {
        use member::{Role, Stage};
        match role {
            Role::Down => Self::Down,
            Role::Standby { linked: true } => Self::Following,
            Role::Standby { linked: false } => Self::Sealed,
            Role::Rebuilding => Self::Rebuilding,
            Role::Primary { stage, .. } => match stage {
                Stage::Promoting | Stage::Overtaken => Self::Promoting,
                Stage::Promoted => Self::Promoted,
                Stage::Opened => Self::Opened,
                Stage::Serving => Self::Serving,
                Stage::Isolated => Self::Isolated,
                Stage::Closed => Self::Closed,
                Stage::Demoted { .. } => Self::Demoted,
            },
        }
    }
}

impl From<MemberRole> for wire::MemberRole {
    fn from(role: MemberRole) -> Self {
        match role {
            MemberRole::Down => Self::Down,
            MemberRole::Sealed => Self::Sealed,
            MemberRole::Following => Self::Following,
            MemberRole::Rebuilding => Self::Rebuilding,
            MemberRole::Promoting => Self::Promoting,
            MemberRole::Promoted => Self::Promoted,
            MemberRole::Opened => Self::Opened,
            MemberRole::Serving => Self::Serving,
            MemberRole::Isolated => Self::Isolated,
            MemberRole::Closed => Self::Closed,
            MemberRole::Demoted => Self::Demoted,
            MemberRole::Lost => Self::Lost,
        }
    }
}

fn read_role(place: Place<'_>, role: wire::MemberRole) -> Result<MemberRole, DecodeError> {
    Ok(match role {
        wire::MemberRole::Down => MemberRole::Down,
        wire::MemberRole::Sealed => MemberRole::Sealed,
        wire::MemberRole::Following => MemberRole::Following,
        wire::MemberRole::Rebuilding => MemberRole::Rebuilding,
        wire::MemberRole::Promoting => MemberRole::Promoting,
        wire::MemberRole::Promoted => MemberRole::Promoted,
        wire::MemberRole::Opened => MemberRole::Opened,
        wire::MemberRole::Serving => MemberRole::Serving,
        wire::MemberRole::Isolated => MemberRole::Isolated,
        wire::MemberRole::Closed => MemberRole::Closed,
        wire::MemberRole::Demoted => MemberRole::Demoted,
        wire::MemberRole::Lost => MemberRole::Lost,
        wire::MemberRole::Unspecified => return Err(place.absent("role")),
    })
}

fn term_or_none(term: u64) -> Option<Term> {
    (term != 0).then(|| Term::new(term))
}

fn text_or_none(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

impl From<&MemberStatus> for wire::MemberStatus {
    fn from(status: &MemberStatus) -> Self {
        Self {
            promise: status.promise.get(),
            role: wire::MemberRole::from(status.role).into(),
            volume: status.volume.clone().unwrap_or_default(),
            position: status.position.map(rows::end),
            led: status.led.map_or(0, Term::get),
            open: status.open.map_or(0, Term::get),
            upstream: status
                .upstream
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            heard: status
                .heard
                .iter()
                .map(|heard| wire::Heard {
                    member: heard.member.to_string(),
                    ago_ms: heard.ago_ms,
                    promise: heard.promise.get(),
                })
                .collect(),
            exit: status.exit.as_ref().map(|exit| wire::PostgresExit {
                unix_ms: exit.unix_ms,
                ordered: exit.ordered,
                status: exit.status.clone(),
            }),
            replay_lag_bytes: status.replay_lag_bytes,
            oldest_transaction_ms: status.oldest_transaction_ms,
            broken_privilege: status.broken_privilege.clone().unwrap_or_default(),
        }
    }
}

fn read_status(place: Place<'_>, status: wire::MemberStatus) -> Result<MemberStatus, DecodeError> {
    let role = read_role(place, status.role())?;
    let heard = |heard: &wire::Heard| {
        Ok(Heard {
            member: place.id(&heard.member)?,
            ago_ms: heard.ago_ms,
            promise: Term::new(heard.promise),
        })
    };
    Ok(MemberStatus {
        promise: Term::new(status.promise),
        role,
        volume: text_or_none(status.volume),
        position: status.position.map(rows::read_end),
        led: term_or_none(status.led),
        open: term_or_none(status.open),
        upstream: place.id_or_none(&status.upstream)?,
        heard: status
            .heard
            .iter()
            .map(heard)
            .collect::<Result<_, DecodeError>>()?,
        exit: status.exit.map(|exit| PostgresExit {
            unix_ms: exit.unix_ms,
            ordered: exit.ordered,
            status: exit.status,
        }),
        replay_lag_bytes: status.replay_lag_bytes,
        oldest_transaction_ms: status.oldest_transaction_ms,
        broken_privilege: text_or_none(status.broken_privilege),
    })
}

fn step(progress: &Progress) -> wire::drive_progress::Step {
    use wire::drive_progress::Step;
    match progress {
        Progress::Recruiting => Step::Recruiting(wire::Recruiting {}),
        Progress::CatchingUp => Step::CatchingUp(wire::CatchingUp {}),
        Progress::Promoting => Step::Promoting(wire::Promoting {}),
        Progress::Opening => Step::Opening(wire::Opening {}),
        Progress::Open { row } => Step::Open(wire::Open {
            row: row.as_ref().map(rows::row),
        }),
        Progress::GaveUp { reason, better } => Step::GaveUp(wire::GaveUp {
            reason: reason.clone(),
            better: better.as_ref().map(ToString::to_string).unwrap_or_default(),
        }),
    }
}

fn read_step(place: Place<'_>, step: wire::drive_progress::Step) -> Result<Progress, DecodeError> {
    use wire::drive_progress::Step;
    Ok(match step {
        Step::Recruiting(_) => Progress::Recruiting,
        Step::CatchingUp(_) => Progress::CatchingUp,
        Step::Promoting(_) => Progress::Promoting,
        Step::Opening(_) => Progress::Opening,
        Step::Open(open) => Progress::Open {
            row: open
                .row
                .as_ref()
                .map(|row| rows::read_row(place, row))
                .transpose()?,
        },
        Step::GaveUp(gave_up) => Progress::GaveUp {
            better: place.id_or_none(&gave_up.better)?,
            reason: gave_up.reason,
        },
    })
}

impl From<&AgentReport> for wire::AgentReport {
    fn from(report: &AgentReport) -> Self {
        use wire::agent_report::Report as Wire;
        let body = match &report.body {
            ReportBody::Status(status) => Wire::Status(status.into()),
            ReportBody::Progress { term, op, progress } => Wire::Progress(wire::DriveProgress {
                term: term.get(),
                op: op.clone(),
                step: Some(step(progress)),
            }),
            ReportBody::SchemaApplied(applied) => Wire::SchemaApplied(wire::SchemaApplied {
                id: applied.id.clone(),
                shards: applied
                    .shards
                    .iter()
                    .map(|(shard, done)| wire::schema_applied::Shard {
                        shard: u32::from(shard.0),
                        error: done.as_ref().err().cloned().unwrap_or_default(),
                    })
                    .collect(),
                error: applied.error.clone().unwrap_or_default(),
            }),
            ReportBody::RowsHashed(hashed) => Wire::RowsHashed(wire::RowsHashed {
                id: hashed.id.clone(),
                lsn: hashed.lsn.0,
                tables: hashed
                    .tables
                    .iter()
                    .map(|table| wire::rows_hashed::Table {
                        shard: u32::from(table.shard.0),
                        table: table.table.clone(),
                        rows: table.rows,
                        hash: table.hash,
                    })
                    .collect(),
                error: hashed.error.clone().unwrap_or_default(),
            }),
        };
        Self {
            process: report.process.to_string(),
            group: report.group.to_string(),
            member: report.member.to_string(),
            unix_ms: report.unix_ms,
            report: Some(body),
        }
    }
}

impl TryFrom<wire::AgentReport> for AgentReport {
    type Error = DecodeError;

    fn try_from(report: wire::AgentReport) -> Result<Self, DecodeError> {
        use wire::agent_report::Report as Wire;
        let place = format!("report of agent {:?}", report.process);
        let place = Place(&place);
        let body = match report.report.ok_or_else(|| place.absent("report"))? {
            Wire::Status(status) => ReportBody::Status(read_status(place, status)?),
            Wire::Progress(progress) => ReportBody::Progress {
                term: Term::new(progress.term),
                op: progress.op,
                progress: read_step(
                    place,
                    progress.step.ok_or_else(|| place.absent("progress.step"))?,
                )?,
            },
            Wire::SchemaApplied(applied) => ReportBody::SchemaApplied(SchemaApplied {
                id: applied.id,
                shards: applied
                    .shards
                    .into_iter()
                    .map(|done| {
                        let shard = place.shard("shard", done.shard)?;
                        Ok((shard, text_or_none(done.error).map_or(Ok(()), Err)))
                    })
                    .collect::<Result<_, DecodeError>>()?,
                error: text_or_none(applied.error),
            }),
            Wire::RowsHashed(hashed) => ReportBody::RowsHashed(RowsHashed {
                id: hashed.id,
                lsn: Lsn(hashed.lsn),
                tables: hashed
                    .tables
                    .into_iter()
                    .map(|table| {
                        Ok(TableHash {
                            shard: place.shard("shard", table.shard)?,
                            table: table.table,
                            rows: table.rows,
                            hash: table.hash,
                        })
                    })
                    .collect::<Result<_, DecodeError>>()?,
                error: text_or_none(hashed.error),
            }),
        };
        Ok(Self {
            process: place.id(&report.process)?,
            group: place.id(&report.group)?,
            member: place.id(&report.member)?,
            unix_ms: report.unix_ms,
            body,
        })
    }
}

impl From<&Beat> for wire::Beat {
    fn from(beat: &Beat) -> Self {
        Self {
            group: beat.group.to_string(),
            member: beat.member.to_string(),
            promise: beat.promise.get(),
            role: wire::MemberRole::from(beat.role).into(),
            position: beat.position.map(rows::end),
            number: beat.number,
            heard: beat.heard,
        }
    }
}

impl TryFrom<wire::Beat> for Beat {
    type Error = DecodeError;

    fn try_from(beat: wire::Beat) -> Result<Self, DecodeError> {
        let place = Place("beat");
        Ok(Self {
            role: read_role(place, beat.role())?,
            group: place.id(&beat.group)?,
            member: place.id(&beat.member)?,
            promise: Term::new(beat.promise),
            position: beat.position.map(rows::read_end),
            number: beat.number,
            heard: beat.heard,
        })
    }
}
