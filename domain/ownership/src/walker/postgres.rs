//! PostgreSQL as far as the protocol can see it: statements, commits, streaming, promotion.

use std::rc::Rc;

use atoll_topology::{Quorum, ShardId, Term};

use super::checks::Violation;
use super::control::shards;
use super::log::{Cell, Entry, Granted, Opening, SHARDS};
use super::message::Message;
use super::node::{Asker, At, Awaited, Commit, Link, Node, Postgres, Statement, Waiting, Work};
use super::world::{LOG_MAX, Pace, Stepped, World};
use super::{Mutant, story};
use crate::driver;
use crate::member::Input;
use crate::messages::{Grant, JoinPath, TermRow};

/// What the rest of an in-place change finds on the primary.
const BUSY: &str = "the shards' tables stayed in use";
const STALE: &str = "stale";

/// Where a statement came from: the run of the driver that waits for it, and whether it still can.
#[derive(Debug, Clone, Copy)]
struct Session {
    heard: bool,
    run: u32,
}

impl World {
    /// A client of a cell writes where a port is open; PostgreSQL decides by privilege.
    pub(super) fn write(&mut self, at: At, shard: u8, cell: Cell, pace: Pace) -> Stepped {
        let node = self.node(at);
        let open = node.alive && node.postgres == Postgres::Primary && node.port.is_some();
        if !open || node.log.len() >= LOG_MAX {
            return Ok(false);
        }
        let shard = shards(node.group)[usize::from(shard) % usize::from(SHARDS)];
        if !node.log.owned(shard).is_some_and(|owned| owned.lets(cell)) {
            return Ok(false);
        }
        self.begin_statement(at, 0, Work::Write { shard, cell });
        match pace {
            Pace::AtOnce => {
                let last = self.node(at).statements.len() - 1;
                self.execute(at, last)
            }
            Pace::Lingering => Ok(true),
        }
    }

    /// A backend executes a statement, whether or not its session still stands.
    pub(super) fn execute(&mut self, at: At, nth: usize) -> Stepped {
        let node = self.node(at);
        if !node.alive || node.postgres != Postgres::Primary || nth >= node.statements.len() {
            return Ok(false);
        }
        let Statement { heard, run, what } = self.at(at).statements.remove(nth);
        let session = Session { heard, run };
        match what {
            Work::Write { shard, cell } => self.executed_write(at, session, shard, cell),
            Work::Opening {
                term,
                grants,
                listed,
                in_place,
            } => self.executed_opening(at, session, (term, in_place), &grants, &listed)?,
            Work::Owners { grants } => self.executed_owners(at, session, &grants)?,
            Work::Policy { number } => {
                self.at(at).log.append(Entry::Policy(number));
                self.wait(at, session, Commit::Policy { number });
            }
        }
        Ok(true)
    }

    fn wait(&mut self, at: At, Session { heard, run }: Session, what: Commit) {
        let node = self.at(at);
        let at = node.log.len() - 1;
        node.waiting.push_back(Waiting {
            at,
            heard,
            run,
            what,
        });
    }

    fn executed_write(&mut self, at: At, session: Session, shard: ShardId, cell: Cell) {
        let owned = self.node(at).log.owned(shard);
        let Some(owned) = owned.filter(|owned| owned.lets(cell)) else {
            self.tell(|| "permission denied".to_owned());
            return;
        };
        self.writes += 1;
        let number = self.writes;
        self.at(at).log.append(Entry::Write(number));
        self.tell(|| format!("write {number} is in its log"));
        let what = Commit::Write {
            number,
            shard,
            epoch: owned.epoch,
            cell,
        };
        self.wait(at, session, what);
    }

    /// The opening transaction: the row only if it is the greatest, every grant only if newer.
    fn executed_opening(
        &mut self,
        at: At,
        session: Session,
        (term, in_place): (Term, bool),
        grants: &[Grant],
        listed: &Awaited,
    ) -> Result<(), Violation> {
        let node = self.node(at);
        let old_row = !term.supersedes(node.log.term());
        let row_guard = self.mutant != Some(Mutant::TermRowWithoutGuard);
        if old_row && row_guard || self.stale(at, grants) {
            return self.rolled_back(at, session, STALE);
        }
        if in_place && self.locked(at, grants) {
            return self.rolled_back(at, session, BUSY);
        }
        let row = TermRow {
            term,
            timeline: node.log.timeline(),
            fork: node.log.fork(),
            primary: node.id.clone(),
            members: self.ids_of(&listed.members),
            k: listed.k,
            op: String::new(),
        };
        self.fenced(at, term, listed)?;
        if old_row {
            let (id, newest) = (&self.node(at).id, self.node(at).log.term());
            let what = format!("{id} writes the row of term {term} after that of term {newest}");
            return Self::broke("EPOCH_GROWS", what);
        }
        self.append_opening(at, Some(row.clone()), grants, in_place)?;
        let what = Commit::Opening {
            term,
            row,
            in_place,
        };
        self.wait(at, session, what);
        Ok(())
    }

    /// FENCE_FIRST: who opens a term has F members behind it that will never again help an older
    /// one; or has the promise of the very primary that led the term before.
    fn fenced(&self, at: At, term: Term, listed: &Awaited) -> Result<(), Violation> {
        let promised = |at: &&At| !term.supersedes(self.node(**at).promised);
        let before = self.node(at).log.rows().last();
        let handed_over = before
            .is_some_and(|row| row.term.next() == term && promised(&&Self::index(&row.primary)));
        if handed_over {
            return Ok(());
        }
        let fenced = listed.members.iter().filter(promised).count();
        let quorum = Quorum {
            members: listed.members.len(),
            k: usize::from(listed.k),
        };
        if fenced >= quorum.recruits() {
            return Ok(());
        }
        let needed = quorum.recruits();
        let what = format!("term {term} is opened with {fenced} promises of {needed}");
        Self::broke("FENCE_FIRST", what)
    }

    /// In place, at the open term, under the lock that waits for the shards' writers.
    fn executed_owners(
        &mut self,
        at: At,
        session: Session,
        grants: &[Grant],
    ) -> Result<(), Violation> {
        if self.stale(at, grants) {
            return self.rolled_back(at, session, STALE);
        }
        if self.locked(at, grants) {
            return self.rolled_back(at, session, BUSY);
        }
        self.append_opening(at, None, grants, true)?;
        self.wait(at, session, Commit::Owners);
        Ok(())
    }

    fn stale(&self, at: At, grants: &[Grant]) -> bool {
        let guard = self.mutant != Some(Mutant::OwnerChangeWithoutGuard);
        guard && self.node(at).log.stale(grants)
    }

    /// Backends that wait for their quorum hold their locks, whoever listens.
    fn locked(&self, at: At, grants: &[Grant]) -> bool {
        self.node(at)
            .waiting
            .iter()
            .any(|waiting| match &waiting.what {
                Commit::Write { shard, .. } => grants.iter().any(|grant| grant.shard == *shard),
                Commit::Owners | Commit::Opening { .. } | Commit::Policy { .. } => false,
            })
    }

    fn rolled_back(
        &mut self,
        at: At,
        Session { run, .. }: Session,
        why: &str,
    ) -> Result<(), Violation> {
        self.tell(|| format!("rolled back: {why}"));
        let reason = why.to_owned();
        self.told_driver(at, Asker::Driver(run), driver::Input::Denied { reason })
    }

    fn append_opening(
        &mut self,
        at: At,
        row: Option<TermRow>,
        grants: &[Grant],
        in_place: bool,
    ) -> Result<(), Violation> {
        let group = usize::from(self.node(at).group);
        let mut granted = Vec::new();
        for grant in grants {
            let cell = super::world::cell_index(&self.cells, &grant.cell);
            let owned = self.node(at).log.owned(grant.shard);
            if let Some(owned) = owned.filter(|owned| !grant.epoch.supersedes(owned.epoch)) {
                let (shard, old, new) = (grant.shard, owned.epoch, grant.epoch);
                let what = format!("shard {shard} is granted at epoch {new} after epoch {old}");
                return Self::broke("EPOCH_GROWS", what);
            }
            self.told[group].granted(grant.shard, grant.epoch, cell)?;
            let named = |(shard, from): &(ShardId, Cell)| (*shard == grant.shard).then_some(*from);
            let revoked = match self.mutant {
                Some(Mutant::RevokeOnlyThePrevious) => self
                    .node(at)
                    .leaving
                    .iter()
                    .find_map(named)
                    .into_iter()
                    .collect(),
                _ => (0..2).filter(|other| *other != cell).collect(),
            };
            granted.push(Granted {
                shard: grant.shard,
                epoch: grant.epoch,
                cell,
                revoked,
            });
        }
        let opening = Opening {
            row,
            grants: granted,
            in_place,
        };
        self.at(at).log.append(Entry::Opening(Rc::new(opening)));
        Ok(())
    }

    pub(super) fn ids_of(&self, members: &[At]) -> Vec<atoll_topology::MemberId> {
        members
            .iter()
            .map(|at| self.ids[usize::from(*at)].clone())
            .collect()
    }

    /// The oldest commit that waits is acknowledged, if enough standbys have it.
    pub(super) fn commit(&mut self, at: At) -> Stepped {
        let node = self.node(at);
        let Some(waiting) = node.waiting.front() else {
            return Ok(false);
        };
        let holds = |other: &&Node| {
            let passes = |link: Link| link.upstream == at && self.passes(link);
            other.alive && other.link.is_some_and(passes) && other.log.len() > waiting.at
        };
        let standbys = node.awaited.members.iter().map(|other| self.node(*other));
        let led = node.log.led();
        let mut acknowledge = 0;
        for other in standbys.filter(holds) {
            if led.supersedes(other.disk.promise) {
                let (other, promise) = (&other.id, other.disk.promise);
                let what = format!("{other} acknowledges term {led} and has promised {promise}");
                return Self::broke("PROMISED", what).map(|()| true);
            }
            acknowledge += 1;
        }
        let alone = self.mutant == Some(Mutant::AcknowledgeBeforeQuorum);
        if acknowledge < usize::from(node.awaited.k) && !alone {
            return Ok(false);
        }
        let Some(waiting) = self.at(at).waiting.pop_front() else {
            return Ok(false);
        };
        if waiting.heard {
            self.acknowledged(at, waiting)?;
        } else {
            self.tell(|| "nobody hears of it".to_owned());
        }
        Ok(true)
    }

    fn acknowledged(&mut self, at: At, waiting: Waiting) -> Result<(), Violation> {
        let node = &self.nodes[usize::from(at)];
        let told = &mut self.told[usize::from(node.group)];
        match waiting.what {
            Commit::Write {
                number,
                shard,
                epoch,
                cell,
            } => {
                self.walked.acknowledged += 1;
                if let Some(story) = &mut self.story {
                    let cell = story::cell(cell);
                    story.effect(format!("write {number} is acknowledged to cell {cell}"));
                }
                told.acknowledge((number, waiting.at), (shard, epoch, cell), &node.log)
            }
            Commit::Opening {
                term,
                row,
                in_place,
            } => {
                told.row(term, &node.log)?;
                self.opening_acknowledged(at, waiting.run, row, in_place)
            }
            Commit::Owners => {
                let node = self.node(at);
                if let Some(term) = node.port {
                    let (log, group) = (node.log.clone(), node.group);
                    self.told[usize::from(group)].serves(term, &log, shards(group));
                }
                let asker = Asker::Driver(waiting.run);
                self.told_driver(at, asker, driver::Input::Acknowledged { row: None })
            }
            Commit::Policy { number } => {
                self.reloaded_on(at, number);
                Ok(())
            }
        }
    }

    fn opening_acknowledged(
        &mut self,
        at: At,
        run: u32,
        row: TermRow,
        in_place: bool,
    ) -> Result<(), Violation> {
        let term = row.term;
        self.tell(|| format!("the row of term {term} has its quorum"));
        let input = if in_place {
            Input::KeptOpen { term }
        } else {
            Input::OpeningAcknowledged { term }
        };
        self.push(at, Asker::Nobody, input);
        let node = self.at(at);
        if in_place && node.port.is_some() {
            node.port = Some(term);
            let (log, group) = (node.log.clone(), node.group);
            self.told[usize::from(group)].serves(term, &log, shards(group));
        }
        let acknowledged = driver::Input::Acknowledged { row: Some(row) };
        self.told_driver(at, Asker::Driver(run), acknowledged)
    }

    pub(super) fn reloaded_on(&mut self, at: At, number: u64) {
        let group = self.node(at).group;
        self.send(Message::Reloaded {
            from: at,
            group,
            number,
        });
    }

    /// PostgreSQL has left recovery.
    pub(super) fn promoted(&mut self, at: At) -> Stepped {
        let node = self.node(at);
        let Some((term, asker)) = node.promoting.filter(|_| node.alive) else {
            return Ok(false);
        };
        match node.postgres {
            Postgres::Standby => {
                // Placeholder histories of every id below the term make PostgreSQL choose it.
                let next = node.log.timeline() + 1;
                let wanted = u32::try_from(term.get()).unwrap_or(u32::MAX);
                let one_more = self.mutant == Some(Mutant::TwoPromotionsWithOneTimeline);
                let timeline = if one_more { next } else { next.max(wanted) };
                let group = usize::from(node.group);
                let node = self.at(at);
                node.postgres = Postgres::Primary;
                node.link = None;
                node.log.append_on(timeline, Entry::Promotion(at));
                let chain = node.log.chain();
                self.tell(|| format!("on timeline {timeline}"));
                self.told[group].timeline(timeline, chain)?;
            }
            Postgres::Primary => {}
            Postgres::Down | Postgres::Starting => return Ok(false),
        }
        self.at(at).promoting = None;
        self.push(at, Asker::Nobody, Input::Promoted { term });
        self.told_driver(at, asker, driver::Input::Promoted)?;
        Ok(true)
    }

    pub(super) fn open_port(&mut self, at: At, term: Term) -> Result<(), Violation> {
        self.walked.opened += 1;
        let node = &mut self.nodes[usize::from(at)];
        node.port = Some(term);
        let group = node.group;
        self.told[usize::from(group)].opens(term, &node.log, shards(group))?;
        self.report(at);
        Ok(())
    }

    /// PostgreSQL has come up as a standby; a rewound one only with the log that it needs.
    pub(super) fn ready(&mut self, at: At) -> Stepped {
        let node = self.at(at);
        let up = node.alive && node.postgres == Postgres::Starting && node.log.len() >= node.needs;
        if !up || !node.idle() {
            return Ok(false);
        }
        node.needs = 0;
        node.postgres = Postgres::Standby;
        self.push(at, Asker::Nobody, Input::StandbyUp);
        self.work(at, super::choice::ALL)
    }

    pub(super) fn replayed(&mut self, at: At) -> Stepped {
        let node = self.at(at);
        let reached = node
            .replay_target
            .is_some_and(|lsn| node.log.len() as u64 >= lsn.0);
        if !reached || !node.alive {
            return Ok(false);
        }
        node.replay_target = None;
        self.drive(at, driver::Input::Replayed)?;
        Ok(true)
    }

    /// Whether an upstream's agent lets a standby in; it answers between two inputs.
    fn lets_in(&self, upstream: At, standby: At, term: Term) -> bool {
        let up = self.node(upstream);
        let serves = matches!(up.postgres, Postgres::Standby | Postgres::Primary);
        let accepts = up.member.accepts_link(&self.node(standby).id, term);
        upstream != standby && up.alive && serves && up.idle() && accepts
    }

    /// A standby's receiver reaches its upstream.
    pub(super) fn establish(&mut self, at: At) -> Stepped {
        let node = self.node(at);
        let runs = matches!(node.postgres, Postgres::Starting | Postgres::Standby);
        let Some(mut link) = node.link.filter(|link| !link.established) else {
            return Ok(false);
        };
        let streams = self.node(link.upstream).log.would_stream_to(&node.log);
        if !node.alive || !runs || !streams || !self.lets_in(link.upstream, at, link.term) {
            return Ok(false);
        }
        link.established = true;
        link.known = link.term;
        self.at(at).link = Some(link);
        Ok(true)
    }

    /// Whether anything passes on a link: it stands, and its standby is known to have promised
    /// what its upstream needs.
    fn passes(&self, link: Link) -> bool {
        let held = self.node(link.upstream).needed.supersedes(link.known);
        let held = held && self.mutant != Some(Mutant::CascadeWithoutHold);
        link.established && !held
    }

    /// Some entries along one link.
    pub(super) fn stream(&mut self, at: At, entries: usize) -> Stepped {
        let node = self.node(at);
        let Some(link) = node.link.filter(|link| self.passes(*link)) else {
            return Ok(false);
        };
        let upstream = self.node(link.upstream);
        if !node.alive || !upstream.alive {
            return Ok(false);
        }
        if !node.log.begins(&upstream.log) {
            let (id, from) = (&node.id, &upstream.id);
            let what = format!("{id} streams from {from}, whose log is another");
            return Self::broke("ONE_LOG", what).map(|()| true);
        }
        if upstream.log.len() == node.log.len() {
            return Ok(false);
        }
        let mut log = std::mem::take(&mut self.at(at).log);
        log.stream(&self.node(link.upstream).log, entries);
        self.at(at).log = log;
        Ok(true)
    }

    /// The rewind or clone has ended well: a rewound log ends where the lines part and cannot be
    /// read before it has as much of the upstream's as was there when it was rewound.
    pub(super) fn rebuilt(&mut self, at: At) -> Stepped {
        let Some((upstream, term, path)) = self.node(at).rebuilding else {
            return Ok(false);
        };
        if !self.node(at).alive || !self.lets_in(upstream, at, term) {
            return Ok(false);
        }
        self.walked.rebuilt += 1;
        let source = self.node(upstream).log.clone();
        let node = self.at(at);
        node.rebuilding = None;
        match path {
            JoinPath::Rewind => {
                let common = node.log.common(&source);
                node.log.truncate(common);
                node.needs = source.len();
            }
            JoinPath::Clone | JoinPath::Stream => {
                node.log = source;
                node.needs = 0;
            }
        }
        self.push(at, Asker::Nobody, Input::Rebuilt);
        Ok(true)
    }

    pub(super) fn rebuild_fails(&mut self, at: At) -> Stepped {
        let node = self.at(at);
        if !node.alive || node.rebuilding.take().is_none() {
            return Ok(false);
        }
        // Half a directory is no log.
        node.log.truncate(0);
        self.push(at, Asker::Nobody, Input::RebuildFailed);
        Ok(true)
    }
}
