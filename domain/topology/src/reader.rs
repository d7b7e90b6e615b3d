//! Reads nodes into values and names everything that does not fit, without stopping at the first.

use crate::violation::{Rule, Spot, Violations};
use crate::yaml::{Key, Node, Tree};

/// A node and where it stands.
#[derive(Debug, Clone)]
pub(crate) struct Cursor<'a> {
    pub(crate) node: &'a Node,
    pub(crate) spot: Spot,
}

/// A mapping whose keys are all known.
pub(crate) struct Fields<'a> {
    fields: &'a [(Key, Node)],
    spot: Spot,
}

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(crate) struct Placed<T> {
    pub(crate) value: T,
    pub(crate) spot: Spot,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(node: &'a Node, resource: String) -> Self {
        Self {
            node,
            spot: Spot {
                place: node.place,
                resource,
                path: String::new(),
            },
        }
    }

    fn kind(&self) -> &'static str {
        match &self.node.value {
            _ if self.node.is_null() => "nothing",
            Tree::Plain(_) | Tree::Text(_) => "a single value",
            Tree::List(_) => "a list",
            Tree::Map(_) => "a mapping",
        }
    }

    fn wrong(&self, wanted: &str, out: &mut Violations) {
        out.add(
            Rule::Type,
            &self.spot,
            format!("{wanted} is expected here, not {}", self.kind()),
        );
    }

    /// A mapping with any keys.
    pub(crate) fn entries(&self, out: &mut Violations) -> Vec<(Placed<&'a str>, Cursor<'a>)> {
        let Tree::Map(fields) = &self.node.value else {
            self.wrong("a mapping", out);
            return Vec::new();
        };
        fields
            .iter()
            .map(|(key, node)| {
                let value = self.child(node, &key.text);
                let spot = Spot {
                    place: key.place,
                    ..value.spot.clone()
                };
                (
                    Placed {
                        value: key.text.as_str(),
                        spot,
                    },
                    value,
                )
            })
            .collect()
    }

    /// A mapping with these keys and no others. An absent mapping is one without keys.
    pub(crate) fn fields(&self, known: &[&str], out: &mut Violations) -> Option<Fields<'a>> {
        let fields: &'a [(Key, Node)] = match &self.node.value {
            Tree::Map(fields) => fields,
            _ if self.node.is_null() => &[],
            _ => {
                self.wrong("a mapping", out);
                return None;
            }
        };
        for (key, _) in fields
            .iter()
            .filter(|(key, _)| !known.contains(&key.text.as_str()))
        {
            let spot = Spot {
                place: key.place,
                ..self.spot.clone()
            };
            let message = format!("unknown key {:?}; known: {}", key.text, known.join(", "));
            out.add(Rule::UnknownKey, &spot, message);
        }
        Some(Fields {
            fields,
            spot: self.spot.clone(),
        })
    }

    pub(crate) fn items(&self, out: &mut Violations) -> Vec<Cursor<'a>> {
        let Tree::List(items) = &self.node.value else {
            self.wrong("a list", out);
            return Vec::new();
        };
        items
            .iter()
            .enumerate()
            .map(|(n, node)| self.child(node, &format!("[{n}]")))
            .collect()
    }

    pub(crate) fn text(&self, out: &mut Violations) -> Option<Placed<&'a str>> {
        match &self.node.value {
            Tree::Plain(text) | Tree::Text(text) if !self.node.is_null() => Some(Placed {
                value: text.as_str(),
                spot: self.spot.clone(),
            }),
            _ => {
                self.wrong("text", out);
                None
            }
        }
    }

    /// A whole number within the limits, both included.
    pub(crate) fn number<N>(&self, least: N, most: N, out: &mut Violations) -> Option<Placed<N>>
    where
        N: TryFrom<u64> + PartialOrd + std::fmt::Display + Copy,
    {
        let number = match &self.node.value {
            Tree::Plain(text) => text.parse::<u64>().ok(),
            _ => None,
        };
        let number = number
            .and_then(|n| N::try_from(n).ok())
            .filter(|n| (least..=most).contains(n));
        if let Some(value) = number {
            return Some(Placed {
                value,
                spot: self.spot.clone(),
            });
        }
        let rule = match &self.node.value {
            Tree::Plain(text) if text.parse::<f64>().is_ok() => Rule::BadValue,
            _ => Rule::Type,
        };
        out.add(
            rule,
            &self.spot,
            format!("a whole number from {least} to {most} is expected here"),
        );
        None
    }

    /// One of a list of words.
    pub(crate) fn word<T: Copy>(
        &self,
        words: &[(&str, T)],
        out: &mut Violations,
    ) -> Option<Placed<T>> {
        let text = self.text(out)?;
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text.value) {
            return Some(Placed {
                value: *value,
                spot: text.spot,
            });
        }
        let words: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        let message = format!("{:?} is none of: {}", text.value, words.join(", "));
        out.add(Rule::BadValue, &text.spot, message);
        None
    }

    /// A text that `parse` takes.
    pub(crate) fn parsed<T, E: std::fmt::Display>(
        &self,
        rule: Rule,
        parse: impl FnOnce(&str) -> Result<T, E>,
        out: &mut Violations,
    ) -> Option<Placed<T>> {
        self.text(out)?.parsed(rule, parse, out)
    }

    fn child(&self, node: &'a Node, step: &str) -> Self {
        Cursor {
            node,
            spot: below(&self.spot, node, step),
        }
    }
}

impl Placed<&str> {
    pub(crate) fn parsed<T, E: std::fmt::Display>(
        self,
        rule: Rule,
        parse: impl FnOnce(&str) -> Result<T, E>,
        out: &mut Violations,
    ) -> Option<Placed<T>> {
        match parse(self.value) {
            Ok(value) => Some(Placed {
                value,
                spot: self.spot,
            }),
            Err(error) => {
                out.add(rule, &self.spot, error.to_string());
                None
            }
        }
    }
}

impl<'a> Fields<'a> {
    pub(crate) fn optional(&self, key: &str) -> Option<Cursor<'a>> {
        let (_, node) = self.fields.iter().find(|(known, _)| known.text == key)?;
        if node.is_null() {
            return None;
        }
        Some(Cursor {
            node,
            spot: below(&self.spot, node, key),
        })
    }

    pub(crate) fn required(&self, key: &str, out: &mut Violations) -> Option<Cursor<'a>> {
        let found = self.optional(key);
        if found.is_none() {
            let message = format!("{key:?} is missing");
            out.add(Rule::MissingKey, &self.spot, message);
        }
        found
    }
}

fn below(spot: &Spot, node: &Node, step: &str) -> Spot {
    let path = match spot.path.as_str() {
        "" => step.to_owned(),
        path if step.starts_with('[') => format!("{path}{step}"),
        path => format!("{path}.{step}"),
    };
    Spot {
        place: node.place,
        resource: spot.resource.clone(),
        path,
    }
}
