//! Verdicts become executions, if the guards admit them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use atoll_api::{AutomaticEntry, AutomaticOrder, AutomaticVerb};
use atoll_detection::guard::{Guard, Held};
use atoll_detection::{Detector, FrozenVerdict, Verdict};
use atoll_planner::{Limits, Plan, plan_failover};
use atoll_store::{Expect, StoreError};
use tracing::{error, info, warn};

use crate::app::Control;
use crate::config::Config;
use crate::observe::view;
use crate::reconcile::execution::{self, Guarded, StepPhase, Stored};

/// How often the reports are judged.
const LOOK: Duration = Duration::from_millis(50);
/// An automatic execution that was just made has this long to begin its steps before anything else
/// is planned for their groups.
const BEGINS_WITHIN_MS: u64 = 1_000;
/// A verdict that leads nowhere is logged this often.
const SAID_AGAIN_MS: u64 = 5_000;

/// Starts judging.
pub(crate) fn start(control: &Arc<Control>, config: &Config) {
    let mut limits = Limits::default();
    limits.automatic.automatic_switch_min_interval_ms =
        config.automatic_switch_min_interval_seconds * 1_000;
    if let Some(window) = config.automatic_window_seconds {
        limits.automatic.window_ms = window * 1_000;
    }
    let (control, act) = (control.clone(), config.automatic_failover);
    control
        .clone()
        .runtime
        .tasks()
        .spawn("detection", judge(control, limits, act));
}

async fn judge(control: Arc<Control>, limits: Limits, act: bool) {
    let mut detector = Detector::default();
    let mut said: BTreeMap<String, u64> = BTreeMap::new();
    loop {
        let now_ms = control.runtime.wall_clock().0;
        let reports = view::reports(&control, now_ms);
        said.retain(|_, at| now_ms.saturating_sub(*at) < SAID_AGAIN_MS);
        for verdict in detector.judge(&reports, &limits.automatic, now_ms) {
            let text = verdict.to_string();
            let news = said.insert(text.clone(), now_ms).is_none();
            if news {
                warn!(verdict = text, "verdict");
            }
            if !act || !control.seat.acts() {
                continue;
            }
            match follow(&control, &verdict, &limits, now_ms).await {
                Ok(Some(execution)) => info!(execution, verdict = text, "acting on a verdict"),
                Ok(None) => {}
                Err(reason) if news => {
                    error!(verdict = text, reason, "a verdict cannot be acted upon");
                }
                Err(_) => {}
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Makes the execution that a verdict asks for; its name, or why there is none.
pub(crate) async fn follow(
    control: &Arc<Control>,
    verdict: &Verdict,
    limits: &Limits,
    now_ms: u64,
) -> Result<Option<String>, String> {
    let store_failed = |error: StoreError| error.to_string();
    let (guard, expect) = crate::guard::load(control.store.as_ref())
        .await
        .map_err(store_failed)?;
    // Where the store did not answer for a while, the world has changed since it was judged: whoever
    // was cut off from all others must not freeze them when it is back.
    let age_ms = control.runtime.wall_clock().0.saturating_sub(now_ms);
    if !control.seat.acts() || age_ms >= limits.automatic.judge_gap_ms {
        return Ok(None);
    }
    if let Verdict::Frozen(frozen) = verdict {
        if guard.frozen.is_none() {
            page(control, frozen, &guard, expect)
                .await
                .map_err(store_failed)?;
        }
        return Ok(None);
    }
    let observed = view::observed(control, guard.clone(), now_ms);
    let plan = plan_failover(&observed, verdict, limits).map_err(|refused| refused.to_string())?;
    if plan.steps.is_empty() || about_to_begin(control, &plan, now_ms) {
        return Ok(None);
    }
    let next = admitted(&guard, verdict, &plan, limits, now_ms).map_err(|held| held.to_string())?;
    let name = format!("auto-{}-{}", next.number, &plan.hash()[..8]);
    let stored = Stored::new(control, name.clone(), plan);
    match execution::create_automatic(control, &stored, Guarded { expect, next }).await {
        Ok(()) => Ok(Some(name)),
        // Another replica, or another verdict, was first: everything is looked at again.
        Err(StoreError::Conflict { .. }) => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

/// Two cities at once: owner changes stay as they are until a person thaws them. Where this try
/// fails, the next verdict is another one.
async fn page(
    control: &Control,
    frozen: &FrozenVerdict,
    found: &Guard,
    expect: Expect,
) -> Result<(), StoreError> {
    let order = AutomaticOrder {
        order: AutomaticVerb::Freeze,
        by: "detection".to_owned(),
        reason: frozen.to_string(),
    };
    let unix_ms = control.runtime.wall_clock().0;
    let entry = AutomaticEntry { unix_ms, order };
    match crate::guard::carry_out(control, &entry, found, expect).await {
        Err(StoreError::Conflict { .. } | StoreError::OutcomeUnknown { .. }) => return Ok(()),
        ended => ended?,
    }
    error!(
        verdict = %frozen,
        next = "atoll switch automatic thaw",
        "automatic owner changes are frozen: a person must look"
    );
    Ok(())
}

/// Whether another automatic execution is about to begin an op of one of these groups: a plan that
/// does not know of it would only be refused. The next look shows the op.
fn about_to_begin(control: &Control, plan: &Plan, now_ms: u64) -> bool {
    let executions = control.executions.all();
    let fresh = |stored: &&Stored| {
        let age_ms = now_ms.saturating_sub(stored.created_ms);
        stored.plan.automatic && !stored.phase.is_over() && age_ms < BEGINS_WITHIN_MS
    };
    let mut pending = executions.values().filter(fresh).flat_map(|stored| {
        let steps = stored.plan.steps.iter().zip(&stored.steps);
        steps.filter_map(|(step, phase)| (*phase == StepPhase::Pending).then_some(&step.group))
    });
    pending.any(|group| plan.steps.iter().any(|step| step.group == *group))
}

fn admitted(
    guard: &Guard,
    verdict: &Verdict,
    plan: &Plan,
    limits: &Limits,
    now_ms: u64,
) -> Result<Guard, Held> {
    match verdict {
        Verdict::Failover(verdict) => guard.admit_failover(verdict, &limits.automatic, now_ms),
        Verdict::Lost(verdict) => {
            let shards: Vec<_> = plan
                .steps
                .iter()
                .flat_map(atoll_planner::Step::shards)
                .collect();
            guard.admit_owner_change(verdict, &shards, &limits.automatic, now_ms)
        }
        Verdict::Frozen(frozen) => Err(Held::Frozen {
            reason: frozen.to_string(),
        }),
    }
}
