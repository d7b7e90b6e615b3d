//! What a proof says.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The whole of it, section by section.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sections {
    /// What ran.
    pub execution: Execution,
    /// What it was to do.
    pub plan: Plan,
    /// Terms, primaries and owners before and after.
    pub groups: Vec<Group>,
    /// Where each member's log ended before and after.
    pub members: Vec<Member>,
    /// The rows of the shards concerned, on the new primary and on the others.
    pub rows: Vec<ShardRows>,
    /// When each step was reached.
    pub steps: Vec<Step>,
    /// How long requests were held.
    pub holds: Vec<Hold>,
    /// What gateways counted meanwhile.
    pub requests: Vec<Gateway>,
    /// Which table each data plane used at the end.
    pub proxies: Vec<Proxy>,
}

/// What ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Execution {
    /// Its name.
    pub name: String,
    /// The world that it ran in.
    pub world: String,
    /// Whether a verdict ordered it, not a person.
    pub automatic: bool,
    /// How it ended.
    pub phase: String,
    /// Why, in words; empty: nothing to say.
    pub message: String,
    /// When it was ordered, in milliseconds of Unix time, on control's clock.
    pub ordered_unix_ms: u64,
    /// When it was over.
    pub over_unix_ms: u64,
    /// Number of the table that was published last.
    pub table: u64,
}

/// What it was to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// SHA-256 of its text.
    pub hash: String,
    /// Line by line, for people.
    pub text: String,
}

/// One data group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Group {
    /// Which.
    pub group: String,
    /// Its open term before.
    pub term_before: u64,
    /// And after.
    pub term: u64,
    /// Its primary before; empty: none.
    pub primary_before: String,
    /// And after.
    pub primary: String,
    /// Its shards' owners and epochs before, as in `0-24 hz-1 epoch 1`.
    pub owners_before: Vec<String>,
    /// And after.
    pub owners: Vec<String>,
}

/// One member's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Of which group.
    pub group: String,
    /// Which.
    pub member: String,
    /// Term and LSN of its end before, as it last said then; null: it did not say.
    pub before: Option<String>,
    /// And after.
    pub after: Option<String>,
}

/// One shard's rows. Members are compared while writes go on, shard by shard, until each was found
/// equal once or the tries were over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardRows {
    /// Of which group.
    pub group: String,
    /// Which shard.
    pub shard: u16,
    /// Rows in all its tables, on the primary.
    pub rows: u64,
    /// SHA-256 over its tables' names, row counts and hashes, on the primary; empty: it was not
    /// compared, for the primary gave no answer.
    pub hash: String,
    /// Where the primary's log was.
    pub lsn: String,
    /// Members found to hold exactly these rows.
    pub equal: Vec<String>,
    /// Members that could not be compared: rows changed at every try.
    pub moving: Vec<String>,
    /// Members that hold other rows at the same place of the log.
    pub different: Vec<String>,
    /// Members that gave no answer, the lost ones among them.
    pub silent: Vec<String>,
}

/// A step that was reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// Of which group.
    pub group: String,
    /// By which of the group's ops.
    pub op: u64,
    /// Under which term.
    pub term: u64,
    /// Which.
    pub step: String,
    /// When, in milliseconds of Unix time, on control's clock.
    pub unix_ms: u64,
}

/// How long a group's requests were held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hold {
    /// Which group.
    pub group: String,
    /// From the record's change to the publication of the new owner; null: that was not reached.
    pub hold_ms: Option<u64>,
    /// From there until the last live data plane used it.
    pub convergence_ms: Option<u64>,
}

/// What one gateway counted from the first step's begin until the new owner was published
/// everywhere and what was held had ended; of requests that clients sent to it, by what it last
/// reported, which is at most a fifth of a second old. Null: it was started meanwhile, or is not
/// heard. Who went away by itself is in none of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Gateway {
    /// Which.
    pub process: String,
    /// Requests that found the gate closed.
    pub held: Option<u64>,
    /// Requests that the cell answered, be it with a refusal of a wrong request.
    pub answered: Option<u64>,
    /// Requests that ended with an error, and were surely not executed, or failed in the application.
    pub failed: Option<u64>,
    /// Requests of which nobody can tell whether they were executed.
    pub unknown: Option<u64>,
    /// Most requests that it reported as held at once.
    pub held_most: u64,
}

/// One data plane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proxy {
    /// Which.
    pub process: String,
    /// `gateway`, `sql-router`.
    pub role: String,
    /// Number of the table that all its threads use; null: none.
    pub table: Option<u64>,
    /// Whether it was live.
    pub live: bool,
}

impl ShardRows {
    /// Of a shard of which nobody has answered yet.
    pub fn not_compared(group: String, shard: u16, members: Vec<String>) -> Self {
        Self {
            group,
            shard,
            rows: 0,
            hash: String::new(),
            lsn: String::new(),
            equal: vec![],
            moving: vec![],
            different: vec![],
            silent: members,
        }
    }
}

impl Sections {
    /// The shards of which a member holds other rows than the primary: what must never be.
    pub fn different(&self) -> Vec<&ShardRows> {
        let differs = |rows: &&ShardRows| !rows.different.is_empty();
        self.rows.iter().filter(differs).collect()
    }
}

fn list(items: &[String]) -> String {
    if items.is_empty() {
        "-".to_owned()
    } else {
        items.join(", ")
    }
}

fn or_dash<T: ToString>(value: Option<&T>) -> String {
    value.map_or("-".to_owned(), ToString::to_string)
}

impl fmt::Display for Sections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let run = &self.execution;
        writeln!(
            f,
            "execution  {} {} in world {}",
            run.name, run.phase, run.world
        )?;
        if !run.message.is_empty() {
            writeln!(f, "           {}", run.message)?;
        }
        let ms = run.over_unix_ms.saturating_sub(run.ordered_unix_ms);
        writeln!(
            f,
            "           table {}, over {ms} ms after the order",
            run.table
        )?;
        writeln!(f, "plan       {}", self.plan.hash)?;
        for line in self.plan.text.lines() {
            writeln!(f, "           {line}")?;
        }
        for group in &self.groups {
            let (before, after) = (&group.primary_before, &group.primary);
            let (from, to) = (group.term_before, group.term);
            writeln!(
                f,
                "group      {}: term {from} -> {to}, primary {before} -> {after}",
                group.group
            )?;
            let (before, after) = (list(&group.owners_before), list(&group.owners));
            writeln!(f, "           {before} -> {after}")?;
        }
        for member in &self.members {
            let (before, after) = (
                or_dash(member.before.as_ref()),
                or_dash(member.after.as_ref()),
            );
            writeln!(f, "log        {} {before} -> {after}", member.member)?;
        }
        for rows in &self.rows {
            let shard = rows.shard;
            match rows.hash.get(..16) {
                Some(hash) => {
                    let (count, lsn, equal) = (rows.rows, &rows.lsn, list(&rows.equal));
                    write!(f, "rows       shard {shard} {count} rows {hash} at {lsn}: ")?;
                    write!(f, "equal on {equal}")?;
                }
                None => write!(f, "rows       shard {shard} not compared")?,
            }
            for (what, members) in [
                ("still moving on", &rows.moving),
                ("DIFFERENT on", &rows.different),
                ("no answer of", &rows.silent),
            ] {
                if !members.is_empty() {
                    write!(f, "; {what} {}", list(members))?;
                }
            }
            writeln!(f)?;
        }
        for hold in &self.holds {
            let (held, took) = (
                or_dash(hold.hold_ms.as_ref()),
                or_dash(hold.convergence_ms.as_ref()),
            );
            writeln!(
                f,
                "hold       {} {held} ms, converged in {took} ms",
                hold.group
            )?;
        }
        for gateway in &self.requests {
            let counts = [
                ("held", &gateway.held),
                ("answered", &gateway.answered),
                ("failed", &gateway.failed),
                ("unknown", &gateway.unknown),
            ];
            let counts = counts.map(|(what, n)| format!("{what} {}", or_dash(n.as_ref())));
            let (process, most) = (&gateway.process, gateway.held_most);
            writeln!(
                f,
                "requests   {process} {}, held at once {most}",
                counts.join(", ")
            )?;
        }
        for proxy in &self.proxies {
            let live = if proxy.live { "" } else { " (silent)" };
            let table = or_dash(proxy.table.as_ref());
            writeln!(
                f,
                "table      {} {} uses {table}{live}",
                proxy.role, proxy.process
            )?;
        }
        Ok(())
    }
}
