//! What control orders a member's agent to do.

use atoll_ownership::{Admitted, DriveOrder, Grant, OpKind};
use atoll_topology::{Epoch, GroupId, Lsn, MemberId, ShardId, Term};

use crate::proto::agent as wire;
use crate::text::{DecodeError, Place};

/// From control to an agent. Each may be repeated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// The member is admitted with this volume; an empty directory is initialised for it.
    Admit {
        /// The group.
        group: GroupId,
        /// The member.
        member: MemberId,
        /// The volume's nonce.
        volume: String,
    },
    /// Carry P3–P7 out.
    Drive(DriveOrder),
    /// Stop driving that op.
    StandDown {
        /// The group.
        group: GroupId,
        /// The op's term.
        term: Term,
        /// The execution.
        op: String,
    },
    /// To a leader: the members that its quorum can spare follow `through` for a moment, so that
    /// they are there when it is promoted. Undone by itself.
    Cascade {
        /// The group.
        group: GroupId,
        /// The term that is led.
        term: Term,
        /// The coming primary; the primary itself: everybody follows it again.
        through: MemberId,
    },
    /// Run this in each shard's schema.
    ApplySchema {
        /// The same id again is the same order.
        id: String,
        /// The statements.
        sql: String,
        /// Empty: all shards of the group.
        shards: Vec<ShardId>,
    },
    /// Hash the rows of these shards' tables.
    HashRows {
        /// Comes back in the answer.
        id: String,
        /// Empty: all shards of the group.
        shards: Vec<ShardId>,
        /// First wait until this much is replayed; zero: as it is.
        at_least: Lsn,
    },
}

fn numbers(shards: &[ShardId]) -> Vec<u32> {
    shards.iter().map(|shard| u32::from(shard.0)).collect()
}

fn read_shards(place: Place<'_>, shards: &[u32]) -> Result<Vec<ShardId>, DecodeError> {
    shards
        .iter()
        .map(|shard| place.shard("shards", *shard))
        .collect()
}

impl From<&Order> for wire::AgentOrder {
    fn from(order: &Order) -> Self {
        use wire::agent_order::Order as Wire;
        let order = match order {
            Order::Admit {
                group,
                member,
                volume,
            } => Wire::Admit(wire::Admit {
                group: group.to_string(),
                member: member.to_string(),
                volume: volume.clone(),
            }),
            Order::Drive(order) => Wire::Drive(drive(order)),
            Order::StandDown { group, term, op } => Wire::StandDown(wire::StandDown {
                group: group.to_string(),
                term: term.get(),
                op: op.clone(),
            }),
            Order::Cascade {
                group,
                term,
                through,
            } => Wire::Cascade(wire::Cascade {
                group: group.to_string(),
                term: term.get(),
                through: through.to_string(),
            }),
            Order::ApplySchema { id, sql, shards } => Wire::ApplySchema(wire::ApplySchema {
                id: id.clone(),
                sql: sql.clone(),
                shards: numbers(shards),
            }),
            Order::HashRows {
                id,
                shards,
                at_least,
            } => Wire::HashRows(wire::HashRows {
                id: id.clone(),
                shards: numbers(shards),
                at_least_lsn: at_least.0,
            }),
        };
        Self { order: Some(order) }
    }
}

impl TryFrom<wire::AgentOrder> for Order {
    type Error = DecodeError;

    fn try_from(message: wire::AgentOrder) -> Result<Self, DecodeError> {
        use wire::agent_order::Order as Wire;
        let place = Place("agent order");
        Ok(match message.order.ok_or_else(|| place.absent("order"))? {
            Wire::Admit(order) => Self::Admit {
                group: place.id(&order.group)?,
                member: place.id(&order.member)?,
                volume: order.volume,
            },
            Wire::Drive(order) => Self::Drive(read_drive(place, &order)?),
            Wire::StandDown(order) => Self::StandDown {
                group: place.id(&order.group)?,
                term: Term::new(order.term),
                op: order.op,
            },
            Wire::Cascade(order) => Self::Cascade {
                group: place.id(&order.group)?,
                term: Term::new(order.term),
                through: place.id(&order.through)?,
            },
            Wire::ApplySchema(order) => Self::ApplySchema {
                shards: read_shards(place, &order.shards)?,
                id: order.id,
                sql: order.sql,
            },
            Wire::HashRows(order) => Self::HashRows {
                shards: read_shards(place, &order.shards)?,
                at_least: Lsn(order.at_least_lsn),
                id: order.id,
            },
        })
    }
}

fn drive(order: &DriveOrder) -> wire::DriveOrder {
    let kind = match order.kind {
        OpKind::Switchover => wire::OpKind::Switchover,
        OpKind::Failover => wire::OpKind::Failover,
        OpKind::OwnerChange => wire::OpKind::OwnerChange,
        OpKind::CallOff => wire::OpKind::CallOff,
    };
    wire::DriveOrder {
        group: order.group.to_string(),
        kind: kind.into(),
        term: order.term.get(),
        open: order
            .open
            .as_ref()
            .map(|(term, primary)| wire::drive_order::Open {
                term: term.get(),
                primary: primary.to_string(),
            }),
        target: order.target.to_string(),
        members: order
            .members
            .iter()
            .map(|member| wire::drive_order::Admitted {
                member: member.id.to_string(),
                volume: member.volume.clone(),
            })
            .collect(),
        k: u32::from(order.k),
        grants: order
            .grants
            .iter()
            .map(|grant| wire::Grant {
                shard: u32::from(grant.shard.0),
                epoch: grant.epoch.get(),
                cell: grant.cell.to_string(),
            })
            .collect(),
        op: order.op.clone(),
    }
}

fn read_drive(place: Place<'_>, order: &wire::DriveOrder) -> Result<DriveOrder, DecodeError> {
    let kind = match order.kind() {
        wire::OpKind::Switchover => OpKind::Switchover,
        wire::OpKind::Failover => OpKind::Failover,
        wire::OpKind::OwnerChange => OpKind::OwnerChange,
        wire::OpKind::CallOff => OpKind::CallOff,
        wire::OpKind::Unspecified => return Err(place.absent("drive.kind")),
    };
    let admitted = |member: &wire::drive_order::Admitted| {
        Ok(Admitted {
            id: place.id(&member.member)?,
            volume: member.volume.clone(),
        })
    };
    let grant = |grant: &wire::Grant| {
        Ok(Grant {
            shard: place.shard("grant.shard", grant.shard)?,
            epoch: Epoch::new(grant.epoch),
            cell: place.id(&grant.cell)?,
        })
    };
    Ok(DriveOrder {
        group: place.id(&order.group)?,
        kind,
        term: Term::new(order.term),
        open: order
            .open
            .as_ref()
            .map(|open| Ok((Term::new(open.term), place.id(&open.primary)?)))
            .transpose()?,
        target: place.id(&order.target)?,
        members: order
            .members
            .iter()
            .map(admitted)
            .collect::<Result<_, DecodeError>>()?,
        k: place.narrow("drive.k", u64::from(order.k))?,
        grants: order
            .grants
            .iter()
            .map(grant)
            .collect::<Result<_, DecodeError>>()?,
        op: order.op.clone(),
    })
}
