//! Real processes of this machine: freeze, thaw, kill, and what a freeze must not miss.

use std::path::{Path, PathBuf};
use std::time::Duration;

use atoll_hosts::{
    Ending, NotReady, ProcessRef, Running, Spec, State, Tree, below_directory, freeze, kill,
    ready_line, spawn, thaw, wait_gone,
};

const LIMIT: Duration = Duration::from_secs(10);

fn shell(directory: &Path, script: &str) -> (Running, PathBuf, PathBuf) {
    let (output, log) = (directory.join("it.out"), directory.join("it.log"));
    let spec = Spec {
        program: "/bin/sh".into(),
        args: vec!["-c".into(), script.into()],
        env: Vec::new(),
        directory: directory.to_path_buf(),
        output: output.clone(),
        log: log.clone(),
    };
    (spawn(&spec).expect("a shell starts"), output, log)
}

async fn until(what: &str, fact: impl Fn() -> bool) {
    let waited = tokio::time::timeout(LIMIT, async {
        while !fact() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "never seen: {what}");
}

fn below(root: ProcessRef) -> Vec<ProcessRef> {
    Tree::now().expect("/proc").below(&[root])
}

#[tokio::test]
async fn a_freeze_reaches_grandchildren_in_sessions_of_their_own_and_a_thaw_wakes_them() {
    let directory = tempfile::tempdir().expect("a directory");
    let script = "setsid sh -c 'sleep 1000 & sleep 1001' & echo 'ready shell here'; wait";
    let (mut shell, output, log) = shell(directory.path(), script);
    let root = shell.process();
    ready_line(root, &output, &log, LIMIT)
        .await
        .expect("it says that it is ready");
    until("shell, its child and two sleeps", || below(root).len() == 4).await;

    let frozen = freeze(&[root]).expect("a freeze");
    assert_eq!(frozen.len(), 4);
    until("all are stopped", || {
        frozen.iter().all(|p| p.state() == State::Stopped)
    })
    .await;
    assert_eq!(thaw(&[root]).expect("a thaw").len(), 4);
    until("all run", || {
        frozen.iter().all(|p| p.state() == State::Running)
    })
    .await;

    // The tempdir's real path, because the kernel tells that one.
    let real = directory.path().canonicalize().expect("a path");
    assert_eq!(below_directory(&real).expect("/proc").len(), 4);
    let hit = kill(&[root]).expect("a kill");
    assert_eq!(hit.len(), 4);
    assert_eq!(shell.wait().await.expect("its end"), Ending::Signal(9));
    wait_gone(&hit, LIMIT).await.expect("nobody is left");
    assert_eq!(below_directory(&real).expect("/proc"), Vec::new());
}

#[tokio::test]
async fn a_process_that_ends_before_it_is_ready_is_reported_with_its_last_words() {
    let directory = tempfile::tempdir().expect("a directory");
    let (mut shell, output, log) = shell(directory.path(), "echo 'no such port' >&2; exit 3");
    let refused = ready_line(shell.process(), &output, &log, LIMIT).await;
    match refused {
        Err(NotReady::Ended { last_words, .. }) => assert_eq!(last_words, "no such port"),
        other => panic!("{other:?}"),
    }
    assert_eq!(shell.wait().await.expect("its end"), Ending::Code(3));
}

#[tokio::test]
async fn a_wait_for_the_end_says_who_is_left() {
    let directory = tempfile::tempdir().expect("a directory");
    let (mut shell, ..) = shell(directory.path(), "exec sleep 1000");
    let process = shell.process();
    let left = wait_gone(&[process], Duration::from_millis(30))
        .await
        .expect_err("it lives");
    assert_eq!(left.left, vec![process]);
    kill(&[process]).expect("a kill");
    shell.wait().await.expect("its end");
}
