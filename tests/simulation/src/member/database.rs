//! A member's PostgreSQL, as far as the ownership protocol can see one: down, a standby, or a
//! primary whose commits wait for k standbys that follow it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use atoll_agent::simulation::Opened;
use atoll_ownership::{Grant, LogEnd, TermRow};
use atoll_topology::{Epoch, MemberId, ShardId, Term};
use tokio::sync::watch;
use tokio::time::{Duration, timeout};
use tokio_util::sync::CancellationToken;

use super::Weakened;
use super::disk::{Disk, Entry, Logged, Write};

/// How long an owner change waits for the writers of its shards.
const LOCK_LIMIT: Duration = Duration::from_millis(200);

/// What runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Down,
    Standby,
    Primary,
}

struct State {
    mode: Mode,
    /// Names the last start that was ordered; an order to end makes it void.
    start: u64,
    /// Grows with each start and end: what was waited for under an older one is lost.
    run: u64,
    /// Commits that wait for their quorum: nobody sees them.
    hidden: BTreeSet<usize>,
    /// What each standby that follows us directly has flushed.
    acks: BTreeMap<MemberId, usize>,
    /// Shards whose owner is being changed in place.
    locked: BTreeSet<ShardId>,
    /// Ends when the agent's own sessions are cut.
    sessions: CancellationToken,
}

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failed {
    /// The role of the cell may not write this shard.
    Privilege,
    /// It is a standby, or not there.
    NotPrimary,
    /// It ended before the outcome was known.
    Gone,
    /// Something newer stands in the log.
    Stale,
    /// The writers of its shards did not end.
    Busy,
}

/// One PostgreSQL.
pub(crate) struct Database {
    pub(crate) disk: Disk,
    k: usize,
    weakened: Weakened,
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

impl Database {
    pub(crate) fn new(disk: Disk, k: usize, weakened: Weakened) -> Arc<Self> {
        let state = Mutex::new(State {
            mode: Mode::Down,
            start: 0,
            run: 0,
            hidden: BTreeSet::new(),
            acks: BTreeMap::new(),
            locked: BTreeSet::new(),
            sessions: CancellationToken::new(),
        });
        let changed = watch::Sender::new(0);
        Arc::new(Self {
            disk,
            k,
            weakened,
            state,
            changed,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bump(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// Tells of everything that grows or ends here.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    pub(crate) fn mode(&self) -> Mode {
        self.state().mode
    }

    /// Orders a start: its number, for [`Database::start`].
    pub(crate) fn order_start(&self) -> u64 {
        let mut state = self.state();
        state.start += 1;
        state.start
    }

    /// Whether this start was the last order.
    pub(crate) fn is_wanted(&self, start: u64) -> bool {
        self.state().start == start
    }

    /// Comes up as a standby, unless the order was taken back.
    pub(crate) fn start(&self, start: u64) -> bool {
        let wanted = self.is_wanted(start);
        if wanted {
            self.run_as(Mode::Standby);
        }
        wanted
    }

    /// Ends at once, by order; its log ends where it is.
    pub(crate) fn quit(&self) {
        self.state().start += 1;
        self.cut_sessions();
        self.run_as(Mode::Down);
    }

    /// Ends at once, by itself: which start it was, if it ran.
    pub(crate) fn die(&self) -> Option<u64> {
        let ran = self.mode() != Mode::Down;
        if ran {
            self.run_as(Mode::Down);
        }
        ran.then(|| self.state().start)
    }

    fn run_as(&self, mode: Mode) {
        {
            let mut state = self.state();
            state.mode = mode;
            state.run += 1;
            state.hidden.clear();
            state.acks.clear();
            state.locked.clear();
        }
        self.bump();
    }

    /// A session of the agent's own that may write: it ends when they are cut.
    pub(crate) fn session(&self) -> CancellationToken {
        self.state().sessions.clone()
    }

    /// Cuts them: what they wait for is reported to nobody.
    pub(crate) fn cut_sessions(&self) {
        std::mem::take(&mut self.state().sessions).cancel();
    }

    /// Names the process that runs.
    pub(crate) fn run(&self) -> u64 {
        self.state().run
    }

    /// Returns when that process has ended.
    pub(crate) async fn ended(&self, run: u64) {
        let mut changes = self.changes();
        // We hold a sender, so the channel cannot close.
        drop(changes.wait_for(|_| self.run() != run).await);
    }

    /// Leaves recovery, on the timeline of that term, if it still is that process.
    pub(crate) fn promote(&self, run: u64, term: Term) -> Result<(), String> {
        {
            let mut state = self.state();
            if state.run != run || state.mode != Mode::Standby {
                return Err("it is no standby".to_owned());
            }
            state.mode = Mode::Primary;
            let timeline = u32::try_from(term.get()).unwrap_or(u32::MAX);
            let entry = Entry::Promotion;
            self.disk.lock().push(Logged { timeline, entry });
        }
        self.bump();
        Ok(())
    }

    /// The end of the log, where it can be read.
    pub(crate) fn end(&self) -> Option<LogEnd> {
        (self.mode() != Mode::Down).then(|| self.disk.lock().end())
    }

    /// The end of the log and its term rows.
    pub(crate) fn line(&self) -> Option<(LogEnd, Vec<TermRow>)> {
        (self.mode() != Mode::Down).then(|| {
            let volume = self.disk.lock();
            (volume.end(), volume.rows())
        })
    }

    /// Entries from an upstream; false if they do not continue this log.
    pub(crate) fn receive(&self, from: usize, entries: Vec<Logged>) -> bool {
        if self.mode() != Mode::Standby {
            return false;
        }
        {
            let mut volume = self.disk.lock();
            if volume.log.len() != from {
                return false;
            }
            for mut logged in entries {
                if let (true, Entry::Write(write)) =
                    (self.weakened.alter_received, &mut logged.entry)
                {
                    write.user.push('x');
                }
                volume.push(logged);
            }
        }
        self.bump();
        true
    }

    /// A standby that follows us has flushed so much.
    pub(crate) fn acknowledged(&self, standby: &MemberId, flushed: usize) {
        {
            let mut state = self.state();
            let known = state.acks.entry(standby.clone()).or_default();
            *known = flushed.max(*known);
            let mut acks: Vec<usize> = state.acks.values().copied().collect();
            acks.sort_unstable();
            let quorum = match self.k {
                0 => usize::MAX,
                k if acks.len() >= k => acks[acks.len() - k],
                _ => 0,
            };
            state.hidden.retain(|at| *at >= quorum);
        }
        self.bump();
    }

    /// A standby's link is cut: what it says from now on counts for nothing.
    pub(crate) fn unlinked(&self, standby: &MemberId) {
        self.state().acks.remove(standby);
    }

    /// Appends; gives its place and the run that it belongs to.
    fn append(&self, state: &mut State, entry: Entry) -> (usize, u64) {
        let mut volume = self.disk.lock();
        let timeline = volume.timeline();
        let at = volume.log.len();
        volume.push(Logged { timeline, entry });
        if self.k > 0 && !self.weakened.acknowledge_before_quorum {
            state.hidden.insert(at);
        }
        (at, state.run)
    }

    /// Waits until a commit has its quorum.
    async fn quorum(&self, (at, run): (usize, u64)) -> Result<(), Failed> {
        let mut changes = self.changes();
        loop {
            changes.borrow_and_update();
            {
                let state = self.state();
                if state.run != run {
                    return Err(Failed::Gone);
                }
                if !state.hidden.contains(&at) {
                    return Ok(());
                }
            }
            if changes.changed().await.is_err() {
                return Err(Failed::Gone);
            }
        }
    }

    /// What the log says about ownership, commits that wait apart.
    pub(crate) fn owners(&self) -> BTreeMap<ShardId, Grant> {
        self.owners_by(&self.state())
    }

    fn owners_by(&self, state: &State) -> BTreeMap<ShardId, Grant> {
        let volume = self.disk.lock();
        let visible = volume
            .openings()
            .filter(|(at, _, _)| !state.hidden.contains(at));
        let grants = visible.flat_map(|(_, _, grants)| grants.iter());
        grants.map(|grant| (grant.shard, grant.clone())).collect()
    }

    /// The last term row that anybody sees.
    pub(crate) fn row(&self) -> Option<TermRow> {
        let state = self.state();
        let volume = self.disk.lock();
        volume
            .openings()
            .rev()
            .filter(|(at, _, _)| !state.hidden.contains(at))
            .find_map(|(_, row, _)| row.clone())
    }

    /// A user's writes that anybody sees, in order.
    pub(crate) fn numbers_of(&self, user: &str) -> Vec<u64> {
        let state = self.state();
        let volume = self.disk.lock();
        let seen = volume.log.iter().enumerate();
        seen.filter(|(at, _)| !state.hidden.contains(at))
            .filter_map(|(_, logged)| match &logged.entry {
                Entry::Write(write) if write.user == user => Some(write.number),
                _ => None,
            })
            .collect()
    }

    /// One client's write, up to its quorum; under which epoch it was written.
    pub(crate) async fn write(&self, write: Write) -> Result<Epoch, Failed> {
        let mut changes = self.changes();
        let (place, epoch) = loop {
            changes.borrow_and_update();
            {
                let mut state = self.state();
                if state.mode != Mode::Primary {
                    return Err(Failed::NotPrimary);
                }
                if !state.locked.contains(&write.shard) {
                    let owners = self.owners_by(&state);
                    let owner = owners.get(&write.shard).ok_or(Failed::Privilege)?;
                    if owner.cell != write.cell && !self.weakened.no_revoke {
                        return Err(Failed::Privilege);
                    }
                    let entry = Entry::Write(write.clone());
                    if self.weakened.write_twice {
                        self.append(&mut state, entry.clone());
                    }
                    break (self.append(&mut state, entry), owner.epoch);
                }
            }
            if changes.changed().await.is_err() {
                return Err(Failed::Gone);
            }
        };
        self.bump();
        self.quorum(place).await.map(|()| epoch)
    }

    /// The opening transaction, up to its quorum.
    pub(crate) async fn open(
        &self,
        mut row: TermRow,
        grants: Vec<Grant>,
    ) -> Result<Opened, Failed> {
        let place = {
            let mut state = self.state();
            if state.mode != Mode::Primary {
                return Err(Failed::NotPrimary);
            }
            let volume = self.disk.lock();
            if !row.term.supersedes(volume.end().position.term) {
                return Err(Failed::Stale);
            }
            (row.timeline, row.fork) = (volume.timeline(), volume.fork());
            drop(volume);
            self.fresh(&state, &grants)?;
            let row = Some(row.clone());
            self.append(&mut state, Entry::Opening { row, grants })
        };
        self.bump();
        self.quorum(place).await?;
        let history = self.disk.lock().rows();
        Ok(Opened { row, history })
    }

    /// In place: under a lock that waits for the shards' writers. With a row it is a call-off.
    pub(crate) async fn change_owners(
        &self,
        row: Option<TermRow>,
        grants: Vec<Grant>,
    ) -> Result<Option<TermRow>, Failed> {
        let shards: BTreeSet<ShardId> = grants.iter().map(|grant| grant.shard).collect();
        let run = {
            let mut state = self.state();
            if state.mode != Mode::Primary {
                return Err(Failed::NotPrimary);
            }
            if !state.locked.is_disjoint(&shards) {
                return Err(Failed::Busy);
            }
            state.locked.extend(&shards);
            state.run
        };
        let changed = self.change_locked(run, &shards, row, grants).await;
        {
            let mut state = self.state();
            if state.run == run {
                state.locked.retain(|shard| !shards.contains(shard));
            }
        }
        self.bump();
        changed
    }

    async fn change_locked(
        &self,
        run: u64,
        shards: &BTreeSet<ShardId>,
        mut row: Option<TermRow>,
        grants: Vec<Grant>,
    ) -> Result<Option<TermRow>, Failed> {
        let mut changes = self.changes();
        let idle = async {
            loop {
                changes.borrow_and_update();
                if !self.writing(shards) || changes.changed().await.is_err() {
                    return;
                }
            }
        };
        timeout(LOCK_LIMIT, idle).await.map_err(|_| Failed::Busy)?;
        let place = {
            let mut state = self.state();
            if state.run != run || state.mode != Mode::Primary {
                return Err(Failed::Gone);
            }
            self.fresh(&state, &grants)?;
            if let Some(row) = &mut row {
                let volume = self.disk.lock();
                if !row.term.supersedes(volume.end().position.term) {
                    return Err(Failed::Stale);
                }
                (row.timeline, row.fork) = (volume.timeline(), volume.fork());
            }
            let row = row.clone();
            self.append(&mut state, Entry::Opening { row, grants })
        };
        self.bump();
        self.quorum(place).await?;
        Ok(row)
    }

    /// Whether a write of one of these shards waits for its quorum.
    fn writing(&self, shards: &BTreeSet<ShardId>) -> bool {
        let state = self.state();
        let volume = self.disk.lock();
        state.hidden.iter().any(|at| {
            matches!(
                volume.log.get(*at),
                Some(Logged { entry: Entry::Write(write), .. }) if shards.contains(&write.shard)
            )
        })
    }

    fn fresh(&self, state: &State, grants: &[Grant]) -> Result<(), Failed> {
        let owners = self.owners_by(state);
        let stale = |grant: &Grant| {
            owners
                .get(&grant.shard)
                .is_some_and(|owner| !grant.epoch.supersedes(owner.epoch))
        };
        if grants.iter().any(stale) {
            return Err(Failed::Stale);
        }
        Ok(())
    }
}
