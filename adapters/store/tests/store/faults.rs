//! What etcd's backend keeps when nodes die, freeze or fall silent in the middle of transactions.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use atoll_store::{Etcd, Expect, Revision, Store, StoreError, Txn};
use futures::StreamExt;
use tokio::time::{Instant, sleep, timeout};

use crate::cluster::Cluster;

const LIMIT: Duration = Duration::from_secs(30);

/// What one writer knows of its transactions.
#[derive(Debug, Default)]
struct Book {
    acknowledged: Vec<(u32, Revision)>,
    unknown: Vec<u32>,
    /// A key that nobody else makes was there already: a transaction was sent twice.
    doubled: Vec<u32>,
}

/// Makes one key after the other, each of them once, until told to stop.
async fn write(store: Etcd, writer: usize, done: Arc<AtomicUsize>, stop: Arc<AtomicBool>) -> Book {
    let mut book = Book::default();
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        let key = format!("/w{writer}/{number:06}");
        let txn = Txn::new()
            .expect(&key, Expect::Absent)
            .put(&key, "x")
            .put(format!("/last/{writer}"), number.to_string());
        match store.txn(txn).await {
            Ok(revision) => {
                book.acknowledged.push((number, revision));
                done.fetch_add(1, Ordering::Relaxed);
            }
            Err(StoreError::OutcomeUnknown { .. }) => book.unknown.push(number),
            Err(StoreError::Conflict { .. }) => book.doubled.push(number),
            Err(StoreError::Unavailable { .. }) => {}
            Err(error) => unreachable!("{error}"),
        }
        number += 1;
    }
    book
}

/// Waits until `more` further transactions are acknowledged.
async fn progress(done: &AtomicUsize, more: usize, what: &str) {
    let (from, until) = (done.load(Ordering::Relaxed), Instant::now() + LIMIT);
    while done.load(Ordering::Relaxed) < from + more {
        assert!(Instant::now() < until, "no progress {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_and_nothing_is_done_twice_whatever_one_node_does() {
    let mut cluster = Cluster::start().await;
    let (done, stop) = (
        Arc::new(AtomicUsize::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let reader = cluster.client(1);
    let mut watch = reader.watch("/w", Revision(1)).await.unwrap();
    let seen = spawn(async move {
        let mut seen = BTreeMap::new();
        let mut last = Revision(0);
        while let Ok(Some(changes)) = timeout(Duration::from_secs(5), watch.next()).await {
            let changes = changes.unwrap();
            assert!(changes.revision > last, "in order");
            last = changes.revision;
            for change in changes.changes {
                assert!(seen.insert(change.key, last).is_none(), "once");
            }
        }
        seen
    });
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let store = cluster.client(writer % 3);
            spawn(write(store, writer, done.clone(), stop.clone()))
        })
        .collect();
    progress(&done, 50, "before any fault").await;

    let leader = cluster.leader().await;
    cluster.kill(leader);
    progress(&done, 50, "after the leader was killed").await;
    cluster.run(leader);

    let leader = cluster.leader().await;
    cluster.freeze(leader);
    progress(&done, 50, "while the leader is frozen").await;
    cluster.thaw(leader);
    progress(&done, 50, "after the leader was thawed").await;

    let other = (cluster.leader().await + 1) % 3;
    cluster.freeze(other);
    progress(&done, 50, "while another node is frozen").await;
    cluster.thaw(other);

    cluster.links(&[other]);
    progress(&done, 50, "while a node's answers are lost").await;
    cluster.links(&[]);
    progress(&done, 50, "at the end").await;

    stop.store(true, Ordering::Relaxed);
    let books = futures::future::join_all(writers).await;
    let seen = seen.await.unwrap();
    let mut unknown = 0;
    for (writer, book) in books.into_iter().enumerate() {
        let book = book.unwrap();
        assert_eq!(book.doubled, Vec::<u32>::new(), "writer {writer}");
        let found = reader.list(&format!("/w{writer}/")).await.unwrap();
        let mut there: BTreeMap<_, _> = found
            .entries
            .into_iter()
            .map(|(key, found)| (key, found.revision))
            .collect();
        for (number, revision) in book.acknowledged {
            let key = format!("/w{writer}/{number:06}");
            assert_eq!(there.remove(&key), Some(revision), "{key}");
            assert_eq!(seen.get(&key), Some(&revision), "watched: {key}");
        }
        for number in &book.unknown {
            there.remove(&format!("/w{writer}/{number:06}"));
        }
        assert!(there.is_empty(), "never reported, and there: {there:?}");
        unknown += book.unknown.len();
    }
    assert!(
        unknown > 0,
        "no transaction was ever in doubt: the faults did not bite"
    );
}

#[tokio::test]
async fn a_lost_answer_is_an_unknown_outcome_and_what_was_done_is_done_once() {
    let cluster = Cluster::start().await;
    let store = cluster.client(0);
    let first = store.txn(Txn::new().put("/k", "a")).await.unwrap();
    cluster.links(&[0]);
    // The links file is looked at every now and then; what counts is the first lost answer.
    let (mut at, until) = (first, Instant::now() + LIMIT);
    let lost = loop {
        assert!(Instant::now() < until, "no answer was ever lost");
        let swap = Txn::new().expect("/k", Expect::Revision(at)).put("/k", "b");
        match store.txn(swap).await {
            Ok(revision) => at = revision,
            Err(error) => break error,
        }
    };
    assert!(matches!(lost, StoreError::OutcomeUnknown { .. }), "{lost}");
    // The next node answers at once, and shows that it was done, once.
    let begun = Instant::now();
    let found = store.get("/k").await.unwrap().unwrap();
    assert!(begun.elapsed() < Duration::from_millis(500));
    assert_eq!(found.revision, Revision(at.0 + 1));
    let again = Txn::new().expect("/k", Expect::Revision(at)).put("/k", "b");
    assert_eq!(
        store.txn(again).await,
        Err(StoreError::Conflict { key: "/k".into() })
    );
}

#[tokio::test]
async fn without_a_majority_nothing_is_read_or_written_and_with_one_it_goes_on() {
    let mut cluster = Cluster::start().await;
    let store = cluster.client(0);
    let first = store.txn(Txn::new().put("/k", "a")).await.unwrap();
    cluster.kill(1);
    cluster.kill(2);
    let until = Instant::now() + LIMIT;
    // The remaining node may take a moment to know that it is alone: what it is sent until then is
    // in doubt, and cannot be acknowledged.
    loop {
        let error = store.txn(Txn::new().put("/doubt", "b")).await.unwrap_err();
        match error {
            StoreError::Unavailable { .. } => break,
            StoreError::OutcomeUnknown { .. } => {}
            error => panic!("{error}"),
        }
        assert!(Instant::now() < until);
    }
    let read = store.get("/k").await.unwrap_err();
    assert!(matches!(read, StoreError::Unavailable { .. }), "{read}");
    cluster.run(1);
    cluster.serves().await;
    let swap = Txn::new()
        .expect("/k", Expect::Revision(first))
        .put("/k", "b");
    store.txn(swap).await.unwrap();
}

fn spawn<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> impl Future<Output = Option<T>> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let tasks = atoll_runtime::Tasks::default();
    let task = tasks.spawn("test", async move {
        drop(sender.send(work.await));
    });
    async move {
        let _tasks = (tasks, task);
        receiver.await.ok()
    }
}
