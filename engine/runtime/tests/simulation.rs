//! The same calls on the simulator's network and virtual time.

use std::net::SocketAddr;
use std::time::Duration;

use atoll_runtime::{Runtime, SimulatedOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

const PORT: u16 = 7800;

async fn echo() -> Result<(), Box<dyn std::error::Error>> {
    let runtime = Runtime::simulated(SimulatedOptions::default());
    let listener = runtime
        .listen(SocketAddr::from(([127, 1, 16, 1], PORT)))
        .await?;
    loop {
        let (mut stream, _) = listener.accept().await?;
        runtime.tasks().spawn("echo", async move {
            let mut bytes = [0; 5];
            while stream.read_exact(&mut bytes).await.is_ok() {
                stream.write_all(&bytes).await.expect("the client listens");
            }
        });
    }
}

/// One run: when each answer came, in virtual time.
fn history(seed: u64) -> Vec<(u64, u128)> {
    let (tell, told) = std::sync::mpsc::channel();
    let mut sim = turmoil::Builder::new()
        .rng_seed(seed)
        .simulation_duration(Duration::from_secs(3600))
        .min_message_latency(Duration::from_millis(5))
        .max_message_latency(Duration::from_millis(50))
        .build();
    sim.host("mesh", echo);
    sim.client("gateway", async move {
        let runtime = Runtime::simulated(SimulatedOptions::default());
        let mesh = SocketAddr::new(turmoil::lookup("mesh"), PORT);
        let mut stream = runtime.connect(mesh).await?;
        let begun = Instant::now();
        for _ in 0..5 {
            stream.write_all(b"hello").await?;
            let mut answer = [0; 5];
            stream.read_exact(&mut answer).await?;
            assert_eq!(&answer, b"hello");
            tell.send((runtime.wall_clock().0, begun.elapsed().as_micros()))?;
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        // A partition is silent here too, and heals.
        turmoil::hold("gateway", "mesh");
        stream.write_all(b"again").await?;
        let mut answer = [0; 5];
        let held = tokio::time::timeout(Duration::from_secs(1), stream.read(&mut answer)).await;
        assert!(held.is_err(), "nothing comes while messages are held");
        turmoil::release("gateway", "mesh");
        stream.read_exact(&mut answer).await?;
        assert_eq!(&answer, b"again");
        Ok(())
    });
    sim.run().expect("the simulation ends well");
    told.into_iter().collect()
}

#[test]
fn two_hosts_talk_in_virtual_time_and_the_same_seed_is_the_same_history() {
    let first = history(1);
    assert_eq!(first.len(), 5);
    let (_, last) = first[4];
    assert!(last >= 8_000_000, "seconds of theirs: {first:?}");
    assert_eq!(first, history(1));
    assert_ne!(first, history(2), "another seed is another history");
}
