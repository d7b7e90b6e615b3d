//! A world of three regions whose processes are sleeping shells: what the supervisor does, without
//! any service.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use atoll_hosts::{ProcessRef, Signal, below_directory};
use atoll_runtime::{RealOptions, Runtime};
use atoll_world::{Directory, Disks, Doing, LocalWorld, Options, Store, Ways, supervise};

const LIMIT: Duration = Duration::from_secs(20);

const TOPOLOGY: &str = include_str!("../../examples/topologies/three-cities.yaml");

/// A directory that other users may enter, whose processes are shells that say they are ready.
fn prepare(root: &Path) -> Directory {
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).expect("open");
    let atoll = root.join("atoll.sh");
    fs::write(
        &atoll,
        // Its child is there before it says that it is ready: both are counted.
        "#!/bin/sh\nsleep 1001 &\necho ready $1 somewhere\nexec sleep 1000\n",
    )
    .expect("a script");
    fs::set_permissions(&atoll, fs::Permissions::from_mode(0o755)).expect("executable");
    let directory = Directory::make(&root.join("w")).expect("a directory");
    fs::write(directory.topology(), TOPOLOGY).expect("a topology");
    let options = Options {
        app: format!("{} bank {{cell}}", atoll.display()),
        atoll,
        schema: None,
        canary: None,
        store: Store::Redb,
        outside_round_trip_ms: 10.0,
        automatic_window_seconds: None,
        disks: Disks::default(),
    };
    let text = serde_json::to_vec(&options).expect("JSON");
    fs::write(directory.run().join("options.json"), text).expect("options");
    directory
}

async fn until(what: &str, fact: impl Fn() -> bool) {
    let waited = tokio::time::timeout(LIMIT, async {
        while !fact() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "never seen: {what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_is_frozen_killed_and_started_again_and_nothing_is_left_at_the_end() {
    let temporary = tempfile::tempdir().expect("a directory");
    let directory = prepare(temporary.path());
    let runtime = Runtime::real(RealOptions::default());
    let (root, inner) = (directory.root().to_path_buf(), runtime.clone());
    let (ready, is_ready) = tokio::sync::oneshot::channel();
    let supervisor = runtime.tasks().spawn("supervisor", async move {
        supervise(&root, inner, |_| ready.send(()).expect("a test that waits")).await
    });
    let orders = tokio::time::timeout(LIMIT, is_ready).await;
    assert!(
        matches!(orders, Ok(Ok(()))),
        "the supervisor takes no orders"
    );
    let world = LocalWorld::open(directory.root()).expect("a world");
    world
        .start("hangzhou")
        .await
        .expect("all of a region is ready");
    let all = |state: Doing, name: &'static str| {
        let world = world.clone();
        move || {
            let status = world.status().expect("a status");
            let found: Vec<Doing> = status.meant_by(name).map(|p| p.state).collect();
            !found.is_empty() && found.iter().all(|s| *s == state)
        }
    };
    for name in ["hangzhou", "shanghai", "shenzhen", "control"] {
        until("a region is ready", all(Doing::Ready, name)).await;
    }

    // Each process of a region is a shell's child too.
    let frozen = world.pause("shanghai").await.expect("a pause");
    assert_eq!(frozen.signalled, 2 * frozen.processes.len());
    until("all of it is frozen", all(Doing::Paused, "shanghai")).await;
    assert!(all(Doing::Ready, "hangzhou")());
    let killed = world.kill("shanghai").await.expect("a kill");
    assert_eq!(killed.signalled, frozen.signalled);
    until("all of it is down", all(Doing::Down, "shanghai")).await;
    world.start("shanghai").await.expect("it starts again");
    until("all of it is ready", all(Doing::Ready, "shanghai")).await;

    // A process that ends by itself comes back by itself.
    let control = |world: &LocalWorld| -> Option<ProcessRef> {
        world
            .status()
            .expect("a status")
            .meant_by("control")
            .next()
            .and_then(|p| p.process)
    };
    let before = control(&world).expect("it runs");
    before.signal(Signal::SIGKILL).expect("a signal");
    until("another control runs", || {
        control(&world).is_some_and(|now| now != before)
    })
    .await;

    world
        .cut("hangzhou", "shanghai", Ways::OneWay)
        .expect("a cut");
    world.kill("nowhere").await.expect_err("no such place");

    runtime.shutdown().request();
    supervisor.await.expect("no panic").expect("no error");
    assert_eq!(
        below_directory(&directory.data()).expect("/proc"),
        Vec::new()
    );
    world.status().expect("its last words are kept");
}
