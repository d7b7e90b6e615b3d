//! Orders to all databases, and what came of them.

use atoll_topology::{GroupId, MemberId};
use serde::{Deserialize, Serialize};

/// Apply this SQL in every shard's schema.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SchemaOrder {
    /// Where it came from, for journals.
    pub name: String,
    /// The file's text.
    pub sql: String,
}

/// What came of it in one group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchemaGroup {
    /// Which group.
    pub group: GroupId,
    /// Shards that have it now: `0-24`.
    pub applied: String,
    /// What went wrong; empty: nothing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub error: String,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchemaResult {
    /// Names the order in the journals: the hash of the text.
    pub id: String,
    /// By group.
    pub groups: Vec<SchemaGroup>,
}

impl SchemaResult {
    /// Whether every shard has it.
    pub fn complete(&self) -> bool {
        self.groups.iter().all(|group| group.error.is_empty())
    }
}

/// A member's rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberRows {
    /// Which member.
    pub member: MemberId,
    /// Hash of all rows; none when it could not be asked.
    pub hash: Option<String>,
    /// Why not, or where its log ended.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// A group's rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRows {
    /// Which group.
    pub group: GroupId,
    /// Whether every member answered, all with the same hash.
    pub equal: bool,
    /// By member.
    pub members: Vec<MemberRows>,
    /// The first tables that differ, with what each member holds of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub different: Vec<String>,
}

/// All rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowHashes {
    /// Whether all groups are equal.
    pub equal: bool,
    /// By group.
    pub groups: Vec<GroupRows>,
}

impl RowHashes {
    /// What is not equal, group by group, in words.
    pub fn unequal(&self) -> String {
        let groups = self.groups.iter().filter(|group| !group.equal);
        let told = groups.map(|group| {
            let unasked = group.members.iter().filter(|member| member.hash.is_none());
            let unasked = unasked.map(|member| format!("{}: {}", member.member, member.note));
            let what: Vec<String> = group.different.iter().cloned().chain(unasked).collect();
            format!("{}: {}", group.group, what.join("; "))
        });
        told.collect::<Vec<_>>().join(" | ")
    }
}
