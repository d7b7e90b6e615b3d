//! The event trace of a run: everything that our services say, with the virtual time and the host
//! on which it was said. Two runs of one seed must give the same.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};

thread_local! {
    /// A simulation runs on one thread, and so do all its hosts.
    static TRACE: RefCell<Option<Collected>> = const { RefCell::new(None) };
}

#[derive(Default)]
struct Collected {
    lines: Vec<String>,
    /// The simulator makes a span for each host, enters it, and drops it, one after the other.
    made: String,
    host: String,
    /// Of what is done to the world from outside of all hosts.
    now_ms: u128,
    /// Differs from run to run.
    directory: String,
    names: BTreeMap<String, String>,
}

/// Collects on this thread until it is taken.
pub(crate) struct Trace(tracing::subscriber::DefaultGuard);

impl Trace {
    /// Begins; `names` gives hosts' names by their addresses.
    pub(crate) fn begin(names: BTreeMap<String, String>, directory: &Path) -> Self {
        TRACE.with_borrow_mut(|trace| {
            *trace = Some(Collected {
                names,
                directory: directory.display().to_string(),
                ..Collected::default()
            });
        });
        Self(tracing::subscriber::set_default(Collector))
    }

    /// Ends.
    pub(crate) fn end(self) -> Vec<String> {
        drop(self.0);
        TRACE
            .take()
            .map(|collected| collected.lines)
            .unwrap_or_default()
    }
}

/// What time it is outside of all hosts.
pub(crate) fn now(elapsed: Duration) {
    with(|trace| trace.now_ms = elapsed.as_millis());
}

struct Collector;

fn wanted(metadata: &Metadata<'_>) -> bool {
    if metadata.is_span() {
        return metadata.name() == "node";
    }
    metadata.target().starts_with("atoll") && *metadata.level() <= Level::INFO
}

impl Subscriber for Collector {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        // Another thread of the process may run another simulation, or none.
        if wanted(metadata) {
            Interest::sometimes()
        } else {
            Interest::never()
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        wanted(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::INFO)
    }

    fn new_span(&self, attributes: &Attributes<'_>) -> Id {
        with(|trace| {
            let mut name = NodeName(String::new());
            attributes.record(&mut name);
            trace.made = name.0;
        });
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let millis = turmoil::sim_elapsed().map(|elapsed| elapsed.as_millis());
        with(|trace| {
            let millis = millis.unwrap_or(trace.now_ms);
            let mut text = Text(String::new());
            event.record(&mut text);
            let metadata = event.metadata();
            let host = trace.names.get(&trace.host);
            let line = format!(
                "{millis:>6} {:<14} {:<5} {}{}",
                host.unwrap_or(&trace.host),
                metadata.level(),
                metadata.target(),
                text.0.replace(&trace.directory, "")
            );
            trace.lines.push(line);
        });
    }

    fn enter(&self, _: &Id) {
        with(|trace| trace.host.clone_from(&trace.made));
    }

    fn exit(&self, _: &Id) {
        with(|trace| trace.host.clear());
    }
}

fn with(f: impl FnOnce(&mut Collected)) {
    TRACE.with(|trace| {
        // An event that is made while one is being written is left out.
        if let Ok(mut trace) = trace.try_borrow_mut()
            && let Some(trace) = trace.as_mut()
        {
            f(trace);
        }
    });
}

struct NodeName(String);

impl Visit for NodeName {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "name" {
            self.0 = format!("{value:?}").trim_matches('"').to_owned();
        }
    }
}

struct Text(String);

impl Visit for Text {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format_args!("{value:?}"));
    }
}

impl Text {
    fn put(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        match field.name() {
            "message" => self.0 += &format!(" {value}"),
            name => self.0 += &format!(" {name}={value}"),
        }
    }
}
