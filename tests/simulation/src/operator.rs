//! The operator: asks control for plans and runs them, as the command line does.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use atoll_api::{AnyObject, ExecutionSpec, Kind, Object, PlanSpec};
use atoll_runtime::Runtime;
use tokio::time::{Duration, sleep};
use tracing::info;

use crate::http;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often new orders are looked for.
const LOOK: Duration = Duration::from_millis(20);

/// Orders that wait for the operator. A cheap handle.
#[derive(Clone, Default)]
pub(crate) struct Operator(Arc<Mutex<Orders>>);

#[derive(Default)]
struct Orders {
    waiting: VecDeque<PlanSpec>,
    /// Executions that were taken.
    begun: u64,
}

impl Operator {
    /// Has this planned and run.
    pub(crate) fn order(&self, spec: PlanSpec) {
        self.orders().waiting.push_back(spec);
    }

    /// How many executions control has taken.
    pub(crate) fn begun(&self) -> u64 {
        self.orders().begun
    }

    fn orders(&self) -> std::sync::MutexGuard<'_, Orders> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries orders to whichever replica takes them; one that is refused is dropped.
    pub(crate) async fn serve(self, runtime: Runtime, api: Vec<SocketAddr>) -> Result<()> {
        loop {
            sleep(LOOK).await;
            let Some(spec) = self.orders().waiting.pop_front() else {
                continue;
            };
            let mut outcome = Err(anyhow::anyhow!("there is no control"));
            for at in &api {
                outcome = run(&runtime, *at, &spec).await;
                if outcome.is_ok() {
                    self.orders().begun += 1;
                    break;
                }
            }
            let outcome = outcome.unwrap_or_else(|error| format!("refused: {error:#}"));
            info!(?spec, outcome, "ordered");
        }
    }
}

async fn run(runtime: &Runtime, at: SocketAddr, spec: &PlanSpec) -> Result<String> {
    let plan: Object<&PlanSpec, ()> = Object::new(Kind::Plan, "", spec);
    let plan = post(runtime, at, Kind::Plan, &serde_json::to_string(&plan)?).await?;
    let hash = plan.status.as_ref().and_then(|status| status.get("hash"));
    let hash = hash.and_then(|hash| hash.as_str()).context("no hash")?;
    let spec = ExecutionSpec {
        plan: hash.to_owned(),
        control: atoll_api::Control::Run,
        automatic: false,
    };
    let name = format!("run-{}-{}", &hash[..12], runtime.wall_clock().0);
    let execution: Object<ExecutionSpec, ()> = Object::new(Kind::Execution, name, spec);
    let text = serde_json::to_string(&execution)?;
    let execution = post(runtime, at, Kind::Execution, &text).await?;
    Ok(execution.metadata.name)
}

async fn post(runtime: &Runtime, at: SocketAddr, kind: Kind, body: &str) -> Result<AnyObject> {
    let head = format!(
        "POST {}/{} HTTP/1.1\r\ncontent-type: application/json",
        atoll_api::RESOURCES,
        kind.plural()
    );
    let answer = http::ask(runtime, at, &head, body, PATIENCE).await;
    let answer = answer.map_err(|why| anyhow::anyhow!("{why:?}"))?;
    anyhow::ensure!(answer.status() == 200, "{} {}", answer.first, answer.body);
    Ok(serde_json::from_str(&answer.body)?)
}
