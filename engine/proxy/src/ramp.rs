//! How fast those who waited go on.
//!
//! A new owner must not be met by all who waited for it at once, and those who did not wait share
//! the machine with those who did. So only so many are under way at a time, and how many follows
//! from how they fare: each that is answered about as quickly as the quickest makes room for two,
//! one that takes longer for one. This is slow start, ended by delay instead of loss (RFC 5681,
//! 3.1; L. Brakmo, L. Peterson, "TCP Vegas", 1995): a machine that has room is filled within some
//! round trips, a machine that has none keeps its work to what it can carry.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// An answer that takes longer than so many times the quickest one makes no more room.
const SLOW: u32 = 2;

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
}

/// One who waited and goes on; dropped when it is answered, or has to wait again.
#[derive(Debug)]
pub struct Released {
    ramp: Arc<Ramp>,
    since: Option<Instant>,
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
        self.lock().under_way += 1;
        Released {
            ramp: Arc::clone(self),
            since: None,
        }
    }

    /// Nobody has been answered for long: the next ones go all the same.
    pub(crate) fn lost_patience(&self) {
        let mut state = self.lock();
        state.room = state.under_way.saturating_add(self.first);
    }

    /// Nobody waits any more. What is still under way says nothing about the next time.
    pub(crate) fn ended(&self) {
        let mut state = self.lock();
        if state.under_way == 0 {
            (state.room, state.quickest) = (self.first, None);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Released {
    /// Whoever waited has heard of it.
    pub(crate) fn begin(&mut self) {
        self.since = Some(Instant::now());
    }
}

impl Drop for Released {
    fn drop(&mut self) {
        let mut state = self.ramp.lock();
        state.under_way = state.under_way.saturating_sub(1);
        // A client that went away meanwhile has not been answered.
        if let Some(since) = self.since {
            let took = since.elapsed();
            let quickest = state.quickest.map_or(took, |quickest| quickest.min(took));
            state.quickest = Some(quickest);
            if took <= quickest * SLOW {
                state.room = state.room.saturating_add(1);
            }
        }
        drop(state);
        self.ramp.wake.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets all go that may, and answers them after `took`.
    async fn round(ramp: &Arc<Ramp>, took: Duration) -> usize {
        let mut under_way: Vec<Released> = (0..ramp.free()).map(|_| ramp.let_go()).collect();
        under_way.iter_mut().for_each(Released::begin);
        tokio::time::sleep(took).await;
        under_way.len()
    }

    #[tokio::test(start_paused = true)]
    async fn twice_as_many_go_each_round_while_they_are_answered_as_quickly() {
        let ramp = Ramp::new(4, Arc::default());
        let ms = Duration::from_millis;
        let mut rounds = Vec::new();
        for took in [
            ms(40),
            ms(45),
            ms(80),
            ms(81),
            ms(500),
            ms(30),
            ms(61),
            ms(60),
        ] {
            rounds.push(round(&ramp, took).await);
        }
        assert_eq!(rounds, [4, 8, 16, 32, 32, 32, 64, 64]);
        ramp.ended();
        assert_eq!(ramp.free(), 4, "the next ramp begins small");
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_never_answered_or_goes_away_does_not_stop_the_others() {
        let ramp = Ramp::new(2, Arc::default());
        let mut stuck: Vec<Released> = (0..2).map(|_| ramp.let_go()).collect();
        stuck.iter_mut().for_each(Released::begin);
        assert_eq!(ramp.free(), 0);
        ramp.ended();
        assert_eq!(ramp.free(), 0, "it has not ended");
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
    }
}
