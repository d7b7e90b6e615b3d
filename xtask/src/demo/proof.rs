//! What the demo leaves: the figures on the screen, as JSON, and as one page.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use atoll_api::{Execution, RowHashes};
use bank::analyse::{Event, EventFigures, analyse};
use bank::report::{Latency, Run};
use serde_json::{Value, json};

/// What was seen from outside the load.
pub(crate) struct Seen {
    /// What was done to the world.
    pub(crate) events: Vec<Event>,
    /// Whether all members hold the same rows.
    pub(crate) rows: RowHashes,
    /// Everything that was ordered or that verdicts began, step by step.
    pub(crate) executions: Vec<Execution>,
    /// What control was, in words.
    pub(crate) control: &'static str,
}

/// Writes the reports and says what they hold; fails where anything acknowledged is missing,
/// doubled or differs between members.
pub(crate) fn show(output: &Path, run: &Run, seen: &Seen) -> Result<ExitCode> {
    let rows = &seen.rows;
    let figures = analyse(run, &seen.events);
    let mut report = serde_json::to_value(&run.report)?;
    let Value::Object(keys) = &mut report else {
        anyhow::bail!("the load's report is no object")
    };
    keys.insert("members_equal".to_owned(), json!(rows.equal));
    keys.insert("rows".to_owned(), serde_json::to_value(rows)?);
    keys.insert("events".to_owned(), serde_json::to_value(&figures)?);
    keys.insert(
        "executions".to_owned(),
        serde_json::to_value(&seen.executions)?,
    );
    // Said here as in the README: what this demo does not show.
    keys.insert("control".to_owned(), json!(seen.control));
    let write = |name: &str, text: String| -> Result<()> {
        let path = output.join(name);
        fs::write(&path, text).with_context(|| format!("{} cannot be written", path.display()))
    };
    write("report.json", serde_json::to_string_pretty(&report)?)?;
    write("report.html", bank::page::render(&report))?;

    println!(
        "\n{:<14}{:>10}{:>26}{:>10}{:>8}{:>8}{:>9}{:>13}",
        "event",
        "detection",
        "hold p50 / p99 / max",
        "rto",
        "held",
        "failed",
        "unknown",
        "convergence"
    );
    figures.iter().for_each(|event| println!("{}", line(event)));
    if let Some(loss) = figures.iter().find(|f| f.name == "city-loss") {
        println!(
            "\nmeanwhile, users of other cells who enter elsewhere: {} requests, {} failed, p99 {} (quiet {})",
            loss.bystanders.requests,
            loss.bystanders.failed,
            ms(loss.bystanders.latency_ms.map(|l| l.p99)),
            ms(loss.quiet_p99_ms)
        );
    }
    println!("\n{}", run.report.summary());
    println!(
        "members hold the same rows: {}",
        if rows.equal {
            "yes".to_owned()
        } else {
            format!("NO: {}", rows.unequal())
        }
    );
    println!("control is {}", seen.control);
    println!(
        "{}\n{}",
        output.join("report.html").display(),
        output.join("report.json").display()
    );

    let sound = run.report.sound() && rows.equal;
    println!(
        "{}",
        if sound {
            "nothing acknowledged was lost or doubled"
        } else {
            "THE PROOF FAILS"
        }
    );
    Ok(if sound {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn line(event: &EventFigures) -> String {
    let hold = |l: Latency| format!("{:.0} / {:.0} / {:.0} ms", l.p50, l.p99, l.max);
    format!(
        "{:<14}{:>10}{:>26}{:>10}{:>8}{:>8}{:>9}{:>13}",
        event.name,
        ms(event.detection_ms),
        event.hold_ms.map_or_else(|| "-".to_owned(), hold),
        ms(event.rto_ms),
        event.held,
        event.failed,
        event.unknown,
        ms(event.convergence_ms)
    )
}

fn ms(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.0} ms"))
}
