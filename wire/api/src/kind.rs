//! The kinds of resources.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $plural:literal $singular:literal $short:literal,)*) => {
        /// A kind of resource.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum Kind {
            $($(#[$doc])* $name,)*
        }

        impl Kind {
            /// All kinds, as listings show them.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// `DataGroup`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }

            /// `datagroups`, as in paths.
            pub const fn plural(self) -> &'static str {
                match self { $(Self::$name => $plural,)* }
            }

            /// `datagroup`.
            pub const fn singular(self) -> &'static str {
                match self { $(Self::$name => $singular,)* }
            }

            /// `dg`, for those who type.
            pub const fn short(self) -> &'static str {
                match self { $(Self::$name => $short,)* }
            }
        }
    };
}

kinds! {
    /// A city.
    Region = "regions" "region" "rg",
    /// A data centre.
    Zone = "zones" "zone" "zn",
    /// A pool of compute.
    Cluster = "clusters" "cluster" "cl",
    /// A unit that serves a share of the users.
    Cell = "cells" "cell" "ce",
    /// A PostgreSQL primary and its replicas.
    DataGroup = "datagroups" "datagroup" "dg",
    /// Which cell owns which shards.
    ShardMap = "shardmaps" "shardmap" "sm",
    /// How requests are recognised.
    Route = "routes" "route" "rt",
    /// What will happen.
    Plan = "plans" "plan" "pl",
    /// One run of a plan.
    Execution = "executions" "execution" "ex",
}

impl Kind {
    /// Whether it stands in a topology file.
    pub const fn is_topology(self) -> bool {
        !matches!(self, Self::Plan | Self::Execution)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Plural, singular, short or the kind's own name, in any case.
impl FromStr for Kind {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let lower = text.to_ascii_lowercase();
        let known =
            |kind: &&Self| [kind.plural(), kind.singular(), kind.short()].contains(&&*lower);
        Self::ALL.iter().find(known).copied().ok_or_else(|| {
            let all: Vec<_> = Self::ALL.iter().map(|kind| kind.plural()).collect();
            format!("{text:?} is not a kind; there are {}", all.join(", "))
        })
    }
}
