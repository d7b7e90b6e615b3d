//! What an execution's proof says: gathered when it is over, sealed, and kept in the transaction that
//! ends it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use atoll_planner::Step;
use atoll_proof::{Execution, Gateway, Group, Hold, Member, Plan, Proxy, Sections, ShardRows};
use atoll_store::StoreError;
use atoll_streams::agent::RowsHashed;
use atoll_topology::{GroupId, Lsn, MemberId, Position, ProcessId, ShardId, Term};
use serde::{Deserialize, Serialize};
use tracing::error;

use crate::app::Control;
use crate::observe::agents::AskedRows;
use crate::observe::planes::LIVE;
use crate::reconcile::execution::Stored;
use crate::timeline::{self, BEGUN, CONVERGED, PUBLISHED};

const PREFIX: &str = "/proof/";
/// How often shards whose rows were changing are compared again.
const TRIES_MAX: u32 = 5;
/// How long a member has for one comparison.
const ROWS_LIMIT: Duration = Duration::from_secs(5);
/// How long requests that were held have to end before they are counted.
const SETTLE_LIMIT: Duration = Duration::from_secs(1);

/// What is noted before an execution, so that its proof can say what changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Noted {
    /// Owners of each group, a run each.
    owners: BTreeMap<GroupId, Vec<String>>,
    /// Where each member's log ended.
    positions: BTreeMap<MemberId, String>,
    /// Requests by gateway, since it was started, when the first step began.
    #[serde(default)]
    requests: BTreeMap<ProcessId, Counted>,
}

/// Clients' requests, as one gateway counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Counted {
    answered: u64,
    failed: u64,
    unknown: u64,
    held: u64,
}

impl Noted {
    /// Notes what the gateways that are heard have counted so far.
    pub(crate) fn count(&mut self, control: &Control) {
        let mut planes = control.planes.all();
        planes.retain(|plane| plane.heard.elapsed() < LIVE);
        let counted = planes.into_iter().filter_map(|plane| {
            let counts = plane.report.requests?;
            let counted = Counted {
                answered: counts.answered,
                failed: counts.failed,
                unknown: counts.unknown,
                held: counts.held,
            };
            Some((plane.report.process, counted))
        });
        self.requests = counted.collect();
    }
}

/// Where the proof of an execution stands.
pub(crate) fn key(name: &str) -> String {
    format!("{PREFIX}{name}")
}

/// The proof of an execution, if it is over.
pub(crate) async fn load(control: &Control, name: &str) -> Result<Option<String>, StoreError> {
    let found = control.store.get(&key(name)).await?;
    Ok(found.map(|found| String::from_utf8_lossy(&found.value).into_owned()))
}

/// What is so now, of the groups that a plan touches.
pub(crate) fn note<'a>(control: &Control, groups: impl Iterator<Item = &'a GroupId>) -> Noted {
    let records = control.records.all();
    let groups: BTreeSet<&GroupId> = groups.collect();
    let records = groups.iter().filter_map(|group| records.get(*group));
    let owners = records.clone().map(|record| {
        let owners = crate::api::status::owners(record);
        (record.group.clone(), owners)
    });
    let seen = control.agents.members();
    let members = records.flat_map(|record| &record.members);
    let positions = members.filter_map(|member| {
        let position = seen.get(&member.id)?.position()?;
        Some((member.id.clone(), place(position)))
    });
    Noted {
        owners: owners.collect(),
        positions: positions.collect(),
        requests: BTreeMap::new(),
    }
}

fn place(position: Position) -> String {
    format!("{} {}", position.term, position.lsn)
}

/// The sealed proof of an execution that is over.
pub(crate) async fn make(control: &Control, stored: &Stored) -> Option<String> {
    let steps: Vec<&Step> = stored.steps_done().collect();
    let rows = futures::future::join_all(steps.into_iter().map(|step| rows(control, step)));
    let (rows, after) = futures::join!(rows, settled(control, stored));
    let rows: Vec<ShardRows> = rows.into_iter().flatten().collect();
    for rows in rows.iter().filter(|rows| !rows.different.is_empty()) {
        let (group, shard, members) = (&rows.group, rows.shard, rows.different.join(", "));
        error!(
            execution = stored.name,
            group, shard, members, "members hold other rows than the primary: a person must look"
        );
    }
    let table = control.publisher.current();
    let sections = Sections {
        execution: Execution {
            name: stored.name.clone(),
            world: table
                .as_ref()
                .map(|table| table.version.world.clone())
                .unwrap_or_default(),
            automatic: stored.plan.automatic,
            phase: format!("{:?}", stored.phase),
            message: stored.message.clone(),
            ordered_unix_ms: stored.created_ms,
            over_unix_ms: stored.finished_ms.unwrap_or_default(),
            table: table.map_or(0, |table| table.version.number),
        },
        plan: Plan {
            hash: stored.plan.hash(),
            text: stored.plan.to_string(),
        },
        groups: groups_of(control, stored, &after),
        members: members_of(control, stored, &after),
        rows,
        steps: steps_of(control, stored),
        holds: holds_of(control, stored),
        requests: requests_of(control, stored, &after),
        proxies: proxies_of(control),
    };
    match atoll_proof::seal(&sections, &control.key) {
        Ok(proof) => Some(proof),
        Err(flaw) => {
            error!(execution = stored.name, %flaw, "the proof could not be sealed");
            None
        }
    }
}

/// What is so once the requests that were held have ended, or have had their time to: only then
/// what became of them is counted.
async fn settled(control: &Control, stored: &Stored) -> Noted {
    let since = tokio::time::Instant::now();
    let ended = control.planes.until(|live| {
        let mut counting = live.iter().filter_map(|plane| {
            let counts = plane.report.requests?;
            Some(plane.heard >= since && counts.held_now == 0)
        });
        counting.all(|ended| ended)
    });
    // What still waits then is counted as held, and as nothing else.
    let _late = tokio::time::timeout(SETTLE_LIMIT, ended).await;
    let mut noted = note(control, stored.before.iter().map(|before| &before.group));
    noted.count(control);
    noted
}

fn groups_of(control: &Control, stored: &Stored, after: &Noted) -> Vec<Group> {
    let records = control.records.all();
    let group = |before: &crate::reconcile::execution::Before| {
        let open = records
            .get(&before.group)
            .and_then(|record| record.open.clone());
        let owners = |noted: &Noted| noted.owners.get(&before.group).cloned().unwrap_or_default();
        let name = |member: Option<&MemberId>| member.map(ToString::to_string).unwrap_or_default();
        Group {
            group: before.group.to_string(),
            term_before: before.term.get(),
            term: open.as_ref().map_or(Term::ZERO, |open| open.term).get(),
            primary_before: name(before.primary.as_ref()),
            primary: name(open.as_ref().map(|open| &open.primary)),
            owners_before: owners(&stored.noted),
            owners: owners(after),
        }
    };
    stored.before.iter().map(group).collect()
}

fn members_of(control: &Control, stored: &Stored, after: &Noted) -> Vec<Member> {
    let records = control.records.all();
    let groups = stored.before.iter().filter_map(|b| records.get(&b.group));
    let members = groups.flat_map(|record| record.members.iter().map(|m| (&record.group, &m.id)));
    members
        .map(|(group, member)| Member {
            group: group.to_string(),
            member: member.to_string(),
            before: stored.noted.positions.get(member).cloned(),
            after: after.positions.get(member).cloned(),
        })
        .collect()
}

fn steps_of(control: &Control, stored: &Stored) -> Vec<atoll_proof::Step> {
    let marks = control.timeline.of(&stored.name).into_iter();
    marks
        .map(|mark| atoll_proof::Step {
            group: mark.group.to_string(),
            op: mark.op,
            term: mark.term,
            step: mark.step,
            unix_ms: mark.unix_ms,
        })
        .collect()
}

fn holds_of(control: &Control, stored: &Stored) -> Vec<Hold> {
    let marks = control.timeline.of(&stored.name);
    let hold = |before: &crate::reconcile::execution::Before| Hold {
        group: before.group.to_string(),
        hold_ms: timeline::span(&marks, &before.group, BEGUN, PUBLISHED),
        convergence_ms: timeline::span(&marks, &before.group, PUBLISHED, CONVERGED),
    };
    stored.before.iter().map(hold).collect()
}

fn requests_of(control: &Control, stored: &Stored, after: &Noted) -> Vec<Gateway> {
    let before = &stored.noted.requests;
    let processes: BTreeSet<&ProcessId> = before.keys().chain(after.requests.keys()).collect();
    let gateway = |process: &ProcessId| {
        let (before, now) = (before.get(process), after.requests.get(process));
        let since = |count: fn(&Counted) -> u64| count(now?).checked_sub(count(before?));
        Gateway {
            process: process.to_string(),
            held: since(|counted| counted.held),
            answered: since(|counted| counted.answered),
            failed: since(|counted| counted.failed),
            unknown: since(|counted| counted.unknown),
            held_most: control.planes.held_most(process, stored.created_ms),
        }
    };
    processes.into_iter().map(gateway).collect()
}

fn proxies_of(control: &Control) -> Vec<Proxy> {
    let mut proxies: Vec<_> = control
        .planes
        .all()
        .into_iter()
        .map(|plane| Proxy {
            process: plane.report.process.to_string(),
            role: crate::api::status::role(plane.report.role).to_owned(),
            table: plane.report.in_use.map(|version| version.number),
            live: plane.heard.elapsed() < LIVE,
        })
        .collect();
    proxies.sort_by(|a, b| a.process.cmp(&b.process));
    proxies
}

/// One shard as one member has it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Own {
    rows: u64,
    hash: String,
}

/// The rows of a step's shards on all members of its group, compared while writes go on: each shard
/// until it was once found equal, for the members are never at the same place of the log for long.
async fn rows(control: &Control, step: &Step) -> Vec<ShardRows> {
    let Some(record) = control.records.get(&step.group) else {
        return vec![];
    };
    let moved = step.moves.iter().flat_map(|m| m.first.0..=m.last.0);
    let mut open_shards: BTreeSet<ShardId> = moved.map(ShardId).collect();
    if open_shards.is_empty() {
        let all = record.runs.iter().flat_map(|r| r.first.0..=r.last.0);
        open_shards = all.map(ShardId).collect();
    }
    let mut found: BTreeMap<ShardId, ShardRows> = BTreeMap::new();
    // What is never compared is said too.
    for shard in &open_shards {
        let members = record.members.iter().map(|member| member.id.to_string());
        let group = step.group.to_string();
        let rows = ShardRows::not_compared(group, shard.0, members.collect());
        found.insert(*shard, rows);
    }
    let Some(open) = &record.open else {
        return found.into_values().collect();
    };
    let seen = control.agents.members();
    let live = |id: &&MemberId| seen.get(*id).is_some_and(|seen| seen.live());
    let others: Vec<&MemberId> = record
        .members
        .iter()
        .map(|member| &member.id)
        .filter(|id| **id != open.primary)
        .collect();
    let (asked, dead): (Vec<&MemberId>, Vec<&MemberId>) = others.into_iter().partition(live);
    for number in 0..TRIES_MAX {
        let shards: Vec<ShardId> = open_shards.iter().copied().collect();
        let id = format!(
            "proof-{}-{}-{number}",
            step.group,
            control.runtime.wall_clock()
        );
        let question = |at_least| AskedRows {
            id: &id,
            shards: &shards,
            at_least,
            limit: ROWS_LIMIT,
        };
        let first = control.agents.ask_rows(&open.primary, question(Lsn(0)));
        let Ok(first) = first.await else {
            break;
        };
        let answers = asked.iter().map(|member| {
            let answer = control.agents.ask_rows(member, question(first.lsn));
            async move { (*member, answer.await) }
        });
        let answers = futures::future::join_all(answers).await;
        let own = by_shard(&first, &shards);
        for shard in shards.iter().copied() {
            let own = own.get(&shard).cloned().unwrap_or_default();
            let mut rows = ShardRows {
                group: step.group.to_string(),
                shard: shard.0,
                rows: own.rows,
                hash: own.hash.clone(),
                lsn: first.lsn.to_string(),
                equal: vec![],
                moving: vec![],
                different: vec![],
                silent: dead.iter().map(ToString::to_string).collect(),
            };
            for (member, answer) in &answers {
                let list = match answer {
                    Err(_) => &mut rows.silent,
                    Ok(answer) => {
                        let theirs = by_shard(answer, &[shard]).remove(&shard);
                        match theirs.unwrap_or_default() == own {
                            true => &mut rows.equal,
                            false if answer.lsn == first.lsn => &mut rows.different,
                            false => &mut rows.moving,
                        }
                    }
                };
                list.push(member.to_string());
            }
            if rows.moving.is_empty() && rows.different.is_empty() {
                open_shards.remove(&shard);
            }
            found.insert(shard, rows);
        }
        if open_shards.is_empty() {
            break;
        }
    }
    found.into_values().collect()
}

/// Shards without tables have no rows, which is the same everywhere.
fn by_shard(hashed: &RowsHashed, shards: &[ShardId]) -> BTreeMap<ShardId, Own> {
    let own = |shard: &ShardId| {
        let tables = hashed.tables.iter().filter(|table| table.shard == *shard);
        let lines = tables.clone().map(|table| {
            let (name, rows, hash) = (&table.table, table.rows, table.hash);
            format!("{name} {rows} {hash:016x}")
        });
        let lines: Vec<_> = lines.collect();
        let own = Own {
            rows: tables.map(|table| table.rows).sum(),
            hash: crate::plans::hash_of(&lines.join("\n")),
        };
        (*shard, own)
    };
    shards.iter().map(own).collect()
}
