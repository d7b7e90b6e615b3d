//! How a data group begins: admitted at term 1, initialised by its agents, led at term 2.

use std::sync::Arc;
use std::time::Duration;

use atoll_ownership::record::{Begin, GroupRecord, Move};
use atoll_ownership::{Admitted, OpKind};
use atoll_streams::agent::Order;
use atoll_topology::{GroupId, Term};
use tracing::{info, warn};

use crate::app::Control;
use crate::records::ChangeError;

/// How often a group that is not born is looked at when nothing is heard of it.
const LOOK: Duration = Duration::from_millis(100);

/// Brings one group to life; returns once it has an op or an open term.
pub(crate) async fn run(control: Arc<Control>, group: GroupId) {
    loop {
        control.seat.until_acts().await;
        match step(&control, &group).await {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => warn!(%group, %error, "the group could not be admitted; again"),
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn step(control: &Control, group: &GroupId) -> Result<bool, ChangeError> {
    let Some(record) = control.records.get(group) else {
        control.records.create(admit(control, group)).await?;
        info!(%group, "group admitted");
        return Ok(false);
    };
    if record.term != Term::new(1) {
        return Ok(true);
    }
    let mut ready = true;
    for admitted in &record.members {
        let seen = control
            .agents
            .member(&admitted.id)
            .filter(|seen| seen.live());
        let holds = seen.as_ref().is_some_and(|seen| {
            seen.status.volume.as_ref() == Some(&admitted.volume) && seen.position().is_some()
        });
        if !holds {
            ready = false;
            let unused = seen.is_some_and(|seen| seen.status.volume.is_none());
            if unused {
                control.agents.order(
                    &admitted.id,
                    Order::Admit {
                        group: group.clone(),
                        member: admitted.id.clone(),
                        volume: admitted.volume.clone(),
                    },
                );
            }
        }
    }
    if !ready {
        return Ok(false);
    }
    let begin = first(control, group, &record);
    control
        .records
        .change(group, |record| record.begin(&begin), |_, txn| txn)
        .await?;
    info!(%group, primary = %begin.target, "group is being born");
    Ok(true)
}

fn admit(control: &Control, group: &GroupId) -> GroupRecord {
    let spec = &control.topology.groups[group];
    // A volume that was initialised for another admission has another nonce.
    let nonce = control.runtime.wall_clock().0;
    let members = spec.members.iter().map(|member| Admitted {
        id: member.id.clone(),
        volume: format!("{}-{nonce:x}", member.id),
    });
    let owner = |shard| control.topology.shard_map.owners[usize::from(shard)].clone();
    let owners = spec.shards.iter().map(|shard| (*shard, owner(shard.0)));
    GroupRecord::birth(group.clone(), members.collect(), spec.k, owners)
}

fn first(control: &Control, group: &GroupId, record: &GroupRecord) -> Begin {
    let moves = record.runs.iter().map(|run| Move {
        first: run.first,
        last: run.last,
        to: run.cell.clone(),
    });
    Begin {
        kind: OpKind::Failover,
        judged: Term::ZERO,
        over: None,
        target: record.members[0].id.clone(),
        moves: moves.collect(),
        plan: "birth".to_owned(),
        execution: format!("birth-{group}"),
        deadline_ms: control.runtime.wall_clock().0 + 60_000,
        automatic: true,
    }
}
