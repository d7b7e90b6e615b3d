//! Where requests wait: one queue for each opaque key, within limits, oldest first.
//!
//! The queue does not know why a key is closed: whoever drives it (`run`) says which keys are open,
//! from a table, a state machine or a test. What opens is let go in growing batches, so that a
//! new owner is not met by all at once.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

/// Limits of a gate, by name.
#[derive(Debug, Clone, Copy)]
pub struct HoldLimits {
    /// Requests that wait for one key.
    pub requests_per_key: usize,
    /// Bytes that they occupy.
    pub bytes_per_key: usize,
    /// How long one request waits, over all its waits.
    pub time: Duration,
    /// Requests that wait in the whole process.
    pub requests: usize,
    /// Bytes that they occupy.
    pub bytes: usize,
    /// Requests of all keys that go at once when some open.
    pub release_first: usize,
    /// Time between two batches; each is twice as large as the one before.
    pub release_every: Duration,
}

impl Default for HoldLimits {
    fn default() -> Self {
        Self {
            requests_per_key: 1_000,
            bytes_per_key: 16 << 20,
            time: Duration::from_secs(10),
            requests: 20_000,
            bytes: 128 << 20,
            release_first: 16,
            release_every: Duration::from_millis(20),
        }
    }
}

/// Why a request does not wait (any longer). It was not sent anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HoldRefused {
    /// `requests_per_key` or `bytes_per_key`.
    #[error("too many requests already wait for this key")]
    KeyFull,
    /// `requests` or `bytes`.
    #[error("too many requests already wait in this process")]
    Full,
    /// `time`.
    #[error("waited longer than the limit")]
    TooLong,
    /// The process is ending.
    #[error("the process is ending")]
    Ending,
}

/// A request's place in the order of arrival; it keeps it when it has to wait again.
#[derive(Debug, Clone, Copy)]
pub struct Ticket {
    number: u64,
    since: Instant,
}

impl Ticket {
    /// When it began to wait first.
    pub fn since(&self) -> Instant {
        self.since
    }
}

/// All waiting requests of a process, of all its workers.
#[derive(Debug)]
pub struct Hold {
    limits: HoldLimits,
    queues: Mutex<Queues>,
    waiting: AtomicUsize,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Queues {
    keys: BTreeMap<u64, Queue>,
    bytes: usize,
    tickets: u64,
    /// How many go in the next batch; 0 where the last one was all.
    batch: usize,
    ending: bool,
}

#[derive(Debug)]
struct Queue {
    waiting: BTreeMap<u64, Waiter>,
    bytes: usize,
}

#[derive(Debug)]
struct Waiter {
    bytes: usize,
    go: oneshot::Sender<Result<(), HoldRefused>>,
}

/// Leaves the queue with the request that it belongs to.
struct Place<'a> {
    hold: &'a Hold,
    key: u64,
    number: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut queues = self.hold.lock();
        if queues.remove(self.key, self.number).is_some() {
            self.hold.waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Hold {
    /// An empty gate.
    pub fn new(limits: HoldLimits) -> Self {
        Self {
            limits,
            queues: Mutex::default(),
            waiting: AtomicUsize::new(0),
            wake: Notify::new(),
        }
    }

    /// Requests that wait, in the whole process.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Whether somebody waits for this key: a new request then goes behind, also when the key is
    /// open. Costs nothing while nobody waits anywhere.
    pub fn has_queue(&self, key: u64) -> bool {
        self.waiting() > 0 && self.lock().keys.contains_key(&key)
    }

    /// Requests that wait, by key.
    pub fn queues(&self) -> Vec<(u64, usize)> {
        self.lock()
            .keys
            .iter()
            .map(|(key, queue)| (*key, queue.waiting.len()))
            .collect()
    }

    /// The next place in the order of arrival.
    pub fn ticket(&self) -> Ticket {
        let mut queues = self.lock();
        queues.tickets += 1;
        Ticket {
            number: queues.tickets,
            since: Instant::now(),
        }
    }

    /// Waits until the key is let go. Dropping the future leaves the queue.
    pub async fn wait(&self, key: u64, ticket: Ticket, bytes: usize) -> Result<(), HoldRefused> {
        let (go, gone) = oneshot::channel();
        self.enter(key, ticket.number, Waiter { bytes, go })?;
        let _place = Place {
            hold: self,
            key,
            number: ticket.number,
        };
        self.wake.notify_one();
        match tokio::time::timeout_at(ticket.since + self.limits.time, gone).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(HoldRefused::Ending),
            Err(_) => Err(HoldRefused::TooLong),
        }
    }

    /// Something changed that may have opened a key.
    pub fn poke(&self) {
        self.wake.notify_one();
    }

    /// Lets go what is open, for ever. Run by one task of the process.
    pub async fn run(&self, is_open: impl Fn(u64) -> bool) {
        loop {
            if self.release(&is_open) {
                tokio::time::sleep(self.limits.release_every).await;
            } else {
                self.wake.notified().await;
            }
        }
    }

    /// Refuses all that wait and all that come: the process is ending.
    pub fn end(&self) {
        let mut queues = self.lock();
        queues.ending = true;
        for queue in std::mem::take(&mut queues.keys).into_values() {
            for waiter in queue.waiting.into_values() {
                self.waiting.fetch_sub(1, Ordering::Relaxed);
                // A client that has just gone needs no answer.
                let _gone = waiter.go.send(Err(HoldRefused::Ending));
            }
        }
        queues.bytes = 0;
    }

    fn enter(&self, key: u64, number: u64, waiter: Waiter) -> Result<(), HoldRefused> {
        let limits = &self.limits;
        let mut queues = self.lock();
        if queues.ending {
            return Err(HoldRefused::Ending);
        }
        if self.waiting() >= limits.requests || queues.bytes + waiter.bytes > limits.bytes {
            return Err(HoldRefused::Full);
        }
        let (count, bytes) = queues
            .keys
            .get(&key)
            .map_or((0, 0), |queue| (queue.waiting.len(), queue.bytes));
        if count >= limits.requests_per_key || bytes + waiter.bytes > limits.bytes_per_key {
            return Err(HoldRefused::KeyFull);
        }
        queues.bytes += waiter.bytes;
        let queue = queues.keys.entry(key).or_insert_with(|| Queue {
            waiting: BTreeMap::new(),
            bytes: 0,
        });
        queue.bytes += waiter.bytes;
        queue.waiting.insert(number, waiter);
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// One batch of what waits for open keys, the oldest first; whether more of it waits. Many keys
    /// open at once when a city was lost, and those who did not wait share the machine with those
    /// who did: so the ramp is one for all.
    fn release(&self, is_open: &impl Fn(u64) -> bool) -> bool {
        let mut queues = self.lock();
        let size = queues.batch.max(self.limits.release_first).max(1);
        let open = queues.keys.iter().filter(|(key, _)| is_open(**key));
        let mut ready: Vec<(u64, u64)> = open
            .flat_map(|(key, queue)| queue.waiting.keys().map(|number| (*number, *key)))
            .collect();
        ready.sort_unstable();
        let more = ready.len() > size;
        queues.batch = if more { size.saturating_mul(2) } else { 0 };
        ready.truncate(size);
        for (number, key) in ready {
            if let Some(waiter) = queues.remove(key, number) {
                self.waiting.fetch_sub(1, Ordering::Relaxed);
                // A client that has just gone needs no place.
                let _gone = waiter.go.send(Ok(()));
            }
        }
        more
    }

    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queues {
    fn remove(&mut self, key: u64, number: u64) -> Option<Waiter> {
        let queue = self.keys.get_mut(&key)?;
        let waiter = queue.waiting.remove(&number)?;
        queue.bytes -= waiter.bytes;
        self.bytes -= waiter.bytes;
        if queue.waiting.is_empty() {
            self.keys.remove(&key);
        }
        Some(waiter)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::rc::Rc;

    use super::*;

    const LIMITS: HoldLimits = HoldLimits {
        requests_per_key: 40,
        bytes_per_key: 1_000,
        time: Duration::from_secs(10),
        requests: 50,
        bytes: 1_500,
        release_first: 2,
        release_every: Duration::from_millis(5),
    };

    /// Runs until everything that is ready has run.
    async fn settle() {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_is_let_go_oldest_first_and_in_growing_batches() {
        let local = tokio::task::LocalSet::new();
        local
            .run_until(async {
                let hold = Rc::new(Hold::new(LIMITS));
                let (open, order) = (Rc::new(Cell::new(false)), Rc::new(RefCell::new(Vec::new())));
                let (runner, is_open) = (Rc::clone(&hold), Rc::clone(&open));
                tokio::task::spawn_local(async move { runner.run(|_| is_open.get()).await });
                for n in 0..20 {
                    let (hold, order) = (Rc::clone(&hold), Rc::clone(&order));
                    let ticket = hold.ticket();
                    tokio::task::spawn_local(async move {
                        hold.wait(7, ticket, 10).await.unwrap();
                        order.borrow_mut().push(n);
                    });
                }
                settle().await;
                assert_eq!((hold.waiting(), order.borrow().len()), (20, 0));
                open.set(true);
                hold.poke();
                settle().await;
                assert_eq!(order.borrow().len(), 2);
                assert!(hold.has_queue(7), "a newcomer goes behind those that wait");
                tokio::time::sleep(LIMITS.release_every).await;
                settle().await;
                assert_eq!(order.borrow().len(), 6);
                open.set(false);
                tokio::time::sleep(LIMITS.release_every).await;
                settle().await;
                assert_eq!(order.borrow().len(), 6, "closed again in the middle");
                open.set(true);
                hold.poke();
                tokio::time::sleep(LIMITS.release_every * 10).await;
                settle().await;
                assert_eq!(*order.borrow(), (0..20).collect::<Vec<_>>());
                assert_eq!((hold.waiting(), hold.lock().bytes), (0, 0));
            })
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn many_keys_that_open_at_once_share_one_ramp_and_the_oldest_go_first() {
        let hold = Hold::new(LIMITS);
        let mut waits = Vec::new();
        for n in 0..10 {
            let mut wait = Box::pin(hold.wait(n % 5, hold.ticket(), 1));
            assert_eq!(futures::FutureExt::now_or_never(&mut wait), None);
            waits.push(wait);
        }
        let mut gone = 0;
        for (batch, more) in [(2, true), (4, true), (4, false)] {
            assert_eq!(hold.release(&|_| true), more);
            for wait in &mut waits[gone..gone + batch] {
                assert_eq!(futures::FutureExt::now_or_never(wait), Some(Ok(())));
            }
            gone += batch;
            assert_eq!(hold.waiting(), 10 - gone);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn every_limit_refuses_by_its_name_and_the_gone_leave() {
        let hold = Hold::new(LIMITS);
        let ticket = hold.ticket();
        assert_eq!(hold.wait(1, ticket, 1_001).await, Err(HoldRefused::KeyFull));
        let begun = Instant::now();
        assert_eq!(hold.wait(1, ticket, 0).await, Err(HoldRefused::TooLong));
        assert_eq!(begun.elapsed(), LIMITS.time);
        let mut waits = Vec::new();
        let mut enter = |key, bytes| {
            let mut wait = Box::pin(hold.wait(key, hold.ticket(), bytes));
            let polled = futures::FutureExt::now_or_never(&mut wait);
            waits.push(wait);
            polled
        };
        assert_eq!(enter(1, 900), None);
        assert_eq!(enter(2, 601), Some(Err(HoldRefused::Full)));
        for _ in 0..39 {
            assert_eq!(enter(1, 0), None);
        }
        assert_eq!(enter(1, 0), Some(Err(HoldRefused::KeyFull)));
        for _ in 0..10 {
            assert_eq!(enter(2, 0), None);
        }
        assert_eq!(enter(3, 0), Some(Err(HoldRefused::Full)));
        assert_eq!(hold.queues(), [(1, 40), (2, 10)]);
        waits.clear();
        assert_eq!((hold.waiting(), hold.queues()), (0, vec![]));
        assert_eq!(hold.lock().bytes, 0);
        let mut last = Box::pin(hold.wait(1, hold.ticket(), 1));
        assert_eq!(futures::FutureExt::now_or_never(&mut last), None);
        hold.end();
        assert_eq!(last.await, Err(HoldRefused::Ending));
        assert_eq!(
            hold.wait(1, hold.ticket(), 1).await,
            Err(HoldRefused::Ending)
        );
    }
}
