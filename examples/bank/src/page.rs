//! Draws a report as one self-contained page: verdict, figures, events, and each city's throughput
//! and latency over time. No script, nothing loaded; light or dark as the reader's system is.

mod chart;

use serde_json::Value;

/// One page. Takes what `bank load` writes, and the demo's report, which has `events`,
/// `members_equal` and `goals` (`what`, `value`, `goal`, `met`) besides. What is absent is left out.
pub fn render(report: &Value) -> String {
    let sections = [
        verdict(report),
        tiles(report),
        goals(report),
        events(report),
        cities(report),
        words(),
    ];
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{}</title>\n<style>\n{}</style>\n</head>\n<body>\n{}</body>\n</html>\n",
        escape(title(report)),
        include_str!("page/style.css"),
        sections.concat(),
    )
}

fn title(report: &Value) -> &str {
    report["title"]
        .as_str()
        .unwrap_or("Atoll: was anything lost?")
}

pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// Whether the report's figures say that all is well; from the figures themselves, so that a page
/// cannot be kinder than its numbers.
fn sound(report: &Value) -> bool {
    let none = |key: &str| report[key].as_u64() == Some(0);
    let zero_or_absent = |key: &str| {
        report
            .get(key)
            .is_none_or(|value| value.as_u64() == Some(0))
    };
    let readings = report["readings"].as_object();
    let read = readings.is_none_or(|all| {
        all.values()
            .all(|r| r["unread_shards"].as_array().is_none_or(Vec::is_empty))
    });
    report["acknowledged"].as_u64().is_some_and(|n| n > 0)
        && none("lost")
        && none("duplicated")
        && report["conserved"] == true
        && report["members_equal"] != false
        && ["altered", "strangers", "denied_but_present"]
            .into_iter()
            .all(zero_or_absent)
        && report["unread_shards"].as_array().is_none_or(Vec::is_empty)
        && read
}

fn verdict(report: &Value) -> String {
    let (class, words) = if sound(report) {
        ("verdict", "Nothing acknowledged was lost or doubled.")
    } else {
        (
            "verdict bad",
            "The books do not agree with what users were told.",
        )
    };
    let seconds = report["seconds"]
        .as_f64()
        .map(|s| format!("{s:.0} s of load"))
        .unwrap_or_default();
    let rate = report["rate"]
        .as_u64()
        .map(|r| format!(" at {r} transfers a second"))
        .unwrap_or_default();
    let gateways = report["gateways"]
        .as_array()
        .map(Vec::len)
        .unwrap_or_default();
    let findings = report["examples"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str);
    let findings: String = findings.map(|f| format!("<p>{}</p>", escape(f))).collect();
    format!(
        "<h1>{}</h1>\n<div class=\"{class}\"><strong>{words}</strong>\
         <p>{seconds}{rate}, through {gateways} gateways; every shard's books read afterwards.</p>{findings}</div>\n",
        escape(title(report)),
    )
}

fn tiles(report: &Value) -> String {
    // Name in the report, words for people, whether anything but zero (or true) is bad.
    let shown = [
        ("acknowledged", "acknowledged", false),
        ("present", "of them in the books", false),
        ("lost", "lost", true),
        ("duplicated", "doubled", true),
        ("failed", "failed", false),
        ("unknown", "outcome unknown", false),
        ("conserved", "money conserved", true),
        ("members_equal", "all copies equal", true),
    ];
    let mut tiles = String::new();
    for (key, words, must_be_zero) in shown {
        let (text, zero) = match &report[key] {
            Value::Number(number) => (grouped(number), number.as_u64() == Some(0)),
            Value::Bool(yes) => (if *yes { "yes" } else { "no" }.to_owned(), *yes),
            _ => continue,
        };
        let class = if must_be_zero && !zero {
            "tile bad"
        } else {
            "tile"
        };
        tiles.push_str(&format!(
            "<div class=\"{class}\"><b>{text}</b><span>{words}</span></div>"
        ));
    }
    format!("<div class=\"tiles\">{tiles}</div>\n")
}

/// `12345` → `12,345`
fn grouped(number: &serde_json::Number) -> String {
    let text = number.to_string();
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return text;
    }
    let mut grouped = String::new();
    for (index, digit) in text.chars().enumerate() {
        if index > 0 && (text.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

fn goals(report: &Value) -> String {
    let Some(goals) = report["goals"].as_array().filter(|goals| !goals.is_empty()) else {
        return String::new();
    };
    let text = |value: &Value| match value {
        Value::String(text) => escape(text),
        Value::Null => "–".to_owned(),
        other => escape(&other.to_string()),
    };
    let mut rows = String::new();
    for goal in goals {
        let (class, word) = match goal["met"].as_bool() {
            Some(true) => ("good", "reached"),
            Some(false) => ("bad", "missed"),
            None => ("", "–"),
        };
        rows.push_str(&format!(
            "<tr><td class=\"words\">{}</td><td>{}</td><td>{}</td><td class=\"{class}\">{word}</td></tr>",
            text(&goal["what"]),
            text(&goal["value"]),
            text(&goal["goal"]),
        ));
    }
    format!(
        "<h2>What it must reach</h2>\n<div class=\"scroll\"><table><tr><th class=\"words\">what</th>\
         <th>measured</th><th>goal</th><th></th></tr>{rows}</table></div>\n"
    )
}

fn events(report: &Value) -> String {
    let Some(events) = report["events"]
        .as_array()
        .filter(|events| !events.is_empty())
    else {
        return String::new();
    };
    let ms = |value: &Value| match value.as_f64() {
        Some(ms) if ms >= 10_000.0 => format!("{:.1} s", ms / 1000.0),
        Some(ms) => format!("{ms:.0} ms"),
        None => "–".to_owned(),
    };
    let count = |value: &Value| value.as_u64().map_or("–".to_owned(), |n| n.to_string());
    let mut rows = String::new();
    for (index, event) in events.iter().enumerate() {
        let hold = &event["hold_ms"];
        let failed = if event["failed"].as_u64().unwrap_or(0) > 0 {
            " class=\"bad\""
        } else {
            ""
        };
        rows.push_str(&format!(
            "<tr><td>{}. {}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td>\
             <td>{}</td><td>{}</td><td{failed}>{}</td><td>{}</td></tr>",
            index + 1,
            escape(event["name"].as_str().unwrap_or("event")),
            ms(&event["detection_ms"]),
            ms(&event["rto_ms"]),
            ms(&hold["p50"]),
            ms(&hold["p99"]),
            ms(&hold["max"]),
            ms(&event["convergence_ms"]),
            count(&event["held"]),
            count(&event["failed"]),
            count(&event["unknown"]),
        ));
    }
    format!(
        "<h2>What happened</h2>\n<div class=\"scroll\"><table><tr><th>event</th><th>detected</th>\
         <th>served again</th><th>held p50</th><th>p99</th><th>max</th><th>converged</th><th>held</th>\
         <th>failed</th><th>unknown</th></tr>{rows}</table></div>\n"
    )
}

fn cities(report: &Value) -> String {
    let Some(series) = report["series"]
        .as_object()
        .filter(|series| !series.is_empty())
    else {
        return String::new();
    };
    let frame = chart::Frame::around(report);
    let mut text = String::from(
        "<h2>City by city</h2>\n<div class=\"key\">\
         <span><i style=\"background:var(--flow)\"></i>acknowledged a second; p50 below</span>\
         <span><i style=\"background:var(--slow)\"></i>p99, bars up to the slowest</span>\
         <span><i style=\"background:var(--bad)\"></i>failed</span>\
         <span><i style=\"background:var(--odd)\"></i>given up, outcome unknown</span>\
         <span><i style=\"background:var(--event)\"></i>event, until served again</span></div>\n",
    );
    for (city, seconds) in series {
        let seconds: Vec<_> = seconds
            .as_array()
            .into_iter()
            .flatten()
            .map(chart::Second::of)
            .collect();
        let ok: u64 = seconds.iter().map(|second| second.ok).sum();
        let failed: u64 = seconds.iter().map(|second| second.failed).sum();
        text.push_str(&format!(
            "<div class=\"city\"><h3>{} <span>users who live here: {ok} acknowledged, {failed} failed</span></h3>\n{}</div>\n",
            escape(city),
            frame.draw(&seconds),
        ));
    }
    text
}

fn words() -> String {
    "<h2>How to read it</h2>\n<dl>\
     <dt>acknowledged</dt><dd>the bank said yes; each must be in the books exactly once</dd>\
     <dt>failed</dt><dd>no success after every gateway that may be tried, and surely not executed</dd>\
     <dt>unknown</dt><dd>sent, and no answer came; asked once more with the same idempotency key; in the books once or not at all</dd>\
     <dt>held</dt><dd>waited longer than any request of these users in the quiet ten seconds before the event</dd>\
     <dt>served again</dt><dd>from the order or the loss to the acknowledgement that ended the longest silence, the worst cell</dd>\
     <dt>latency</dt><dd>counted from when the request was due, by the second in which it was due; logarithmic</dd>\
     </dl>\n"
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn report() -> Value {
        let second = |n: u64| json!({"second": n, "ok": 100, "failed": 0, "unknown": 0, "p50": 3.0, "p99": 9.0, "max": 12.0});
        let silent = json!({"second": 3, "ok": 0, "failed": 2, "unknown": 1});
        json!({
            "started_unix_ms": 1_000_000, "seconds": 5.0, "rate": 300, "acknowledged": 12_345, "present": 12_345,
            "lost": 0, "duplicated": 0, "failed": 2, "unknown": 1, "conserved": true, "members_equal": true,
            "gateways": [{"name": "a", "region": "hz"}],
            "series": {"h<z": [second(0), second(1), second(2), silent, second(4)]},
            "events": [{"name": "city-loss", "at_unix_ms": 1_002_500, "rto_ms": 1500.0, "detection_ms": 1200.0,
                "hold_ms": {"p50": 700.0, "p99": 1400.0, "max": 1490.0}, "convergence_ms": null,
                "held": 17, "failed": 2, "unknown": 1}],
            "goals": [{"what": "city lost silently", "value": "1500 ms", "goal": "5 s", "met": true}]
        })
    }

    #[test]
    fn a_page_stands_alone_and_says_what_happened() {
        let page = render(&report());
        for part in [
            "Nothing acknowledged was lost",
            "12,345",
            "1. city-loss",
            "1400 ms",
            "h&lt;z",
            "reached",
            "<svg",
        ] {
            assert!(page.contains(part), "{part}");
        }
        for outside in ["<script", "http://", "https://", "src=", "@import"] {
            assert!(!page.contains(outside), "{outside}");
        }
        let (opened, closed) = (page.matches("<div").count(), page.matches("</div>").count());
        assert_eq!(opened, closed);
        assert!(!page.contains("NaN") && !page.contains("inf"));
    }

    #[test]
    fn a_page_is_never_kinder_than_its_numbers() {
        for (key, value) in [
            ("lost", json!(1)),
            ("duplicated", json!(1)),
            ("conserved", json!(false)),
            ("members_equal", json!(false)),
            ("acknowledged", json!(0)),
            ("strangers", json!(3)),
            ("unread_shards", json!([4])),
            ("lost", Value::Null),
        ] {
            let mut bad = report();
            bad[key] = value;
            assert!(render(&bad).contains("verdict bad"), "{key}");
        }
    }

    #[test]
    fn an_empty_report_is_still_a_page() {
        assert!(render(&json!({})).contains("verdict bad"));
        assert!(render(&json!({"series": {"a": []}})).contains("</html>"));
    }
}
