//! How fast those who waited go on.
//!
//! A new owner must not be met by all who waited for it at once, and those who did not wait share
//! the machine with those who did. So only so many are under way at a time, and how many follows
//! from how they fare: each that is answered about as quickly as the quickest makes room for two,
//! one that takes longer for one and an eighth. This is slow start, ended by delay instead of loss
//! (RFC 5681, 3.1; L. Brakmo, L. Peterson, "TCP Vegas", 1995): a machine that has room is filled
//! within some round trips, a machine that has none keeps its work to about what it can carry. It
//! never stands still: answers may take long because their owner is far away.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// An answer that takes longer than so many times the quickest one of its ramp is slow.
const SLOW: u32 = 2;
/// So many slow ones make room for one more.
const SLOW_FOR_ONE: usize = 8;

/// One ramp, shared by those who are under way on it.
#[derive(Debug)]
pub(crate) struct Ramp {
    first: usize,
    state: Mutex<State>,
    wake: Arc<Notify>,
}

#[derive(Debug)]
struct State {
    /// How many may be under way.
    room: usize,
    under_way: usize,
    quickest: Option<Duration>,
    /// Slow answers that have made no room yet.
    slow: usize,
    /// When somebody went or was answered.
    moved: Instant,
}

/// One who waited and goes on; dropped where it has no answer, or has to wait again.
#[derive(Debug)]
pub struct Released {
    ramp: Arc<Ramp>,
    since: Instant,
}

impl Ramp {
    /// `first` are under way at once to begin with; `wake` is told when one more may go.
    pub(crate) fn new(first: usize, wake: Arc<Notify>) -> Arc<Self> {
        let first = first.max(1);
        Arc::new(Self {
            first,
            state: Mutex::new(State {
                room: first,
                under_way: 0,
                quickest: None,
                slow: 0,
                moved: Instant::now(),
            }),
            wake,
        })
    }

    /// How many may go now.
    pub(crate) fn free(&self) -> usize {
        let state = self.lock();
        state.room.saturating_sub(state.under_way)
    }

    /// One goes.
    pub(crate) fn let_go(self: &Arc<Self>) -> Released {
        let mut state = self.lock();
        state.under_way += 1;
        state.moved = Instant::now();
        Released {
            ramp: Arc::clone(self),
            since: state.moved,
        }
    }

    /// When somebody went or was answered last.
    pub(crate) fn moved(&self) -> Instant {
        self.lock().moved
    }

    /// Nobody has been answered for long: the next ones go all the same.
    pub(crate) fn lost_patience(&self) {
        let mut state = self.lock();
        state.room = state.under_way.saturating_add(self.first);
        state.moved = Instant::now();
    }

    /// Nobody waits any more. Who is still under way has no part in the next ramp.
    pub(crate) fn ended(&self) {
        let mut state = self.lock();
        state.room = state.under_way.saturating_add(self.first);
        (state.quickest, state.slow) = (None, 0);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Released {
    /// It has its answer.
    pub fn answered(self) {
        let mut state = self.ramp.lock();
        state.moved = Instant::now();
        let took = self.since.elapsed();
        let quickest = state.quickest.map_or(took, |quickest| quickest.min(took));
        state.quickest = Some(quickest);
        state.slow += usize::from(took > quickest * SLOW);
        if took <= quickest * SLOW {
            state.room = state.room.saturating_add(1);
        } else if state.slow >= SLOW_FOR_ONE {
            state.slow = 0;
            state.room = state.room.saturating_add(1);
        }
    }
}

impl Drop for Released {
    fn drop(&mut self) {
        let mut state = self.ramp.lock();
        state.under_way = state.under_way.saturating_sub(1);
        drop(state);
        self.ramp.wake.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets all go that may, and answers them after `took`.
    async fn round(ramp: &Arc<Ramp>, took: Duration) -> usize {
        let under_way: Vec<Released> = (0..ramp.free()).map(|_| ramp.let_go()).collect();
        let count = under_way.len();
        tokio::time::sleep(took).await;
        under_way.into_iter().for_each(Released::answered);
        count
    }

    #[tokio::test(start_paused = true)]
    async fn twice_as_many_go_each_round_while_they_are_answered_as_quickly() {
        let ramp = Ramp::new(4, Arc::default());
        let mut rounds = Vec::new();
        for took in [40, 45, 80, 81, 500, 30, 61, 60] {
            rounds.push(round(&ramp, Duration::from_millis(took)).await);
        }
        assert_eq!(rounds, [4, 8, 16, 32, 36, 40, 80, 90]);
        ramp.ended();
        assert_eq!(ramp.free(), 4, "the next ramp begins small");
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_never_answered_or_goes_away_does_not_stop_the_others() {
        let ramp = Ramp::new(2, Arc::default());
        let _stuck: Vec<Released> = (0..2).map(|_| ramp.let_go()).collect();
        assert_eq!(ramp.free(), 0);
        ramp.lost_patience();
        assert_eq!(ramp.free(), 2);
        let gone = ramp.let_go();
        assert_eq!(ramp.free(), 1);
        drop(gone);
        assert_eq!(
            ramp.free(),
            2,
            "room for one, not for two: it was not answered"
        );
        ramp.ended();
        assert_eq!(
            ramp.free(),
            2,
            "those of the last ramp have no part in the next"
        );
    }
}
