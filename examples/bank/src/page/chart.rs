//! One city's picture: throughput above, latency on a logarithmic scale below, one time axis.

use std::fmt::Write as _;

use serde_json::Value;

const WIDTH: f64 = 1000.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 12.0;
/// Room for the events' names.
const TOP: f64 = 20.0;
const FLOW_HEIGHT: f64 = 92.0;
const GAP: f64 = 20.0;
const LATENCY_HEIGHT: f64 = 104.0;
const BOTTOM: f64 = 22.0;
/// Lowest latency drawn, in ms.
const LATENCY_MIN: f64 = 1.0;

/// One second of a city.
#[derive(Debug, Clone, Default)]
pub(super) struct Second {
    pub(super) second: f64,
    pub(super) ok: u64,
    pub(super) failed: u64,
    unknown: u64,
    /// p50, p99, max.
    latency: Option<(f64, f64, f64)>,
}

impl Second {
    pub(super) fn of(value: &Value) -> Self {
        let count = |key: &str| value[key].as_u64().unwrap_or(0);
        let ms = |key: &str| value[key].as_f64();
        Self {
            second: value["second"].as_f64().unwrap_or(0.0),
            ok: count("ok"),
            failed: count("failed"),
            unknown: count("unknown"),
            latency: Some((ms("p50"), ms("p99"), ms("max")))
                .and_then(|(p50, p99, max)| Some((p50?, p99?, max?))),
        }
    }
}

struct Event {
    name: String,
    from: f64,
    to: Option<f64>,
}

/// What all cities share, so that their pictures can be compared: both scales, time and events.
pub(super) struct Frame {
    seconds: f64,
    flow_max: f64,
    latency_max: f64,
    events: Vec<Event>,
}

impl Frame {
    pub(super) fn around(report: &Value) -> Self {
        let cities = report["series"].as_object().into_iter().flatten();
        let all: Vec<Second> = cities
            .flat_map(|(_, s)| s.as_array().into_iter().flatten().map(Second::of))
            .collect();
        let most = |value: &dyn Fn(&Second) -> f64, least: f64| {
            all.iter().map(value).fold(least, f64::max)
        };
        let answers = |s: &Second| float(s.ok + s.failed + s.unknown);
        let started = report["started_unix_ms"].as_f64().unwrap_or(0.0);
        let happened = report["events"]
            .as_array()
            .filter(|events| !events.is_empty());
        let happened = happened
            .or(report["marks"].as_array())
            .into_iter()
            .flatten();
        let event = |(index, value): (usize, &Value)| {
            let from = (value["at_unix_ms"].as_f64()? - started) / 1000.0;
            let to = value["rto_ms"].as_f64().map(|ms| from + ms / 1000.0);
            let name = format!(
                "{}. {}",
                index + 1,
                value["name"].as_str().unwrap_or("event")
            );
            Some(Event { name, from, to })
        };
        Self {
            seconds: most(&|s| s.second + 1.0, 1.0),
            flow_max: round_up(most(&answers, 1.0)),
            latency_max: 10_f64.powf(
                most(&|s| s.latency.map_or(0.0, |l| l.2), 100.0)
                    .log10()
                    .ceil(),
            ),
            events: happened.enumerate().filter_map(event).collect(),
        }
    }

    fn x(&self, second: f64) -> f64 {
        LEFT + (second / self.seconds).clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT)
    }

    fn flow_y(&self, count: f64) -> f64 {
        TOP + FLOW_HEIGHT * (1.0 - (count / self.flow_max).min(1.0))
    }

    fn latency_y(&self, ms: f64) -> f64 {
        let share =
            (ms.max(LATENCY_MIN) / LATENCY_MIN).log10() / (self.latency_max / LATENCY_MIN).log10();
        TOP + FLOW_HEIGHT + GAP + LATENCY_HEIGHT * (1.0 - share.min(1.0))
    }

    /// The picture as SVG.
    pub(super) fn draw(&self, seconds: &[Second]) -> String {
        let height = TOP + FLOW_HEIGHT + GAP + LATENCY_HEIGHT + BOTTOM;
        let mut svg = format!(
            "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"throughput and latency over time\">\n"
        );
        self.axes(&mut svg);
        self.bands(&mut svg);
        self.flow(&mut svg, seconds);
        self.latency(&mut svg, seconds);
        self.names(&mut svg);
        self.hits(&mut svg, seconds);
        svg.push_str("</svg>\n");
        svg
    }

    // Writing to a String cannot fail, here and below.
    fn axes(&self, svg: &mut String) {
        let right = WIDTH - RIGHT;
        let mut rule = |y: f64, label: &str| {
            writeln!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                <text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
                LEFT - 6.0,
                y + 4.0
            )
            .ok();
        };
        for share in [0.0, 0.5, 1.0] {
            let count = self.flow_max * share;
            let label = if share > 0.9 {
                format!("{count:.0}/s")
            } else {
                format!("{count:.0}")
            };
            rule(self.flow_y(count), &label);
        }
        let mut ms = LATENCY_MIN;
        while ms <= self.latency_max * 1.001 {
            let label = if ms >= 1000.0 {
                format!("{:.0} s", ms / 1000.0)
            } else {
                format!("{ms:.0} ms")
            };
            rule(self.latency_y(ms), &label);
            ms *= 10.0;
        }
        let step = [5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0];
        let step = step
            .into_iter()
            .find(|step| self.seconds / step <= 14.0)
            .unwrap_or(1800.0);
        let bottom = TOP + FLOW_HEIGHT + GAP + LATENCY_HEIGHT + 15.0;
        let mut at = 0.0;
        while at <= self.seconds {
            let anchor = if self.x(at) > WIDTH - 30.0 {
                "end"
            } else {
                "middle"
            };
            writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{bottom:.0}\" text-anchor=\"{anchor}\">{at:.0} s</text>",
                self.x(at)
            )
            .ok();
            at += step;
        }
    }

    fn bands(&self, svg: &mut String) {
        let (top, bottom) = (TOP, TOP + FLOW_HEIGHT + GAP + LATENCY_HEIGHT);
        for event in &self.events {
            let x = self.x(event.from);
            if let Some(to) = event.to {
                let width = (self.x(to) - x).max(1.0);
                writeln!(svg, "<rect class=\"band\" x=\"{x:.1}\" y=\"{top}\" width=\"{width:.1}\" height=\"{:.0}\"/>", bottom - top).ok();
            }
            writeln!(
                svg,
                "<line class=\"event\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{top}\" y2=\"{bottom}\"/>"
            )
            .ok();
        }
    }

    fn names(&self, svg: &mut String) {
        let mut free_from = LEFT;
        for event in &self.events {
            let x = self.x(event.from);
            // About 6.4 units a letter. A name without room is in the table by its number.
            let number = event.name.split('.').next().unwrap_or_default();
            let name = if x >= free_from {
                event.name.as_str()
            } else {
                number
            };
            let width = 6.4 * float(u64::try_from(name.chars().count()).unwrap_or(0));
            let (x, anchor) = if x + width > WIDTH {
                (x, "end")
            } else {
                (x, "start")
            };
            let name = super::escape(name);
            writeln!(svg, "<text class=\"eventname\" x=\"{x:.1}\" y=\"13\" text-anchor=\"{anchor}\">{name}</text>").ok();
            free_from = free_from.max(x + width + 8.0);
        }
    }

    fn flow(&self, svg: &mut String, seconds: &[Second]) {
        let (Some(first), Some(last)) = (seconds.first(), seconds.last()) else {
            return;
        };
        let zero = self.flow_y(0.0);
        // Steps: a second's count holds for the whole second.
        let mut path = format!("M{:.1} {zero:.1}", self.x(first.second));
        for second in seconds {
            let y = self.flow_y(float(second.ok));
            write!(path, "V{y:.1}H{:.1}", self.x(second.second + 1.0)).ok();
        }
        write!(
            path,
            "V{zero:.1}H{:.1}Z",
            self.x(first.second).min(self.x(last.second))
        )
        .ok();
        writeln!(svg, "<path class=\"flow\" d=\"{path}\"/>").ok();
        for second in seconds {
            let (x, width) = (
                self.x(second.second),
                self.x(second.second + 1.0) - self.x(second.second),
            );
            let mut base = float(second.ok);
            // Failures last, so that nothing covers them.
            for (class, count) in [("unknown", second.unknown), ("failed", second.failed)] {
                if count == 0 {
                    continue;
                }
                let (from, to) = (self.flow_y(base), self.flow_y(base + float(count)));
                // One failure among a thousand is still to be seen.
                let height = (from - to).max(3.0);
                writeln!(svg, "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{height:.1}\"/>", from - height, width.max(1.5)).ok();
                base += float(count);
            }
        }
    }

    fn latency(&self, svg: &mut String, seconds: &[Second]) {
        let mut lines = [String::new(), String::new()];
        let mut pen_down = false;
        for second in seconds {
            let Some((p50, p99, max)) = second.latency else {
                pen_down = false;
                continue;
            };
            let x = self.x(second.second + 0.5);
            let width = ((self.x(1.0) - self.x(0.0)) * 0.55).max(1.2);
            let (top, bottom) = (self.latency_y(max), self.latency_y(p99));
            writeln!(svg, "<rect class=\"max\" x=\"{:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{:.1}\"/>", x - width / 2.0, (bottom - top).max(0.0)).ok();
            let word = if pen_down { 'L' } else { 'M' };
            for (line, ms) in lines.iter_mut().zip([p50, p99]) {
                write!(line, "{word}{x:.1} {:.1}", self.latency_y(ms)).ok();
            }
            pen_down = true;
        }
        let [p50, p99] = lines;
        writeln!(
            svg,
            "<path class=\"p99\" d=\"{p99}\"/><path class=\"p50\" d=\"{p50}\"/>"
        )
        .ok();
    }

    /// What a second holds, for the pointer.
    fn hits(&self, svg: &mut String, seconds: &[Second]) {
        let height = FLOW_HEIGHT + GAP + LATENCY_HEIGHT;
        for second in seconds {
            let (x, width) = (
                self.x(second.second),
                self.x(second.second + 1.0) - self.x(second.second),
            );
            let latency = second.latency.map(|(p50, p99, max)| {
                format!("\np50 {p50:.1} ms, p99 {p99:.1} ms, max {max:.1} ms")
            });
            writeln!(
                svg,
                "<rect class=\"hit\" x=\"{x:.1}\" y=\"{TOP}\" width=\"{width:.1}\" height=\"{height}\"><title>second {:.0}: {} acknowledged, {} failed, {} unknown{}</title></rect>",
                second.second, second.ok, second.failed, second.unknown, latency.unwrap_or_default(),
            ).ok();
        }
    }
}

/// Counts in a picture: exact far beyond what a second can hold.
fn float(count: u64) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

/// The next of 1, 2, 5 times a power of ten.
fn round_up(value: f64) -> f64 {
    let power = 10_f64.powf(value.max(1.0).log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0];
    steps
        .into_iter()
        .map(|step| step * power)
        .find(|step| *step >= value)
        .unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_end_on_round_numbers() {
        let pairs = [
            (1.0, 1.0),
            (3.0, 5.0),
            (99.0, 100.0),
            (101.0, 200.0),
            (460.0, 500.0),
        ];
        for (value, end) in pairs {
            assert!((round_up(value) - end).abs() < 1e-9, "{value}");
        }
    }
}
