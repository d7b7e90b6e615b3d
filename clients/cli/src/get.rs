//! `atoll get KIND [NAME]`

use atoll_api::{AnyObject, Code, Exit, Kind, Problem, WatchKind, collection, item};
use serde_json::Value;

use crate::client::Client;
use crate::table::{Table, or_dash};
use crate::{Failure, Format, Screen, output};

pub(crate) struct Wanted {
    pub(crate) kind: Kind,
    pub(crate) name: Option<String>,
}

impl Wanted {
    fn means(&self, object: &AnyObject) -> bool {
        self.name
            .as_ref()
            .is_none_or(|name| *name == object.metadata.name)
    }
}

pub(crate) async fn once(
    client: &Client,
    wanted: &Wanted,
    format: Format,
    screen: &mut Screen<'_>,
) -> Result<Exit, Failure> {
    let (whole, items) = match &wanted.name {
        Some(name) => {
            let one = client.one(&item(wanted.kind, name)).await?;
            (output::whole(&one, format)?, vec![one])
        }
        None => {
            let list = client.list(&collection(wanted.kind)).await?;
            (output::whole(&list, format)?, list.items)
        }
    };
    match (whole, format) {
        (Some(whole), _) => screen.data(&whole),
        (None, Format::Name) => items.iter().for_each(|object| screen.data(&named(object))),
        (None, _) if items.is_empty() => screen.say(&format!("no {}", wanted.kind.plural())),
        (None, _) => table(wanted.kind, &items, format)
            .iter()
            .for_each(|line| screen.data(line)),
    }
    Ok(Exit::Ok)
}

/// Prints what is there, then every change, until the reader goes away.
pub(crate) async fn watch(
    client: &Client,
    wanted: &Wanted,
    format: Format,
    screen: &mut Screen<'_>,
) -> Result<Exit, Failure> {
    let mut watch = client
        .watch(&format!("{}?watch=true", collection(wanted.kind)))
        .await?;
    let mut head_shown = false;
    while let Some(event) = watch.next().await {
        let (kind, object) = event?.read()?;
        if kind == WatchKind::Bookmark || !wanted.means(&object) {
            continue;
        }
        match (output::whole(&object, format)?, format) {
            (Some(whole), _) => screen.data(&whole),
            (None, Format::Name) => screen.data(&named(&object)),
            (None, _) => {
                // Columns keep the widths of their own line: what comes later is not known yet.
                let lines = table(wanted.kind, std::slice::from_ref(&object), format);
                lines
                    .iter()
                    .skip(usize::from(head_shown))
                    .for_each(|line| screen.data(line));
                head_shown = true;
            }
        }
    }
    Err(Box::new(
        Problem::new(Code::LOST_ANSWER, "the watch ended").next("the same command again"),
    ))
}

fn named(object: &AnyObject) -> String {
    format!("{}/{}", object.kind.singular(), object.metadata.name)
}

/// A column: its head, and a path into the object whose value it shows.
type Column = (&'static str, &'static str);

fn columns(kind: Kind) -> (&'static [Column], &'static [Column]) {
    match kind {
        Kind::Region => (&[("ROUND TRIPS (MS)", "/spec/roundTripMs")], &[]),
        Kind::Zone => (&[("REGION", "/spec/region")], &[]),
        Kind::Cluster => (&[("ZONE", "/spec/zone")], &[]),
        Kind::Cell => (
            &[("SERVES", "/spec/kind"), ("REGION", "/spec/region")],
            &[("SLOTS", "/spec/slots")],
        ),
        Kind::DataGroup => (
            &[
                ("SHARDS", "/spec/shards"),
                ("MEMBERS", "/spec/members"),
                ("SURVIVES", "/spec/survives"),
            ],
            &[("K", "/spec/k")],
        ),
        Kind::ShardMap => (
            &[("SCHEME", "/spec/scheme"), ("SHARDS", "/spec/shards")],
            &[("OWNERS", "/spec/owners")],
        ),
        Kind::Route => (
            &[("PATH", "/spec/pathPrefix"), ("TO", "/spec/kind")],
            &[("USER", "/spec/user")],
        ),
        Kind::Plan => (
            &[
                ("VERB", "/spec/verb"),
                ("HASH", "/status/hash"),
                ("HOLD (MS)", "/status/holdMs"),
            ],
            &[("MADE FOR", "/status/madeFor")],
        ),
        Kind::Execution => (
            &[
                ("PHASE", "/status/phase"),
                ("PLAN", "/spec/plan"),
                ("STARTED", "/status/started"),
            ],
            &[
                ("AUTOMATIC", "/spec/automatic"),
                ("FIGURES", "/status/figures"),
                ("MESSAGE", "/status/message"),
            ],
        ),
    }
}

fn table(kind: Kind, items: &[AnyObject], format: Format) -> Vec<String> {
    let (narrow, wide) = columns(kind);
    let wide: &[Column] = if format == Format::Wide { wide } else { &[] };
    let columns: Vec<Column> = narrow.iter().chain(wide).copied().collect();
    let mut heads = vec!["NAME"];
    heads.extend(columns.iter().map(|(head, _)| *head));
    let mut table = Table::new(&heads);
    for object in items {
        let mut row = vec![object.metadata.name.clone()];
        row.extend(columns.iter().map(|(_, path)| cell(object, path)));
        table.row(row);
    }
    table.lines()
}

fn cell(object: &AnyObject, path: &str) -> String {
    let value = match path.strip_prefix("/spec") {
        Some(path) => object.spec.pointer(path),
        None => {
            let path = path.strip_prefix("/status").unwrap_or(path);
            object
                .status
                .as_ref()
                .and_then(|status| status.pointer(path))
        }
    };
    or_dash(value.map(short).filter(|text| !text.is_empty()))
}

/// A value on one line, without the noise of JSON.
fn short(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(short).collect::<Vec<_>>().join(", "),
        Value::Object(fields) => {
            let field = |(key, value): (&String, &Value)| match value {
                Value::Object(_) => format!("{key}({})", short(value)),
                Value::Null => String::new(),
                other => format!("{key}={}", short(other)),
            };
            let fields: Vec<_> = fields.iter().map(field).filter(|f| !f.is_empty()).collect();
            fields.join(" ")
        }
        other => other.to_string(),
    }
}
