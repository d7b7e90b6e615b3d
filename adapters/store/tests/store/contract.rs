//! What every backend promises. One suite; a new backend is one more line at the end.

use std::sync::Arc;
use std::time::Duration;

use atoll_runtime::Tasks;
use atoll_store::{
    Change, Changes, Expect, HISTORY_REVISIONS_MAX, Memory, Redb, Revision, Store, StoreError,
    TXN_OPERATIONS_MAX, Txn, VALUE_BYTES_MAX, Watch,
};
use bytes::Bytes;
use futures::{FutureExt, StreamExt};

use crate::cluster::Cluster;

/// Long enough to be sure of a wait that must end, never waited out when all is well.
const LIMIT: Duration = Duration::from_secs(20);

/// A backend under test, and how to leave it and come back as after a crash.
enum Subject {
    Memory(Memory),
    Redb {
        dir: tempfile::TempDir,
        open: Option<Arc<Redb>>,
        tasks: Tasks,
    },
    Etcd {
        cluster: Option<Cluster>,
    },
}

impl Subject {
    fn memory() -> Self {
        Self::Memory(Memory::new())
    }

    fn redb() -> Self {
        Self::Redb {
            dir: tempfile::tempdir().unwrap(),
            open: None,
            tasks: Tasks::default(),
        }
    }

    fn etcd() -> Self {
        Self::Etcd { cluster: None }
    }

    /// The store; the one given before is gone.
    async fn open(&mut self) -> Arc<dyn Store> {
        match self {
            Self::Memory(memory) => Arc::new(memory.clone()),
            Self::Redb { dir, open, tasks } => {
                *open = None;
                let path = dir.path().join("store.redb");
                let store = Arc::new(Redb::open(&path, tasks).await.unwrap());
                *open = Some(store.clone());
                store
            }
            Self::Etcd { cluster } => {
                match cluster {
                    Some(cluster) => cluster.crash().await,
                    None => *cluster = Some(Cluster::start().await),
                }
                let cluster = cluster.as_ref().expect("it was started");
                Arc::new(cluster.client(0))
            }
        }
    }
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

async fn put(store: &Arc<dyn Store>, key: &str, value: &str) -> Revision {
    store.txn(Txn::new().put(key, bytes(value))).await.unwrap()
}

async fn value(store: &Arc<dyn Store>, key: &str) -> Option<Bytes> {
    store.get(key).await.unwrap().map(|found| found.value)
}

async fn next(watch: &mut Watch) -> Result<Changes, StoreError> {
    tokio::time::timeout(LIMIT, watch.next())
        .await
        .expect("a change comes")
        .expect("no end")
}

fn one(revision: Revision, key: &str, value: Option<&str>) -> Changes {
    let change = Change {
        key: key.into(),
        value: value.map(bytes),
    };
    Changes {
        revision,
        changes: vec![change],
    }
}

fn conflict(key: &str) -> Result<Revision, StoreError> {
    Err(StoreError::Conflict { key: key.into() })
}

async fn compare_and_swap_takes_only_the_revision_that_it_names(mut subject: Subject) {
    let store = subject.open().await;
    let swap = |at, text| {
        store.txn(
            Txn::new()
                .expect("/k", Expect::Revision(at))
                .put("/k", bytes(text)),
        )
    };
    let first = put(&store, "/k", "a").await;
    let second = swap(first, "b").await.unwrap();
    assert!(second > first);
    assert_eq!(swap(first, "c").await, conflict("/k"), "an old revision");
    assert_eq!(
        swap(Revision(second.0 + 1), "c").await,
        conflict("/k"),
        "a later revision"
    );
    let found = store.get("/k").await.unwrap().unwrap();
    assert_eq!((found.revision, found.value), (second, bytes("b")));
    // A key that was deleted and made again is not the one that was read.
    store.txn(Txn::new().delete("/k")).await.unwrap();
    assert_eq!(swap(second, "c").await, conflict("/k"), "deleted");
    put(&store, "/k", "b").await;
    assert_eq!(swap(second, "c").await, conflict("/k"), "made again");
}

async fn absent_and_present_are_demands_too(mut subject: Subject) {
    let store = subject.open().await;
    let make = || {
        store.txn(
            Txn::new()
                .expect("/k", Expect::Absent)
                .put("/k", bytes("mine")),
        )
    };
    let change = || {
        store.txn(
            Txn::new()
                .expect("/k", Expect::Present)
                .put("/k", bytes("yours")),
        )
    };
    assert_eq!(change().await, conflict("/k"));
    make().await.unwrap();
    assert_eq!(make().await, conflict("/k"));
    change().await.unwrap();
    assert_eq!(value(&store, "/k").await, Some(bytes("yours")));
}

async fn a_transaction_is_whole_or_not_at_all(mut subject: Subject) {
    let store = subject.open().await;
    let old = put(&store, "/old", "x").await;
    let refused = Txn::new()
        .expect("/old", Expect::Present)
        .expect("/new", Expect::Present)
        .put("/a", bytes("1"))
        .delete("/old");
    assert_eq!(store.txn(refused).await, conflict("/new"));
    assert_eq!(value(&store, "/a").await, None);
    assert_eq!(value(&store, "/old").await, Some(bytes("x")));

    let accepted = Txn::new()
        .expect("/old", Expect::Revision(old))
        .put("/b", bytes("2"))
        .put("/a", bytes("1"))
        .delete("/old")
        .delete("/never-there");
    let revision = store.txn(accepted).await.unwrap();
    let listed = store.list("/").await.unwrap();
    assert_eq!(listed.revision, revision);
    let keys: Vec<_> = listed
        .entries
        .iter()
        .map(|(k, v)| (k.as_str(), v.revision))
        .collect();
    assert_eq!(
        keys,
        [("/a", revision), ("/b", revision)],
        "one revision for all of it"
    );
    // And one event, whole.
    let mut watch = store.watch("/", old).await.unwrap();
    let seen: Vec<_> = next(&mut watch).await.unwrap().changes;
    let seen: Vec<_> = seen
        .iter()
        .map(|c| (c.key.as_str(), c.value.is_some()))
        .collect();
    assert_eq!(seen, [("/a", true), ("/b", true), ("/old", false)]);
}

async fn what_changes_nothing_has_no_revision_of_its_own(mut subject: Subject) {
    let store = subject.open().await;
    let first = put(&store, "/k", "a").await;
    let check = Txn::new().expect("/k", Expect::Present);
    assert_eq!(store.txn(check).await, Ok(first));
    assert_eq!(store.txn(Txn::new().delete("/nothing")).await, Ok(first));
    assert_eq!(store.list("/").await.unwrap().revision, first);
}

async fn limits_are_kept_by_the_store(mut subject: Subject) {
    let store = subject.open().await;
    let many = (0..=TXN_OPERATIONS_MAX).fold(Txn::new(), |txn, n| txn.put(format!("/{n}"), ""));
    let large = Txn::new().put("/k", vec![0; VALUE_BYTES_MAX + 1]);
    let twice = Txn::new().put("/k", "a").delete("/k");
    let nameless = Txn::new().put("", "a");
    for txn in [many, large, twice, nameless] {
        assert!(matches!(
            store.txn(txn).await,
            Err(StoreError::Invalid { .. })
        ));
    }
    assert_eq!(store.list("").await.unwrap().entries, []);
    store
        .txn(Txn::new().put("/k", vec![0; VALUE_BYTES_MAX]))
        .await
        .unwrap();
}

async fn a_list_has_the_prefix_only_and_is_in_order(mut subject: Subject) {
    let store = subject.open().await;
    for key in [
        "/group/b",
        "/groups",
        "/group/a",
        "/resource/Cell/x",
        "/group/a/b",
        "/grou",
    ] {
        put(&store, key, key).await;
    }
    let listed = store.list("/group/").await.unwrap();
    let keys: Vec<_> = listed.entries.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(keys, ["/group/a", "/group/a/b", "/group/b"]);
}

async fn of_concurrent_writers_exactly_one_wins(mut subject: Subject) {
    let store = subject.open().await;
    let mut revision = put(&store, "/k", "start").await;
    for round in 0..5 {
        let race = (0..10).map(|n| {
            let txn = Txn::new()
                .expect("/k", Expect::Revision(revision))
                .put("/k", bytes(&format!("{round}.{n}")));
            let store = store.clone();
            async move { store.txn(txn).await.map(|revision| (n, revision)) }
        });
        let results = futures::future::join_all(race).await;
        let winners: Vec<_> = results
            .iter()
            .filter_map(|result| result.as_ref().ok())
            .collect();
        assert_eq!(winners.len(), 1, "{results:?}");
        let (n, won) = winners[0];
        assert_eq!(
            results
                .iter()
                .filter(|r| **r == Err(StoreError::Conflict { key: "/k".into() }))
                .count(),
            9
        );
        assert_eq!(
            value(&store, "/k").await,
            Some(bytes(&format!("{round}.{n}")))
        );
        revision = *won;
    }
}

async fn what_was_acknowledged_is_there_after_a_crash_and_revisions_go_on(mut subject: Subject) {
    let store = subject.open().await;
    let first = put(&store, "/a", "1").await;
    let second = put(&store, "/b", "2").await;
    let third = store.txn(Txn::new().delete("/a")).await.unwrap();
    drop(store);

    let store = subject.open().await;
    assert_eq!(value(&store, "/a").await, None);
    let found = store.get("/b").await.unwrap().unwrap();
    assert_eq!((found.revision, found.value), (second, bytes("2")));
    assert_eq!(store.list("/").await.unwrap().revision, third);
    let fourth = put(&store, "/a", "again").await;
    assert!(fourth > third, "{fourth} would have been given twice");
    // A watch from before the crash goes on where it was.
    let mut watch = store.watch("/", first).await.unwrap();
    assert_eq!(
        next(&mut watch).await.unwrap(),
        one(second, "/b", Some("2"))
    );
    assert_eq!(next(&mut watch).await.unwrap(), one(third, "/a", None));
    assert_eq!(
        next(&mut watch).await.unwrap(),
        one(fourth, "/a", Some("again"))
    );
}

async fn a_watch_from_a_revision_misses_nothing(mut subject: Subject) {
    let store = subject.open().await;
    put(&store, "/x/before", "0").await;
    let after = store.list("/x/").await.unwrap().revision;
    // Some changes before the watch begins, some while it runs, and some of others.
    let mut expected = Vec::new();
    for n in 0..3 {
        let key = format!("/x/{n}");
        expected.push(one(put(&store, &key, "early").await, &key, Some("early")));
        put(&store, "/y", "not watched").await;
    }
    let mut watch = store.watch("/x/", after).await.unwrap();
    let writer = store.clone();
    let writes = async {
        let mut late = Vec::new();
        for n in 0..40 {
            let key = format!("/x/{}", n % 4);
            late.push(one(put(&writer, &key, "late").await, &key, Some("late")));
            tokio::task::yield_now().await;
        }
        late
    };
    let reads = async {
        let mut seen = Vec::new();
        while seen.len() < 43 {
            seen.push(next(&mut watch).await.unwrap());
        }
        seen
    };
    let (late, seen) = tokio::join!(writes, reads);
    expected.extend(late);
    assert_eq!(seen, expected);
    assert!(watch.next().now_or_never().is_none(), "and nothing more");
    // Another one takes up in the middle.
    let (at, rest) = (seen[20].revision, &seen[21..]);
    let mut watch = store.watch("/x/", at).await.unwrap();
    for change in rest {
        assert_eq!(next(&mut watch).await.unwrap(), *change);
    }
}

async fn a_watch_of_changes_that_are_gone_says_so(mut subject: Subject) {
    let store = subject.open().await;
    let first = put(&store, "/k", "1").await;
    let second = put(&store, "/k", "2").await;
    let mut behind = store.watch("/", first).await.unwrap();
    let third = put(&store, "/k", "3").await;
    store.compact(second).await.unwrap();
    store
        .compact(first)
        .await
        .expect("compacting what is gone is no error");
    let gone = StoreError::Compacted { compacted: second };
    assert_eq!(store.watch("/", first).await.err(), Some(gone.clone()));
    // One that had begun may have been sent them before; else it ends.
    match next(&mut behind).await {
        Ok(changes) => {
            assert_eq!(changes, one(second, "/k", Some("2")));
            assert_eq!(next(&mut behind).await, Ok(one(third, "/k", Some("3"))));
        }
        Err(error) => {
            assert_eq!(error, gone, "also one that had begun");
            assert!(behind.next().await.is_none(), "and it ends");
        }
    }
    let mut watch = store.watch("/", second).await.unwrap();
    assert_eq!(next(&mut watch).await.unwrap(), one(third, "/k", Some("3")));
    assert_eq!(value(&store, "/k").await, Some(bytes("3")), "values stay");
    let ahead = StoreError::Ahead {
        asked: Revision(third.0 + 1),
        at: third,
    };
    assert_eq!(
        store.watch("/", Revision(third.0 + 1)).await.err(),
        Some(ahead.clone())
    );
    assert_eq!(store.compact(Revision(third.0 + 1)).await, Err(ahead));
    drop((store, watch, behind));
    let store = subject.open().await;
    assert_eq!(
        store.watch("/", first).await.err(),
        Some(gone),
        "after a restart too"
    );
    drop(store.watch("/", second).await.unwrap());
}

macro_rules! contract {
    ($backend:ident: $($test:ident)*) => {
        mod $backend {
            $(#[tokio::test]
            async fn $test() {
                super::$test(super::Subject::$backend()).await;
            })*
        }
    };
}

macro_rules! on {
    ($($backend:ident)*) => {
        $(contract! { $backend:
            compare_and_swap_takes_only_the_revision_that_it_names
            absent_and_present_are_demands_too
            a_transaction_is_whole_or_not_at_all
            what_changes_nothing_has_no_revision_of_its_own
            limits_are_kept_by_the_store
            a_list_has_the_prefix_only_and_is_in_order
            of_concurrent_writers_exactly_one_wins
            what_was_acknowledged_is_there_after_a_crash_and_revisions_go_on
            a_watch_from_a_revision_misses_nothing
            a_watch_of_changes_that_are_gone_says_so
        })*
    };
}

on! { memory redb etcd }

#[tokio::test]
async fn history_does_not_grow_without_end() {
    let store: Arc<dyn Store> = Arc::new(Memory::new());
    let first = put(&store, "/k", "0").await;
    for n in 0..HISTORY_REVISIONS_MAX {
        put(&store, "/k", &n.to_string()).await;
    }
    let gone = store.watch("/", first).await.err();
    assert!(
        matches!(gone, Some(StoreError::Compacted { .. })),
        "{gone:?}"
    );
}

#[tokio::test]
async fn a_watch_ends_when_its_store_is_closed() {
    let mut subject = Subject::redb();
    let store = subject.open().await;
    let mut watch = store.watch("/", Revision(0)).await.unwrap();
    drop((store, subject));
    assert!(matches!(
        next(&mut watch).await,
        Err(StoreError::Unavailable { .. })
    ));
}

#[tokio::test]
async fn a_fault_of_the_memory_store_leaves_what_its_name_says() {
    use atoll_store::{Fault, Operation};
    let memory = Memory::new();
    let store: Arc<dyn Store> = Arc::new(memory.clone());
    for (fault, applied) in [
        (Fault::UnknownApplied, true),
        (Fault::UnknownNotApplied, false),
        (Fault::Unavailable, false),
    ] {
        let key = format!("/{fault:?}");
        memory.inject(move |operation| match operation {
            Operation::Txn(_) => fault,
            _ => Fault::None,
        });
        let error = store.txn(Txn::new().put(&key, "v")).await.unwrap_err();
        let unknown = matches!(error, StoreError::OutcomeUnknown { .. });
        assert_eq!(unknown, fault != Fault::Unavailable);
        assert_eq!(value(&store, &key).await.is_some(), applied);
    }
    memory.heal();
    put(&store, "/k", "v").await;
}
