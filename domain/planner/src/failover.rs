//! What a verdict asks for, under the guards of automation.

use atoll_detection::guard::Held;
use atoll_detection::{FailoverVerdict, LostVerdict, Scope, Verdict};
use atoll_ownership::record::GroupRecord;
use atoll_topology::{GroupId, Term};

use crate::groups::{Adopt, Ask, Draft};
use crate::limits::Limits;
use crate::observed::{Avoid, Observed};
use crate::plan::{Pace, Plan};
use crate::refusal::{Refusal, Refused};

/// Plans what a verdict asks for. The guards are asked here so that a person sees why nothing
/// happens, and asked again in the transaction that begins each step.
pub fn plan_failover(
    observed: &Observed,
    verdict: &Verdict,
    limits: &Limits,
) -> Result<Plan, Refused> {
    match verdict {
        Verdict::Failover(verdict) => group(observed, verdict, limits),
        Verdict::Lost(verdict) => place(observed, verdict, limits),
        Verdict::Frozen(verdict) => Err(Refusal::Held(Held::Frozen {
            reason: verdict.to_string(),
        })
        .into()),
    }
}

fn judged<'a>(
    observed: &'a Observed,
    group: &GroupId,
    term: Term,
) -> Result<&'a GroupRecord, Refusal> {
    let record = observed.records.get(group);
    let record = record.ok_or_else(|| Refusal::NoSuchGroup(group.clone()))?;
    let open = record.open_term();
    if open == term {
        Ok(record)
    } else {
        Err(Refusal::Stale {
            group: group.clone(),
            judged: term,
            open,
        })
    }
}

fn group(observed: &Observed, verdict: &FailoverVerdict, limits: &Limits) -> Result<Plan, Refused> {
    let record = judged(observed, &verdict.group, verdict.term)?;
    if verdict.over.is_some() && record.op.is_none() {
        return Err(Refusal::NothingToDo("its op has ended meanwhile".to_owned()).into());
    }
    let mut draft = Draft::new(observed, limits);
    let avoid = Avoid {
        member: Some(verdict.lost.clone()),
        ..Avoid::default()
    };
    let ask = Ask {
        leaves: &|_| false,
        adopt: &Adopt::Near,
        avoid: &avoid,
        unplanned: true,
        over: verdict.over,
    };
    draft.group(record, &ask);
    if let Err(held) = observed
        .guard
        .admit_failover(verdict, &limits.automatic, observed.now_ms)
    {
        draft.refuse(held.into());
    }
    draft.finish(verdict.to_string(), true, Pace::Together)
}

fn place(observed: &Observed, verdict: &LostVerdict, limits: &Limits) -> Result<Plan, Refused> {
    let mut draft = Draft::new(observed, limits);
    let avoid = match &verdict.scope {
        Scope::Cell { cell, .. } => Avoid {
            cells: vec![cell.clone()],
            ..Avoid::default()
        },
        Scope::Zone { zone, .. } => Avoid {
            zone: Some(zone.clone()),
            ..Avoid::default()
        },
        Scope::Region { region } => Avoid {
            region: Some(region.clone()),
            ..Avoid::default()
        },
    };
    let mut guard = observed.guard.clone();
    for judged_group in &verdict.judged {
        let id = &judged_group.group;
        let record = match judged(observed, id, judged_group.term) {
            Ok(record) => record,
            Err(refusal) => {
                draft.defer(id, refusal);
                continue;
            }
        };
        // A group that is failing over waits until it is open, or its op is overdue.
        let over = match &record.op {
            Some(op) if observed.now_ms < op.deadline_ms => {
                let (kind, term) = (op.kind, op.term);
                draft.defer(
                    id,
                    Refusal::OpRunning {
                        group: id.clone(),
                        kind,
                        term,
                    },
                );
                continue;
            }
            op => op.as_ref().map(|op| op.term),
        };
        let Some(primary) = record.open.as_ref().map(|open| open.primary.clone()) else {
            continue;
        };
        let gone = avoid.has_member(observed, id, &primary);
        if !gone && observed.reachable(&primary, limits).is_none() {
            let group = id.clone();
            draft.defer(
                id,
                Refusal::PrimaryOutOfReach {
                    group,
                    member: primary,
                },
            );
            continue;
        }
        let ask = Ask {
            leaves: &|run| verdict.cells.contains(&run.cell),
            adopt: &Adopt::Near,
            avoid: &avoid,
            unplanned: over.is_some() || gone,
            over,
        };
        draft.group_alone(record, &ask, |step| {
            let (shards, now_ms) = (step.shards(), observed.now_ms);
            guard = guard.admit_owner_change(verdict, &shards, &limits.automatic, now_ms)?;
            Ok(())
        });
    }
    let title = verdict.to_string();
    let title = title.lines().next().unwrap_or_default().to_owned();
    draft.finish(title, true, Pace::Together)
}
