//! A walk as a person reads it: a line a choice, with what followed from it.

use std::fmt::Write as _;

use super::choice::{ALL, Choice, Key};
use super::control::{Change, Stored};
use super::log::Cell;
use super::message::CONTROL;
use super::node::At;
use super::world::World;
use crate::driver;
use crate::member::{Input, Output};
use crate::messages::{Answer, Call, DriveOrder, Grant, Progress, Recruit, TermRow};
use crate::record::RunPhase;

/// The cells' names.
pub(super) const CELLS: [&str; 2] = ["east", "west"];

/// Lines, each with its effects.
#[derive(Debug, Clone, Default)]
pub(super) struct Story {
    lines: Vec<(String, Vec<String>)>,
}

impl Story {
    pub(super) fn begin(&mut self, line: String) {
        self.lines.push((line, Vec::new()));
    }

    pub(super) fn forget(&mut self) {
        self.lines.pop();
    }

    pub(super) fn effect(&mut self, what: String) {
        if let Some((_, effects)) = self.lines.last_mut() {
            effects.push(what);
        }
    }

    pub(super) fn lines(self) -> Vec<String> {
        let line = |(mut line, effects): (String, Vec<String>)| {
            if !effects.is_empty() {
                line.push_str(" → ");
                line.push_str(&effects.join("; "));
            }
            line
        };
        self.lines.into_iter().map(line).collect()
    }
}

pub(super) fn name(at: At) -> String {
    if at == CONTROL {
        return "control".to_owned();
    }
    char::from(b'A' + at).to_string()
}

fn named(id: &atoll_topology::MemberId) -> String {
    name(World::index(id))
}

pub(super) fn cell(cell: Cell) -> &'static str {
    CELLS.get(usize::from(cell)).copied().unwrap_or("?")
}

/// What a choice is, before it is known what follows from it.
pub(super) fn line(world: &World, choice: Choice) -> String {
    let part = |outputs: u8| match outputs {
        ALL => String::new(),
        0 => " (and does nothing yet)".to_owned(),
        n => format!(" (and does only {n} of what follows)"),
    };
    match choice {
        Choice::Deliver(key, outputs) => format!("{}{}", message(world, key), part(outputs)),
        Choice::Repeat(key, outputs) => {
            format!(
                "{}, which will come again{}",
                message(world, key),
                part(outputs)
            )
        }
        Choice::Lose(key) => format!("lost: {}", message(world, key)),
        Choice::Work(at, outputs) => format!("{}: goes on{}", name(at), part(outputs)),
        Choice::Link(at) => match world.node(at).link {
            Some(link) => format!("{}: its link to {} stands", name(at), name(link.upstream)),
            None => String::new(),
        },
        Choice::Stream(at, n) => format!("{}: takes {n} more of its upstream's log", name(at)),
        Choice::Write(at, shard, c) => {
            format!(
                "{}: a client of cell {} writes to shard {shard}",
                name(at),
                cell(c)
            )
        }
        Choice::Linger(at, shard, c) => format!(
            "{}: a client of cell {} sends a write to shard {shard}, which takes its time",
            name(at),
            cell(c)
        ),
        Choice::Execute(at, nth) => match world.node(at).statements.get(usize::from(nth)) {
            Some(statement) => format!(
                "{}: PostgreSQL executes {}",
                name(at),
                work(&statement.what)
            ),
            None => String::new(),
        },
        Choice::Commit(at) => format!("{}: a commit has its quorum", name(at)),
        Choice::Promoted(at) => format!("{}: is promoted", name(at)),
        Choice::Ready(at) => format!("{}: PostgreSQL is up", name(at)),
        Choice::Replayed(at) => format!("{}: has replayed what it waited for", name(at)),
        Choice::Rebuilt(at) => match &world.node(at).rebuilding {
            Some((from, _, path)) => format!("{}: {path:?} from {} is done", name(at), name(*from)),
            None => String::new(),
        },
        Choice::RebuildFails(at) => format!("{}: the rewind or clone fails", name(at)),
        Choice::Lead(at, to) => format!("{}: asks {} to follow it", name(at), name(to)),
        Choice::Cascade(at, to, through) => format!(
            "{}: asks {} to follow {}",
            name(at),
            name(to),
            name(through)
        ),
        Choice::Again(at, to) => format!("{}'s driver asks {} again", name(at), name(to)),
        Choice::Unreachable(at, to) => format!("{} cannot reach {}", name(at), name(to)),
        Choice::Crash(at) => format!("{}: crashes", name(at)),
        Choice::Start(at) => format!("{}: starts", name(at)),
        Choice::PostgresDies(at) => format!("{}: PostgreSQL dies", name(at)),
        Choice::LoseVolume(at) => format!("{}: its directory is lost", name(at)),
        Choice::Isolate(at) => format!("{}: hears no standby", name(at)),
        Choice::Hear(at) => format!("{}: hears its standbys", name(at)),
        Choice::Read(replica, _, back) => {
            format!(
                "control {}: reads the record, {back} versions old",
                replica + 1
            )
        }
        Choice::Order {
            replica,
            group,
            kind,
            target,
            cell: to,
            scope,
        } => format!(
            "control {}: orders of group {} a {kind} to {}, {scope:?} to {}",
            replica + 1,
            group + 1,
            name(target),
            cell(to)
        ),
        Choice::Policy(replica, _, change) => {
            let what = match change {
                Change::Remove(at) => format!("{} leaves", name(at)),
                Change::Add(at) => format!("{} joins", name(at)),
                Change::MoreAwaited => "k grows".to_owned(),
                Change::LessAwaited => "k shrinks".to_owned(),
            };
            format!("control {}: orders a policy change: {what}", replica + 1)
        }
        Choice::Drive(replica, _) => format!("control {}: sends its order", replica + 1),
        Choice::Show(group, back) => format!(
            "gateway: is shown the table of group {}, {back} versions old",
            group + 1
        ),
        Choice::Suspect(shard) => format!("gateway: shard {shard}'s owner is silent"),
        Choice::Probe(shard) => format!("gateway: a probe of shard {shard}'s owner passes"),
    }
}

fn message(world: &World, key: Key) -> String {
    use super::message::Message;
    let Some(message) = world.messages.iter().find(|m| m.key() == key) else {
        return String::new();
    };
    match message {
        Message::Call { from, to, call: c } => {
            format!("{}: {} from {}", name(*to), call(c), name(*from))
        }
        Message::Answer {
            from,
            to,
            answer: a,
        } => format!(
            "{}'s driver hears from {}: {}",
            name(*to),
            name(*from),
            answer(a)
        ),
        Message::Drive { to, order, .. } => {
            format!("{}: order to drive {}", name(*to), drive_order(order))
        }
        Message::Opened { from, op, .. } => {
            format!("control: hears from {} that {op} serves", name(*from))
        }
        Message::Put {
            replica, revision, ..
        } => format!(
            "store: compare-and-swap of control {} over revision {revision}",
            replica + 1
        ),
        Message::Reload { to, reload } => format!(
            "{}: policy {}: members {}, k {}",
            name(*to),
            reload.policy.number,
            reload
                .policy
                .members
                .iter()
                .map(|m| named(&m.id))
                .collect::<String>(),
            reload.policy.k
        ),
        Message::Reloaded { number, .. } => format!("control: hears that policy {number} is done"),
        Message::Admit { to, term, .. } => {
            format!(
                "{}: is admitted with a new volume at term {term}",
                name(*to)
            )
        }
    }
}

fn work(what: &super::node::Work) -> String {
    use super::node::Work;
    match what {
        Work::Opening {
            term,
            grants: g,
            in_place,
            ..
        } => format!(
            "the opening transaction of term {term}{}{}",
            if *in_place { " in place" } else { "" },
            grants(g)
        ),
        Work::Owners { grants: g } => format!("the owner change{}", grants(g)),
        Work::Policy { number } => format!("the barrier of policy {number}"),
        Work::Write { shard, cell: c } => {
            format!("the write to shard {shard} of cell {}", cell(*c))
        }
    }
}

fn grants(grants: &[Grant]) -> String {
    grants.iter().fold(String::new(), |mut text, grant| {
        let Grant { shard, epoch, cell } = grant;
        write!(text, ", shard {shard} at epoch {epoch} to {cell}").ok();
        text
    })
}

fn drive_order(order: &DriveOrder) -> String {
    format!(
        "{}: {} at term {}{}",
        order.op,
        order.kind,
        order.term,
        grants(&order.grants)
    )
}

fn call(call: &Call) -> String {
    match call {
        Call::Prepare { term } => format!("Prepare({term})"),
        Call::Demote { term, target } => format!("Demote({term}, {})", named(target)),
        Call::Follow {
            term,
            upstream,
            settled,
            ..
        } => format!(
            "Follow({term}, {}{})",
            named(upstream),
            if *settled { ", settled" } else { "" }
        ),
        Call::Halt { term } => format!("Halt({term})"),
        Call::Keep { term, open } => format!("Keep({term}, {open})"),
    }
}

pub(super) fn answer(answer: &Answer) -> String {
    match answer {
        Answer::Prepared { term, recruit, .. } => match recruit {
            Some(Recruit { end, .. }) => format!(
                "Prepared({term}) at term {} position {}, timeline {}",
                end.position.term, end.position.lsn.0, end.timeline
            ),
            None => format!("Prepared({term}), no recruit"),
        },
        Answer::Demoted { term, end, .. } => {
            format!("Demoted({term}) at position {}", end.position.lsn.0)
        }
        Answer::Following { term, path } => format!("Following({term}), {path:?}"),
        Answer::Halted { term } => format!("Halted({term})"),
        Answer::Kept { term } => format!("Kept({term})"),
        Answer::Refused { term, why } => format!("Refused({term}): {why}"),
    }
}

pub(super) fn input(input: &Input) -> String {
    match input {
        // The line says it.
        Input::Call(c) => call(c),
        Input::Promote { term } => format!("promote for term {term}"),
        Input::OpeningTransaction { term, .. } => format!("open term {term}"),
        Input::Open { term } => format!("serve term {term}"),
        Input::Promoted { .. }
        | Input::NotPromoted { .. }
        | Input::OpeningAcknowledged { .. }
        | Input::KeptOpen { .. }
        | Input::Started
        | Input::StandbyUp
        | Input::Compared(_)
        | Input::PostgresExited
        | Input::Rebuilt
        | Input::RebuildFailed
        | Input::Isolated
        | Input::Heard => format!("{input:?}"),
    }
}

pub(super) fn output(output: &Output) -> String {
    match output {
        Output::Persist(durable) => {
            let upstream = durable.upstream.as_ref();
            let upstream = upstream.map_or(String::new(), |id| format!(" under {}", named(id)));
            format!("promise {}{upstream}", durable.promise)
        }
        Output::ClosePort => "port closed".to_owned(),
        Output::CutLinks { except: None } => "links cut".to_owned(),
        Output::CutLinks { except: Some(id) } => format!("links cut but {}'s", named(id)),
        Output::CutUpstream => "link to its upstream cut".to_owned(),
        Output::AwaitReceiverGone => "receiver gone".to_owned(),
        Output::AnswerPrepared { .. } | Output::AnswerDemoted { .. } | Output::Answer(_) => {
            "reads the end of its log".to_owned()
        }
        Output::CompareLogs => "compares the logs".to_owned(),
        Output::Link { upstream, term } => format!("links to {} for term {term}", named(upstream)),
        Output::StopPostgres => "PostgreSQL ended".to_owned(),
        Output::StartStandby => "PostgreSQL started as standby".to_owned(),
        Output::Rebuild { upstream, path, .. } => format!("{path:?} from {}", named(upstream)),
        Output::Promote { term } => format!("promotes for term {term}"),
        Output::OpeningTransaction { term, .. } => format!("sends the opening of term {term}"),
        Output::OpenPort { term } => format!("port open for term {term}"),
        Output::Deny(why) => format!("denied: {why}"),
    }
}

pub(super) fn driver(output: &driver::Output) -> String {
    match output {
        driver::Output::Call { to, call: c } => format!("asks {} to {}", named(to), call(c)),
        driver::Output::AwaitReplayed(lsn) => format!("waits for position {}", lsn.0),
        driver::Output::Promote { .. } => "orders the promotion".to_owned(),
        driver::Output::OpeningTransaction { .. } => "orders the opening transaction".to_owned(),
        driver::Output::ChangeOwners { grants: g, .. } => {
            format!("orders the owner change{}", grants(g))
        }
        driver::Output::KeepOpen { term, .. } => format!("orders the row of term {term} in place"),
        driver::Output::Open { .. } => "orders to serve".to_owned(),
        driver::Output::Report(progress) => match progress {
            Progress::Recruiting => "recruiting".to_owned(),
            Progress::CatchingUp => "catching up".to_owned(),
            Progress::Promoting => "promoting".to_owned(),
            Progress::Opening => "opening".to_owned(),
            Progress::Open { row } => {
                format!("open{}", row.as_ref().map_or(String::new(), term_row))
            }
            Progress::GaveUp { reason, .. } => format!("gives up: {reason}"),
        },
    }
}

fn term_row(row: &TermRow) -> String {
    format!(" at term {}, fork {}", row.term, row.fork.0)
}

pub(super) fn record(stored: &Stored) -> String {
    let record = &stored.record;
    let mut text = match &record.open {
        Some(open) => format!("open term {} of {}", open.term, named(&open.primary)),
        None => "nothing open".to_owned(),
    };
    if let Some(op) = &record.op {
        let target = named(&op.target);
        write!(text, ", {} to {target} at term {}", op.kind, op.term).ok();
    }
    if let Some(policy) = &stored.policy {
        write!(text, ", policy {}", policy.number).ok();
    }
    for run in &record.runs {
        let phase = match &run.phase {
            RunPhase::Active => "active in",
            RunPhase::Switching { .. } => "switching to",
        };
        let (first, last) = (run.first, run.last);
        write!(
            text,
            ", shards {first}–{last} {phase} {} at epoch {}",
            run.cell, run.epoch
        )
        .ok();
    }
    text
}
