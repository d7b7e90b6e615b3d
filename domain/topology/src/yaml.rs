//! YAML text to nodes that remember where they stand. Scalars keep their text, so that a zone
//! called `no` stays `no`. Anchors, aliases and tags are refused: resources do not need them, and
//! without them a small file cannot become a large tree.

use serde_json::Value;
use serde_saphyr::granit_parser::{self, Event, Parser, ScalarStyle, Span};

use crate::violation::{Place, Rule, Spot, Violations};

/// Largest topology file, in bytes.
pub(crate) const YAML_BYTES_MAX: usize = 4 << 20;
/// Deepest nesting of mappings and lists.
const DEPTH_MAX: usize = 32;

/// A YAML or JSON value with its place.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) place: Option<Place>,
    pub(crate) value: Tree,
}

#[derive(Debug, Clone)]
pub(crate) enum Tree {
    /// An unquoted scalar: a number, a boolean, null, or text.
    Plain(String),
    /// Text and nothing else.
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

#[derive(Debug, Clone)]
pub(crate) struct Key {
    pub(crate) place: Option<Place>,
    pub(crate) text: String,
}

impl Node {
    pub(crate) fn is_null(&self) -> bool {
        matches!(&self.value, Tree::Plain(text) if matches!(text.as_str(), "" | "~" | "null"))
    }

    pub(crate) fn from_json(value: &Value) -> Self {
        let value = match value {
            Value::Null => Tree::Plain("null".to_owned()),
            Value::Bool(value) => Tree::Plain(value.to_string()),
            Value::Number(number) => Tree::Plain(number.to_string()),
            Value::String(text) => Tree::Text(text.clone()),
            Value::Array(items) => Tree::List(items.iter().map(Self::from_json).collect()),
            Value::Object(fields) => Tree::Map(
                fields
                    .iter()
                    .map(|(key, value)| {
                        (
                            Key {
                                place: None,
                                text: key.clone(),
                            },
                            Self::from_json(value),
                        )
                    })
                    .collect(),
            ),
        };
        Self { place: None, value }
    }

    pub(crate) fn to_json(&self) -> Value {
        match &self.value {
            Tree::Text(text) => Value::String(text.clone()),
            Tree::Plain(_) if self.is_null() => Value::Null,
            Tree::Plain(text) => plain_to_json(text),
            Tree::List(items) => Value::Array(items.iter().map(Self::to_json).collect()),
            Tree::Map(fields) => Value::Object(
                fields
                    .iter()
                    .map(|(key, node)| (key.text.clone(), node.to_json()))
                    .collect(),
            ),
        }
    }
}

/// Booleans and decimal numbers of YAML's core schema; everything else is text.
fn plain_to_json(text: &str) -> Value {
    match text {
        "true" => return Value::Bool(true),
        "false" => return Value::Bool(false),
        _ => {}
    }
    let number = text.starts_with(|c: char| c.is_ascii_digit() || c == '-');
    match serde_json::from_str::<Value>(text) {
        Ok(value @ Value::Number(_)) if number => value,
        _ => Value::String(text.to_owned()),
    }
}

/// The documents of a YAML text; empty ones are left out.
pub(crate) fn documents(text: &str, out: &mut Violations) -> Vec<Node> {
    if text.len() > YAML_BYTES_MAX {
        let message = format!(
            "the file has {} bytes, more than {YAML_BYTES_MAX}",
            text.len()
        );
        out.add(Rule::Syntax, &Spot::default(), message);
        return Vec::new();
    }
    let options = granit_parser::options! { emit_comments: false };
    let mut builder = Builder {
        documents: Vec::new(),
        open: Vec::new(),
    };
    for event in Parser::new_from_str_with_options(text, options) {
        let result = match event {
            Ok((event, span)) => builder.take(event, span, out),
            Err(error) => {
                let marker = error.marker();
                let place = Place {
                    line: marker.line(),
                    column: marker.col() + 1,
                };
                Err((place, error.info().clone()))
            }
        };
        if let Err((place, message)) = result {
            // The rest of the text cannot be trusted: what was complete before it is still read.
            let spot = Spot {
                place: Some(place),
                ..Spot::default()
            };
            out.add(Rule::Syntax, &spot, message);
            break;
        }
    }
    builder.documents
}

struct Builder {
    documents: Vec<Node>,
    /// Collections that have begun, the outermost first.
    open: Vec<Open>,
}

struct Open {
    node: Node,
    /// A mapping's key that waits for its value.
    key: Option<Key>,
    /// A mapping's key was none (a list or mapping): its value is dropped.
    skip: bool,
}

type Broken = (Place, String);

impl Builder {
    fn take(&mut self, event: Event<'_>, span: Span, out: &mut Violations) -> Result<(), Broken> {
        let place = Place {
            line: span.start.line(),
            column: span.start.col() + 1,
        };
        let plain = |anchor: usize, tagged: bool| {
            if anchor != 0 || tagged {
                Err((
                    place,
                    "anchors and tags are not used in resources".to_owned(),
                ))
            } else {
                Ok(())
            }
        };
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                plain(anchor, tag.is_some())?;
                let text = text.into_owned();
                let value = match style {
                    ScalarStyle::Plain => Tree::Plain(text),
                    _ => Tree::Text(text),
                };
                self.put(
                    Node {
                        place: Some(place),
                        value,
                    },
                    out,
                );
            }
            Event::SequenceStart(_, anchor, tag) => {
                plain(anchor, tag.is_some())?;
                self.begin(place, Tree::List(Vec::new()))?;
            }
            Event::MappingStart(_, anchor, tag) => {
                plain(anchor, tag.is_some())?;
                self.begin(place, Tree::Map(Vec::new()))?;
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some(open) = self.open.pop() {
                    self.put(open.node, out);
                }
            }
            Event::Alias(_) | Event::UnresolvedAlias(_) => {
                return Err((place, "aliases are not used in resources".to_owned()));
            }
            _ => {}
        }
        Ok(())
    }

    fn begin(&mut self, place: Place, value: Tree) -> Result<(), Broken> {
        if self.open.len() == DEPTH_MAX {
            return Err((place, format!("nested deeper than {DEPTH_MAX} levels")));
        }
        self.open.push(Open {
            node: Node {
                place: Some(place),
                value,
            },
            key: None,
            skip: false,
        });
        Ok(())
    }

    fn put(&mut self, node: Node, out: &mut Violations) {
        let Some(open) = self.open.last_mut() else {
            if !node.is_null() {
                self.documents.push(node);
            }
            return;
        };
        match &mut open.node.value {
            Tree::List(items) => items.push(node),
            Tree::Map(fields) => match (open.key.take(), std::mem::take(&mut open.skip)) {
                (Some(key), _) => fields.push((key, node)),
                (None, true) => {}
                (None, false) => match node.value {
                    Tree::Plain(text) | Tree::Text(text) => {
                        if fields.iter().any(|(key, _)| key.text == text) {
                            let spot = Spot {
                                place: node.place,
                                ..Spot::default()
                            };
                            out.add(Rule::DuplicateKey, &spot, format!("key {text:?} twice"));
                            open.skip = true;
                        } else {
                            open.key = Some(Key {
                                place: node.place,
                                text,
                            });
                        }
                    }
                    Tree::List(_) | Tree::Map(_) => {
                        let spot = Spot {
                            place: node.place,
                            ..Spot::default()
                        };
                        out.add(Rule::Type, &spot, "a key must be text");
                        open.skip = true;
                    }
                },
            },
            Tree::Plain(_) | Tree::Text(_) => {}
        }
    }
}
