//! The envelope around every kind: `apiVersion`, `kind`, `metadata.name`, `spec`.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::reader::{Cursor, Placed};
use crate::violation::{Rule, Violations};
use crate::yaml::{Node, documents};

/// The API version of all resources.
pub const API_VERSION: &str = "atoll.dev/v1";

/// One resource as it is stored: its kind, its name, and a `spec` that nobody has checked yet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Resource {
    /// `Region`, `Cell`, …
    pub kind: String,
    /// `metadata.name`.
    pub name: String,
    /// What is wanted.
    pub spec: Value,
}

impl Resource {
    /// The whole document, envelope included.
    pub fn document(&self) -> Value {
        json!({
            "apiVersion": API_VERSION,
            "kind": self.kind,
            "metadata": { "name": self.name },
            "spec": self.spec,
        })
    }
}

/// Splits a YAML text into resources. Only the envelopes are checked; `Topology::from_resources`
/// checks the rest.
pub fn resources(yaml: &str) -> Result<Vec<Resource>, Violations> {
    let mut out = Violations::default();
    let documents = documents(yaml, &mut out);
    let resources = documents
        .iter()
        .filter_map(|document| envelope(document, &mut out))
        .map(|envelope| Resource {
            kind: envelope.kind.value.to_owned(),
            name: envelope.name.value.to_owned(),
            spec: envelope.spec.node.to_json(),
        })
        .collect();
    out.into_result(resources)
}

/// Writes resources as one YAML text.
pub fn to_yaml(resources: &[Resource]) -> String {
    let mut text = String::new();
    for (n, resource) in resources.iter().enumerate() {
        if n > 0 {
            text.push_str("---\n");
        }
        // JSON is YAML: should the writer refuse a value, the text stays readable by `resources`.
        let document = resource.document();
        text.push_str(&serde_saphyr::to_string(&document).unwrap_or(document.to_string() + "\n"));
    }
    text
}

/// An envelope that has been opened.
pub(crate) struct Envelope<'a> {
    pub(crate) kind: Placed<&'a str>,
    pub(crate) name: Placed<&'a str>,
    pub(crate) spec: Cursor<'a>,
}

/// Where an absent `spec` points.
static NOTHING: Node = Node {
    place: None,
    value: crate::yaml::Tree::Plain(String::new()),
};

pub(crate) fn envelope<'a>(document: &'a Node, out: &mut Violations) -> Option<Envelope<'a>> {
    let mut whole = Cursor::new(document, String::new());
    // The name first, so that everything else can say whose it is.
    let mut unnamed = Violations::default();
    let fields = whole.fields(&["apiVersion", "kind", "metadata", "spec"], &mut unnamed);
    let kind = fields
        .as_ref()
        .and_then(|f| f.required("kind", &mut unnamed));
    let kind = kind.and_then(|k| k.text(&mut unnamed));
    let metadata = fields
        .as_ref()
        .and_then(|f| f.required("metadata", &mut unnamed));
    let name = metadata
        .and_then(|m| m.fields(&["name"], &mut unnamed))
        .and_then(|m| m.required("name", &mut unnamed))
        .and_then(|n| n.text(&mut unnamed));
    let label = match (&kind, &name) {
        (Some(kind), Some(name)) => format!("{}/{}", kind.value, name.value),
        (Some(kind), None) => kind.value.to_owned(),
        _ => String::new(),
    };
    out.0.extend(unnamed.0.into_iter().map(|mut violation| {
        violation.resource.clone_from(&label);
        violation
    }));
    whole.spot.resource.clone_from(&label);
    let fields = whole.fields(
        &["apiVersion", "kind", "metadata", "spec"],
        &mut Violations::default(),
    )?;
    if let Some(version) = fields.required("apiVersion", out).and_then(|v| v.text(out))
        && version.value != API_VERSION
    {
        let message = format!("{:?} is not {API_VERSION}", version.value);
        out.add(Rule::UnknownKind, &version.spot, message);
    }
    let spec = fields.optional("spec").unwrap_or_else(|| {
        let mut spec = Cursor {
            node: &NOTHING,
            spot: whole.spot.clone(),
        };
        "spec".clone_into(&mut spec.spot.path);
        spec
    });
    let (mut kind, mut name) = (kind?, name?);
    for spot in [&mut kind.spot, &mut name.spot] {
        spot.resource.clone_from(&label);
    }
    Some(Envelope { kind, name, spec })
}
