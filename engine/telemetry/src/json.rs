//! The layer that writes an event as one flat JSON object.
//!
//! Flat, because the lines are read with `jq` and `grep`: `ts level target` and the process's own
//! fields first, then the spans' fields from the outside in, then the event's.

use std::fmt;
use std::io::Write;

use atoll_runtime::UnixMillis;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

/// Writes each event as a line.
pub(crate) struct JsonLines<W> {
    own: Vec<(String, Value)>,
    writer: W,
}

impl<W> JsonLines<W> {
    pub(crate) fn new(role: &str, fields: &[(&str, &str)], writer: W) -> Self {
        let own = std::iter::once(&("role", role))
            .chain(fields)
            .map(|(name, value)| ((*name).to_owned(), Value::from(*value)))
            .collect();
        Self { own, writer }
    }
}

/// A span's fields, kept beside the span.
struct SpanFields(Fields);

impl<S, W> Layer<S> for JsonLines<W>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + 'static,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            let mut fields = Fields::default();
            attributes.record(&mut fields);
            span.extensions_mut().insert(SpanFields(fields));
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(SpanFields(fields)) = span.extensions_mut().get_mut()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let meta = event.metadata();
        let now = atoll_runtime::machine_clock();
        let mut line = Map::new();
        line.insert("ts".to_owned(), Value::from(rfc3339(now)));
        line.insert("level".to_owned(), Value::from(meta.level().as_str()));
        line.insert("target".to_owned(), Value::from(meta.target()));
        line.extend(self.own.iter().cloned());
        for span in context
            .event_scope(event)
            .into_iter()
            .flat_map(|scope| scope.from_root())
        {
            if let Some(SpanFields(fields)) = span.extensions().get() {
                line.extend(fields.0.clone());
            }
        }
        line.extend(fields.0);
        let mut text = Value::Object(line).to_string();
        text.push('\n');
        // A log that cannot be written has nowhere to complain.
        drop(self.writer.make_writer_for(meta).write_all(text.as_bytes()));
    }
}

/// Fields as JSON values; what is neither number, truth nor text is written as `Debug` says.
#[derive(Default)]
struct Fields(Map<String, Value>);

impl Fields {
    fn put(&mut self, field: &Field, value: impl Into<Value>) {
        let name = field.name().trim_start_matches("r#").to_owned();
        self.0.insert(name, value.into());
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }
    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut text = value.to_string();
        let mut source = value.source();
        while let Some(cause) = source {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            source = cause.source();
        }
        self.put(field, text);
    }
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }
}

/// `2026-11-22T13:46:43.017Z`. The civil date is Howard Hinnant's `civil_from_days`.
fn rfc3339(UnixMillis(at): UnixMillis) -> String {
    let (days, rest) = (at / 86_400_000, at % 86_400_000);
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3_600_000, rest / 60_000 % 60, rest / 1000 % 60);
    let milli = rest % 1000;
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_event_is_one_flat_line_with_the_fields_of_process_and_spans() {
        let kept = Kept::default();
        let writer = kept.clone();
        let lines = JsonLines::new("agent", &[("process", "hz1-agent")], move || writer.clone());
        let subscriber = tracing_subscriber::registry().with(lines);
        tracing::subscriber::with_default(subscriber, || {
            let span = tracing::info_span!("op", group = "g1", term = tracing::field::Empty);
            span.record("term", 7);
            let _entered = span.enter();
            let error = io::Error::other("disk full");
            let error: &(dyn std::error::Error + 'static) = &error;
            tracing::info!(shard = 17, from = %"a\"b", error, "shard granted");
        });
        let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 1);
        let mut line: Map<String, Value> = serde_json::from_str(&text).unwrap();
        assert!(line.remove("ts").unwrap().as_str().unwrap().ends_with('Z'));
        let expected = serde_json::json!({
            "level": "INFO", "target": "atoll_telemetry::json::tests", "role": "agent",
            "process": "hz1-agent", "group": "g1", "term": 7, "shard": 17, "from": "a\"b",
            "error": "disk full", "message": "shard granted",
        });
        assert_eq!(Value::Object(line), expected);
    }

    #[test]
    fn times_are_written_as_people_and_tools_read_them() {
        assert_eq!(rfc3339(UnixMillis(0)), "1970-01-01T00:00:00.000Z");
        assert_eq!(
            rfc3339(UnixMillis(951_827_696_789)),
            "2000-02-29T12:34:56.789Z"
        );
        assert_eq!(
            rfc3339(UnixMillis(1_798_761_599_999)),
            "2026-12-31T23:59:59.999Z"
        );
    }
}
