//! `atoll switch plan | run | watch | pause | resume | abort`

use std::collections::BTreeMap;
use std::time::Duration;

use atoll_api::{
    CheckState, Code, Control, Execution, ExecutionSpec, Exit, Kind, Object, Phase, Plan, PlanSpec,
    PlanStatus, Problem, Step, StepState, Timestamp, WatchKind, collection, item,
};

use tokio::time::timeout;

use crate::client::Client;
use crate::{Failure, Format, Screen, output};

/// Pause before a watch that broke is begun again.
const WATCH_AGAIN: Duration = Duration::from_millis(500);
/// Longest silence of a watch before it is begun again: a frozen server says nothing either.
const WATCH_SILENCE: Duration = Duration::from_secs(5);

/// What `switch run` is told.
pub(crate) struct Wanted {
    pub(crate) plan: String,
    pub(crate) name: Option<String>,
    pub(crate) detach: bool,
}

pub(crate) async fn plan(
    client: &Client,
    spec: PlanSpec,
    format: Format,
    screen: &mut Screen<'_>,
) -> Result<Exit, Failure> {
    // The server names a plan after its hash.
    let order: Object<PlanSpec, PlanStatus> = Object::new(Kind::Plan, "", spec);
    let plan: Plan = client.post(&collection(Kind::Plan), &order).await?;
    let Some(status) = &plan.status else {
        return Err(Box::new(Problem::new(
            Code::UNREADABLE_ANSWER,
            "the plan came back empty",
        )));
    };
    match (output::whole(&plan, format)?, format) {
        (Some(whole), _) => screen.data(&whole),
        (None, Format::Name) => screen.data(&status.hash),
        (None, _) => plan_lines(status).iter().for_each(|line| screen.data(line)),
    }
    let warned = status
        .checks
        .iter()
        .any(|check| check.state == CheckState::Warned);
    match (status.may_run(), warned) {
        (false, _) => Ok(Exit::Refused),
        (true, true) => Ok(Exit::Warnings),
        (true, false) => Ok(Exit::Ok),
    }
}

fn plan_lines(status: &PlanStatus) -> Vec<String> {
    let mut lines: Vec<_> = status.text.lines().map(str::to_owned).collect();
    lines.push(String::new());
    for check in &status.checks {
        let mark = match check.state {
            CheckState::Passed => "ok",
            CheckState::Warned => "warning",
            CheckState::Refused => "REFUSED",
        };
        lines.push(format!(
            "check {:<20} {mark:<8} {}",
            check.name, check.message
        ));
    }
    if let Some(ms) = status.hold_ms {
        lines.push(format!("writes will be held for about {ms} ms"));
    }
    lines.push(format!("hash {}", status.hash));
    if status.may_run() {
        lines.push(format!(
            "run exactly this: atoll switch run --plan {}",
            status.hash
        ));
    }
    lines
}

pub(crate) async fn run(
    client: &Client,
    wanted: Wanted,
    format: Format,
    screen: &mut Screen<'_>,
) -> Result<Exit, Failure> {
    let name = wanted
        .name
        .unwrap_or_else(|| format!("run-{}", wanted.plan));
    let spec = ExecutionSpec {
        plan: wanted.plan,
        control: Control::Run,
        automatic: false,
    };
    let order: Execution = Object::new(Kind::Execution, &name, spec);
    // The name is the idempotency key: a lost answer is asked for again by the same order.
    let taken: Result<Execution, Failure> = client.post(&collection(Kind::Execution), &order).await;
    let execution = match taken {
        Err(lost) if lost.stable_code() == Code::LOST_ANSWER => {
            let found: Result<Execution, Failure> = client.get(&item(Kind::Execution, &name)).await;
            match found {
                Ok(execution) => execution,
                Err(gone) if gone.stable_code() == Code::NOT_FOUND => {
                    client.post(&collection(Kind::Execution), &order).await?
                }
                Err(_) => return Err(lost),
            }
        }
        other => other?,
    };
    screen.say(&format!(
        "execution {}; Ctrl-C detaches, the work goes on",
        execution.metadata.name
    ));
    if wanted.detach {
        match (output::whole(&execution, format)?, format) {
            (Some(whole), _) => screen.data(&whole),
            (None, _) => screen.data(&execution.metadata.name),
        }
        return Ok(Exit::Ok);
    }
    watch(client, &name, format, screen).await
}

/// Says what is wanted of an execution from now on.
pub(crate) async fn want(
    client: &Client,
    name: &str,
    wanted: Control,
    format: Format,
    screen: &mut Screen<'_>,
) -> Result<Exit, Failure> {
    let patch = serde_json::json!({"spec": {"control": wanted}});
    let path = item(Kind::Execution, name);
    let execution: Execution = client.patch(&path, &patch).await?;
    let phase = execution.status.as_ref().map(|status| status.phase);
    match (output::whole(&execution, format)?, format) {
        (Some(whole), _) => screen.data(&whole),
        (None, Format::Name) => screen.data(&format!("execution/{name}")),
        (None, _) => screen.data(&match (phase, wanted) {
            (Some(phase), _) if phase.is_over() => {
                format!("{name} is over: {}", format!("{phase:?}").to_lowercase())
            }
            (_, Control::Run) => format!("{name} goes on"),
            (_, Control::Pause) => {
                format!("{name} begins no further group; atoll switch resume {name}")
            }
            (_, Control::Abort) => format!("{name} begins nothing more; atoll switch watch {name}"),
        }),
    }
    Ok(Exit::Ok)
}

/// Prints every step as it changes, until the execution is over. A server that goes away meanwhile
/// is waited for: the work goes on without it.
pub(crate) async fn watch(
    client: &Client,
    name: &str,
    format: Format,
    screen: &mut Screen<'_>,
) -> Result<Exit, Failure> {
    // Says at once that there is no such execution.
    let mut execution: Execution = client.get(&item(Kind::Execution, name)).await?;
    let path = format!(
        "{}?watch=true&fieldSelector=metadata.name%3D{name}",
        collection(Kind::Execution)
    );
    let mut shown = Shown::default();
    loop {
        shown.changes(&execution, format, screen);
        if over(&execution) {
            return end(&execution, format, screen);
        }
        let Ok(mut watch) = client.watch(&path).await else {
            shown.interrupted(screen);
            tokio::time::sleep(WATCH_AGAIN).await;
            continue;
        };
        loop {
            let event = match timeout(WATCH_SILENCE, watch.next()).await {
                Ok(Some(event)) => event?,
                Ok(None) => break shown.interrupted(screen),
                // Nothing may be wrong: begin again without a word.
                Err(_) => break,
            };
            shown.told_of_interruption = false;
            let (kind, object) = event.read()?;
            if kind == WatchKind::Bookmark || object.metadata.name != name {
                continue;
            }
            execution = object
                .typed()
                .map_err(|error| Problem::unreadable(&error))?;
            shown.changes(&execution, format, screen);
            if over(&execution) {
                return end(&execution, format, screen);
            }
        }
        tokio::time::sleep(WATCH_AGAIN).await;
    }
}

fn over(execution: &Execution) -> bool {
    execution
        .status
        .as_ref()
        .is_some_and(|status| status.phase.is_over())
}

/// What a person has seen already.
#[derive(Default)]
struct Shown {
    steps: BTreeMap<(String, String), StepState>,
    told_of_interruption: bool,
}

impl Shown {
    fn changes(&mut self, execution: &Execution, format: Format, screen: &mut Screen<'_>) {
        for step in execution.status.iter().flat_map(|status| &status.steps) {
            let group = step
                .group
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default();
            let key = (group, step.name.clone());
            if self.steps.insert(key, step.state) == Some(step.state) {
                continue;
            }
            let line = step_line(step);
            match format {
                // Programs get the whole execution at its end, and nothing in between.
                Format::Json | Format::Yaml | Format::Name => screen.say(&line),
                Format::Table | Format::Wide => screen.data(&line),
            }
        }
    }

    fn interrupted(&mut self, screen: &mut Screen<'_>) {
        if !self.told_of_interruption {
            screen.say("no server answers; the work goes on, waiting for one");
            self.told_of_interruption = true;
        }
    }
}

fn step_line(step: &Step) -> String {
    let at = step.finished_unix_ms.or(step.started_unix_ms);
    // Of the whole time only the time of day matters to someone who watches.
    let at = at.map(|ms| Timestamp(ms).to_string());
    let at = at
        .as_deref()
        .and_then(|text| text.split('T').nth(1))
        .unwrap_or("-");
    let took = match (step.started_unix_ms, step.finished_unix_ms) {
        (Some(from), Some(to)) => format!("{} ms", to.saturating_sub(from)),
        _ => String::new(),
    };
    let group = step.group.as_ref().map_or("-", |group| group.as_str());
    let line = format!(
        "{at:<13} {group:<8} {:<28} {:<8} {took:<8} {}",
        step.name,
        format!("{:?}", step.state).to_lowercase(),
        step.message
    );
    line.trim_end().to_owned()
}

fn end(execution: &Execution, format: Format, screen: &mut Screen<'_>) -> Result<Exit, Failure> {
    let name = &execution.metadata.name;
    let Some(status) = &execution.status else {
        return Ok(Exit::Ok);
    };
    match (output::whole(execution, format)?, format) {
        (Some(whole), _) => screen.data(&whole),
        (None, Format::Name) => screen.data(&format!("execution/{name}")),
        (None, _) => {
            for group in &status.groups {
                screen.data(&format!(
                    "{}: term {} -> {}, primary {}, {}",
                    group.group,
                    group.term_before,
                    group.term,
                    crate::table::or_dash(group.primary.as_ref()),
                    group.owners.join("; ")
                ));
            }
            let f = &status.figures;
            let figures = [
                ("detection", f.detection_ms),
                ("hold", f.hold_ms),
                ("convergence", f.convergence_ms),
                ("rto", f.rto_ms),
            ];
            let known = figures
                .iter()
                .filter_map(|(what, ms)| ms.map(|ms| format!("{what} {ms:.0} ms")));
            let known: Vec<_> = known.collect();
            let word = format!("{:?}", status.phase).to_lowercase();
            screen.data(format!("{name} {word}  {}", known.join(", ")).trim_end());
        }
    }
    match status.phase {
        Phase::Failed | Phase::Aborted => {
            let what = format!("{name} {}", format!("{:?}", status.phase).to_lowercase());
            let problem = Problem::new(Code::EXECUTION_FAILED, what)
                .why(if status.message.is_empty() {
                    "no reason was given"
                } else {
                    &status.message
                })
                .next(format!("atoll get execution {name} -o yaml"));
            Err(Box::new(problem))
        }
        _ => Ok(Exit::Ok),
    }
}
