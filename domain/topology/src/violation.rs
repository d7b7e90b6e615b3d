//! What is wrong with a topology: every violation by itself, with its place and a stable code.

use std::fmt;

use thiserror::Error;

/// A place in a file, both numbers from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

macro_rules! rules {
    ($($(#[$doc:meta])* $name:ident = $code:literal,)*) => {
        /// The rules of a topology. Codes are stable: they never change their meaning.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Rule {
            $($(#[$doc])* $name,)*
        }

        impl Rule {
            /// Every rule, by code.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// Its stable code.
            pub const fn code(self) -> &'static str {
                match self {
                    $(Self::$name => $code,)*
                }
            }
        }
    };
}

rules! {
    /// The text is not YAML (or uses anchors, aliases or tags, which resources do not need).
    Syntax = "A0100",
    /// A value has the wrong type.
    Type = "A0101",
    /// A key that this kind does not know.
    UnknownKey = "A0102",
    /// A key that this kind needs is absent.
    MissingKey = "A0103",
    /// Not a kind or API version of a topology.
    UnknownKind = "A0104",
    /// A name that breaks the rule of identifiers.
    BadId = "A0105",
    /// Two resources of one kind with one name.
    DuplicateName = "A0106",
    /// The same key twice in one mapping.
    DuplicateKey = "A0107",
    /// A value outside its range or list.
    BadValue = "A0108",
    /// A region that does not exist.
    UnknownRegion = "A0110",
    /// A zone that does not exist.
    UnknownZone = "A0111",
    /// A cell that does not exist.
    UnknownCell = "A0112",
    /// Two regions disagree about the round trip between them, or a region names itself.
    RoundTrip = "A0113",
    /// A cell's weights do not sum to 100.
    Weights = "A0120",
    /// A slot stands in a zone of another region.
    SlotRegion = "A0121",
    /// More than one global cell, or more than one city cell in a region.
    CellCount = "A0122",
    /// Not a list of shards, or a shard that does not exist.
    BadShards = "A0130",
    /// A shard with two owners.
    OwnedTwice = "A0131",
    /// A shard without an owner.
    NeverOwned = "A0132",
    /// A shard in two data groups.
    StoredTwice = "A0133",
    /// A shard in no data group.
    NeverStored = "A0134",
    /// A shard owned by a cell that is not sharded.
    OwnerKind = "A0135",
    /// No shard map, or more than one.
    ShardMapCount = "A0136",
    /// A number of shards that the scheme does not have.
    ShardCount = "A0137",
    /// Two members of a group in one zone.
    MembersShareZone = "A0140",
    /// k is not less than the number of members.
    KTooLarge = "A0141",
    /// A group cannot go on after the loss that its policy promises to survive.
    CannotSurvive = "A0142",
    /// A path prefix that is not a path, or stands in two routes.
    RoutePath = "A0150",
    /// A sharded route that says nowhere to look for the user.
    RouteUser = "A0151",
    /// A global route without a global cell.
    RouteGlobal = "A0152",
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// One violation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The rule that is broken.
    pub rule: Rule,
    /// Where in the file; none when the resources did not come from a file.
    pub place: Option<Place>,
    /// `Kind/name` as far as known, or empty.
    pub resource: String,
    /// Path inside the resource: `spec.slots.blue.zone`, or empty.
    pub path: String,
    /// What is wrong, with the values.
    pub message: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = self.place {
            write!(f, "{place} ")?;
        }
        write!(f, "{}", self.rule)?;
        for part in [&self.resource, &self.path] {
            if !part.is_empty() {
                write!(f, " {part}")?;
            }
        }
        write!(f, ": {}", self.message)
    }
}

/// Everything that is wrong with a topology, in the order of the file; never empty when returned
/// as an error.
#[derive(Debug, Clone, PartialEq, Eq, Default, Error)]
pub struct Violations(pub Vec<Violation>);

impl fmt::Display for Violations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, violation) in self.0.iter().enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{violation}")?;
        }
        Ok(())
    }
}

/// Where a value stands, so that a later check can name it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Spot {
    pub(crate) place: Option<Place>,
    pub(crate) resource: String,
    pub(crate) path: String,
}

impl Violations {
    pub(crate) fn add(&mut self, rule: Rule, spot: &Spot, message: impl Into<String>) {
        self.0.push(Violation {
            rule,
            place: spot.place,
            resource: spot.resource.clone(),
            path: spot.path.clone(),
            message: message.into(),
        });
    }

    /// The violations as an error if there are any, in the order of the file.
    pub(crate) fn into_result<T>(mut self, value: T) -> Result<T, Self> {
        if self.0.is_empty() {
            return Ok(value);
        }
        // Stable: what has no place (a shard that nobody owns and no map to point at) comes last.
        self.0.sort_by_key(|v| {
            v.place.unwrap_or(Place {
                line: usize::MAX,
                column: 0,
            })
        });
        Err(self)
    }
}
