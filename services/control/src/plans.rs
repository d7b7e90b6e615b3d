//! Plans: made from what is seen now, kept as they are, found by their hash.

use std::sync::Arc;

use atoll_api::{
    AnyObject, Check, CheckState, Code, Kind, MadeFor, Object, PlanSpec, PlanStatus, Problem,
};
use atoll_planner::{Limits, Order, Plan, Refusal, Refused, plan_switchover};
use atoll_store::{Expect, StoreError, Txn};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::api::Failed;
use crate::api::object;
use crate::app::Control;
use crate::observe::view;

/// Where plans stand.
pub(crate) const PREFIX: &str = "/plan/";

#[derive(Serialize, Deserialize)]
pub(crate) struct Stored {
    spec: PlanSpec,
    pub(crate) plan: Plan,
}

/// Makes the plan that is asked for, or says why there is none.
pub(crate) async fn create(control: &Arc<Control>, body: &[u8]) -> Result<AnyObject, Failed> {
    let (_, spec): (_, PlanSpec) = object(Kind::Plan, body)?;
    let order = match spec.clone() {
        PlanSpec::SwitchCell { cell, to } => Order::SwitchCell { cell, to },
        PlanSpec::EvacuateRegion { region } => Order::EvacuateRegion { region },
        PlanSpec::Failback {} => Order::Failback,
    };
    let (guard, _) = crate::guard::load(control.store.as_ref()).await?;
    let observed = view::observed(control, guard, control.runtime.wall_clock().0);
    let plan = plan_switchover(&observed, &order, &Limits::default()).map_err(refused)?;
    let key = format!("{PREFIX}{}", plan.hash());
    let stored = Stored { spec, plan };
    let value = crate::stored::encode(&stored);
    match control
        .store
        .txn(Txn::new().expect(&key, Expect::Absent).put(&key, value))
        .await
    {
        // The same plan again is the same resource.
        Ok(_) | Err(StoreError::Conflict { .. }) => Ok(shown(&stored)),
        Err(error) => Err(error.into()),
    }
}

/// Names a text: SHA-256 in hexadecimal.
pub(crate) fn hash_of(text: &str) -> String {
    hex::encode(Sha256::digest(text.as_bytes()))
}

/// All plans, by name.
pub(crate) async fn list(control: &Arc<Control>) -> Result<Vec<AnyObject>, StoreError> {
    let listed = control.store.list(PREFIX).await?;
    listed
        .entries
        .iter()
        .map(|(key, found)| Ok(shown(&read(key, &found.value)?)))
        .collect()
}

/// The plan of a hash, or of the one plan whose hash begins like that.
pub(crate) async fn find(control: &Arc<Control>, hash: &str) -> Result<Plan, Failed> {
    let listed = control.store.list(&format!("{PREFIX}{hash}")).await?;
    match listed.entries.as_slice() {
        [(key, found)] => Ok(read(key, &found.value)?.plan),
        [] => Err(Failed::from(
            Problem::new(Code::NOT_FOUND, format!("there is no plan {hash}"))
                .next("atoll switch plan …"),
        )),
        _ => Err(Failed::from(Problem::new(
            Code::BAD_REQUEST,
            format!("several plans begin with {hash}"),
        ))),
    }
}

fn read(key: &str, value: &[u8]) -> Result<Stored, StoreError> {
    crate::stored::decode(key, value)
}

fn shown(stored: &Stored) -> AnyObject {
    let plan = &stored.plan;
    let status = PlanStatus {
        hash: plan.hash(),
        text: plan.to_string(),
        checks: plan.checks.iter().map(check).collect(),
        hold_ms: Some(plan.hold_ms()),
        made_for: plan
            .made_for()
            .into_iter()
            .map(|made| MadeFor {
                group: made.group,
                term: made.term,
                shards: made.shards,
            })
            .collect(),
    };
    let name = format!("plan-{}", &plan.hash()[..12]);
    let mut object = Object::new(
        Kind::Plan,
        name,
        serde_json::to_value(&stored.spec).unwrap_or_default(),
    );
    object.status = serde_json::to_value(&status).ok();
    object
}

fn check(check: &atoll_planner::Check) -> Check {
    let state = match check.state {
        atoll_planner::CheckState::Passed => CheckState::Passed,
        atoll_planner::CheckState::Warned => CheckState::Warned,
    };
    Check {
        name: check.name.clone(),
        state,
        message: check.message.clone(),
    }
}

fn refused(refused: Refused) -> Failed {
    let code = match refused.0.first() {
        Some(Refusal::NoSuchCell(_) | Refusal::NoSuchRegion(_) | Refusal::NoSuchGroup(_)) => {
            Code::NOT_FOUND
        }
        Some(Refusal::NotBorn(_)) => Code::NOT_BORN,
        Some(Refusal::OpRunning { .. }) => Code::BUSY,
        Some(Refusal::TooFewMembers { .. } | Refusal::NoTarget { .. }) => Code::NO_QUORUM,
        _ => Code::GUARD,
    };
    let problem = Problem::new(code, "there is no such plan now").next("atoll status");
    Failed::from(
        refused
            .0
            .iter()
            .fold(problem, |problem, reason| problem.why(reason.to_string())),
    )
}
