//! What can happen next. A walk is a list of choices: it can be replayed, and made shorter.

use super::control::{Change, Scope};
use super::log::Cell;
use super::node::At;
use crate::messages::OpKind;

/// All outputs of an input, one after the other, before anything else happens.
pub(super) const ALL: u8 = u8::MAX;

/// Names a message under way by what it is, not by its place, so that a shorter list of choices
/// still means the same messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    /// Which kind of message.
    pub(super) kind: u8,
    pub(super) from: At,
    pub(super) to: At,
    /// Its term, or what else tells it from others.
    pub(super) term: u8,
}

/// One step of a walk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Choice {
    /// A message arrives, and its receiver performs this many outputs, if it is not busy.
    Deliver(Key, u8),
    /// The same, and the message will arrive again.
    Repeat(Key, u8),
    /// A message is lost.
    Lose(Key),
    /// An agent goes on: the outputs of the last input, or the next input.
    Work(At, u8),
    /// A standby's receiver reaches its upstream.
    Link(At),
    /// Some entries of the log along the link.
    Stream(At, u8),
    /// A client of a cell writes a row of a shard of the group.
    Write(At, u8, Cell),
    /// The same; the statement takes its time.
    Linger(At, u8, Cell),
    /// A statement that took its time executes.
    Execute(At, u8),
    /// The oldest commit has its quorum.
    Commit(At),
    /// The promotion is done.
    Promoted(At),
    /// PostgreSQL has come up.
    Ready(At),
    /// The target has replayed what its driver waits for.
    Replayed(At),
    /// The rewind or clone has ended well.
    Rebuilt(At),
    /// It has not.
    RebuildFails(At),
    /// Who leads asks a member to follow.
    Lead(At, At),
    /// Who leads asks a member to follow a third one.
    Cascade(At, At, At),
    /// A driver repeats what it asked of a member.
    Again(At, At),
    /// A driver, or who leads, finds that a member cannot be reached.
    Unreachable(At, At),
    /// The machine, or the agent, dies.
    Crash(At),
    /// It is back.
    Start(At),
    /// Only PostgreSQL dies.
    PostgresDies(At),
    /// While it is down, its directory is lost.
    LoseVolume(At),
    /// A primary does not hear its standbys.
    Isolate(At),
    /// It does again.
    Hear(At),
    /// A replica of control reads a group's record: the newest, or an older one.
    Read(u8, u8, u8),
    /// It orders an op.
    Order {
        /// Which replica.
        replica: u8,
        /// Of which group.
        group: u8,
        /// What.
        kind: OpKind,
        /// The coming primary.
        target: At,
        /// Where the shards go.
        cell: Cell,
        /// Which.
        scope: Scope,
    },
    /// It orders a change of members or of k.
    Policy(u8, u8, Change),
    /// It tells the target of the running op to drive it, or the primary to reload.
    Drive(u8, u8),
    /// A gateway is shown a table, so many versions old.
    Show(u8, u8),
    /// Its gate of a shard finds the owner silent.
    Suspect(u8),
    /// It probes it.
    Probe(u8),
}
