//! Executions as resources.

use std::sync::Arc;

use atoll_api::{
    AnyObject, Code, Control as Wanted, ExecutionSpec, ExecutionStatus, Figures, GroupOutcome,
    Kind, Object, Problem, Step, StepState, Timestamp,
};
use atoll_store::StoreError;
use atoll_topology::{GroupId, Term};
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use serde_json::Value;

use super::{Failed, order};
use crate::app::Control;
use crate::plans;
use crate::reconcile::execution::{self, StepPhase, Stored};
use crate::timeline::{self, BEGUN, CONVERGED, Mark, PUBLISHED};

/// Starts a plan; the same name and plan again is the same execution.
pub(crate) async fn create(control: &Arc<Control>, body: &[u8]) -> Result<AnyObject, Failed> {
    let (name, spec): (_, ExecutionSpec) = order::object(Kind::Execution, body)?;
    let plan = plans::find(control, &spec.plan).await?;
    let name = if name.is_empty() {
        format!("run-{}", &plan.hash()[..12])
    } else {
        name
    };
    match execution::load(control, &name).await? {
        // Given again: it may have moved the world itself.
        Some((known, _)) if known.plan.hash() == plan.hash() => return Ok(shown(control, &known)),
        _ => {
            control.records.refresh().await?;
            stale(control, &plan)?;
        }
    }
    let stored = Stored::new(control, name.clone(), plan);
    match execution::create(control, &stored).await {
        Ok(()) => {
            let there = control.executions.all().get(&name).cloned();
            Ok(shown(control, &there.unwrap_or(stored)))
        }
        Err(StoreError::Conflict { .. }) => Err(Failed::from(
            Problem::new(Code::EXISTS, format!("execution {name} runs another plan"))
                .about(Kind::Execution, name),
        )),
        Err(error) => Err(error.into()),
    }
}

/// Refuses with the difference where the world has moved since the plan was made.
fn stale(control: &Control, plan: &atoll_planner::Plan) -> Result<(), Failed> {
    let records = control.records.all();
    let moved = plan.steps.iter().filter_map(|step| {
        let open = records
            .get(&step.group)
            .map_or(Term::ZERO, |record| record.open_term());
        (open != step.judged).then(|| {
            format!(
                "group {}: term {open} is open, the plan was made at {}",
                step.group, step.judged
            )
        })
    });
    let moved: Vec<_> = moved.collect();
    if moved.is_empty() {
        return Ok(());
    }
    let problem = Problem::new(
        Code::STALE_PLAN,
        "the world has moved since the plan was made",
    )
    .effect("nothing was done")
    .next("atoll switch plan …");
    Err(Failed::from(moved.into_iter().fold(problem, Problem::why)))
}

/// Pause, abort, go on: a merge patch of `spec.control`.
pub(crate) async fn patch(
    State(control): State<Arc<Control>>,
    Path((plural, name)): Path<(String, String)>,
    body: Bytes,
) -> Result<Json<AnyObject>, Failed> {
    if plural != Kind::Execution.plural() {
        let what = format!("{plural} cannot be changed");
        return Err(Failed::from(Problem::new(Code::METHOD, what)));
    }
    let bad =
        |why: String| Problem::new(Code::BAD_REQUEST, "the patch was not understood").why(why);
    let patch: Value = serde_json::from_slice(&body).map_err(|error| bad(error.to_string()))?;
    let wanted = patch.pointer("/spec/control").cloned();
    let wanted = wanted.ok_or_else(|| bad("only spec.control can be changed".to_owned()))?;
    let wanted: Wanted = serde_json::from_value(wanted).map_err(|error| bad(error.to_string()))?;
    execution::want(&control, &name, wanted).await?;
    let found = execution::load(&control, &name).await?;
    found
        .map(|(stored, _)| Json(shown(&control, &stored)))
        .ok_or_else(|| {
            let what = format!("there is no execution {name}");
            Failed::from(Problem::new(Code::NOT_FOUND, what).about(Kind::Execution, name))
        })
}

/// The executions, by name: all, or only the one of this name.
pub(crate) fn list(control: &Control, only: Option<&str>) -> Vec<AnyObject> {
    let all = control.executions.all();
    let asked = |stored: &&Stored| only.is_none_or(|only| stored.name == only);
    let asked = all.values().filter(asked);
    asked.map(|stored| shown(control, stored)).collect()
}

fn shown(control: &Control, stored: &Stored) -> AnyObject {
    let marks = control.timeline.of(&stored.name);
    let spec = ExecutionSpec {
        plan: stored.plan.hash(),
        control: stored.wanted,
        automatic: stored.plan.automatic,
    };
    let status = ExecutionStatus {
        phase: stored.phase,
        message: stored.message.clone(),
        started: Some(Timestamp(stored.created_ms)),
        finished: stored.finished_ms.map(Timestamp),
        steps: steps(stored, &marks),
        groups: outcomes(control, stored),
        figures: figures(stored, &marks),
    };
    let spec = serde_json::to_value(&spec).unwrap_or_default();
    let mut object = Object::new(Kind::Execution, stored.name.clone(), spec);
    object.metadata.creation_timestamp = Some(Timestamp(stored.created_ms));
    object.status = serde_json::to_value(&status).ok();
    object
}

/// Each mark ends a step that began with the one before it; what is not begun comes last.
fn steps(stored: &Stored, marks: &[Mark]) -> Vec<Step> {
    let mut steps = Vec::new();
    for (planned, phase) in stored.plan.steps.iter().zip(&stored.steps) {
        let mut before = stored.created_ms;
        for mark in marks.iter().filter(|mark| mark.group == planned.group) {
            steps.push(Step {
                name: mark.step.clone(),
                group: Some(planned.group.clone()),
                state: if mark.step.starts_with("stopped") {
                    StepState::Failed
                } else {
                    StepState::Done
                },
                started_unix_ms: Some(before),
                finished_unix_ms: Some(mark.unix_ms),
                message: format!("term {}", mark.term),
            });
            before = mark.unix_ms;
        }
        let state = match phase {
            StepPhase::Pending => StepState::Pending,
            StepPhase::Begun => StepState::Running,
            StepPhase::Done => continue,
        };
        steps.push(Step {
            name: planned
                .to_string()
                .lines()
                .next()
                .unwrap_or_default()
                .to_owned(),
            group: Some(planned.group.clone()),
            state,
            started_unix_ms: (state == StepState::Running).then_some(before),
            finished_unix_ms: None,
            message: String::new(),
        });
    }
    steps
}

fn outcomes(control: &Control, stored: &Stored) -> Vec<GroupOutcome> {
    let records = control.records.all();
    let outcome = |before: &execution::Before| {
        let record = records.get(&before.group);
        let open = record.and_then(|record| record.open.clone());
        GroupOutcome {
            group: before.group.clone(),
            term_before: before.term,
            term: open.as_ref().map_or(Term::ZERO, |open| open.term),
            primary_before: before.primary.clone(),
            primary: open.map(|open| open.primary),
            owners: record.map(super::status::owners).unwrap_or_default(),
        }
    };
    stored.before.iter().map(outcome).collect()
}

fn figures(stored: &Stored, marks: &[Mark]) -> Figures {
    // Of all groups the longest; none where any has none.
    let worst = |ms: &dyn Fn(&GroupId) -> Option<u64>| {
        let each = stored.plan.steps.iter().map(|step| ms(&step.group));
        let longest = each.collect::<Option<Vec<_>>>()?.into_iter().max()?;
        Some(f64::from(u32::try_from(longest).unwrap_or(u32::MAX)))
    };
    let span = |from, to| worst(&|group| timeline::span(marks, group, from, to));
    Figures {
        detection_ms: None,
        hold_ms: span(BEGUN, PUBLISHED),
        convergence_ms: span(PUBLISHED, CONVERGED),
        rto_ms: worst(&|group| {
            let open = timeline::reached(marks, group, PUBLISHED)?;
            Some(open.saturating_sub(stored.created_ms))
        }),
    }
}
