//! How a role begins and ends. One test, for signals go to the whole process.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use atoll_runtime::{RealOptions, Runtime, main, main_with};

/// `ExitCode` has no comparison.
fn code(exit: std::process::ExitCode) -> String {
    format!("{exit:?}")
}

#[test]
fn a_role_drains_on_sigterm_and_its_end_is_the_exit_code() {
    let success = code(std::process::ExitCode::SUCCESS);
    let (drained, task_ended) = (
        AtomicBool::new(false),
        std::sync::Arc::new(AtomicBool::new(false)),
    );
    let ended = task_ended.clone();
    let exit = main("test", async |runtime: Runtime| {
        let shutdown = runtime.shutdown();
        let asked = runtime.shutdown();
        runtime.tasks().spawn("background", async move {
            asked.requested().await;
            ended.store(true, Ordering::SeqCst);
        });
        let kill = runtime.tasks().spawn_blocking("kill", || {
            Command::new("kill")
                .args(["-TERM", &std::process::id().to_string()])
                .status()
        });
        assert!(kill.await.unwrap().unwrap().success());
        tokio::time::timeout(Duration::from_secs(20), shutdown.requested())
            .await
            .unwrap();
        drained.store(true, Ordering::SeqCst);
        Ok::<(), std::io::Error>(())
    });
    assert_eq!(code(exit), success);
    assert!(drained.into_inner() && task_ended.load(Ordering::SeqCst));

    let exit = main("test", async |_: Runtime| Err::<(), _>("no configuration"));
    assert_ne!(code(exit), success);

    let options = RealOptions {
        clock_offset_ms: 3_600_000,
        ..RealOptions::default()
    };
    let exit = main_with("test", options, async |runtime: Runtime| {
        let ahead = runtime.wall_clock().0 - atoll_runtime::machine_clock().0;
        assert!((3_599_000..=3_601_000).contains(&ahead), "{ahead} ms ahead");
        Ok::<(), std::io::Error>(())
    });
    assert_eq!(code(exit), success);
}
