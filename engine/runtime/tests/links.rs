//! What a connection feels of the links, on real sockets. Delays are asserted from below only.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use atoll_runtime::{LinkRule, LinksFile, Listener, RealOptions, Runtime, Stream};
use futures::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

/// Long enough to be sure of a wait that must end, never waited out when all is well.
const LIMIT: Duration = Duration::from_secs(20);
/// How long nothing must happen.
const SILENCE: Duration = Duration::from_millis(150);

/// `hz` and `sh` of world 250, one process each.
struct Pair {
    hz: Runtime,
    sh: Runtime,
    at: Listener,
}

#[derive(Default, Clone, Copy)]
struct Way {
    delay_ms: f64,
    jitter_ms: f64,
    cut: bool,
}

const OPEN: Way = Way {
    delay_ms: 0.0,
    jitter_ms: 0.0,
    cut: false,
};
const CUT: Way = Way {
    delay_ms: 0.0,
    jitter_ms: 0.0,
    cut: true,
};

impl Pair {
    async fn new(hz_to_sh: Way, sh_to_hz: Way) -> Self {
        let runtime = |source: &str| {
            let source: IpAddr = source.parse().unwrap();
            Runtime::real(RealOptions {
                source: Some(source),
                ..RealOptions::default()
            })
        };
        let (hz, sh) = (runtime("127.250.16.1"), runtime("127.250.32.1"));
        let at = sh
            .listen(SocketAddr::new(sh.source().unwrap(), 0))
            .await
            .unwrap();
        let pair = Self { hz, sh, at };
        pair.set(hz_to_sh, sh_to_hz);
        pair
    }

    fn set(&self, hz_to_sh: Way, sh_to_hz: Way) {
        let rule = |from: &str, to: &str, way: Way| LinkRule {
            from: from.into(),
            to: to.into(),
            delay_ms: way.delay_ms,
            jitter_ms: way.jitter_ms,
            cut: way.cut,
        };
        let file = LinksFile {
            regions: vec!["outside".into(), "hz".into(), "sh".into()],
            links: vec![rule("hz", "sh", hz_to_sh), rule("sh", "hz", sh_to_hz)],
        };
        self.hz.links().replace(&file).unwrap();
        self.sh.links().replace(&file).unwrap();
    }

    /// A connection: hz's end and sh's end.
    async fn connected(&self) -> (Stream, Stream) {
        let (hz, sh) = tokio::join!(self.hz.connect(self.at.local_addr()), self.at.accept());
        (hz.unwrap(), sh.unwrap().0)
    }
}

async fn read(stream: &mut Stream, bytes: usize) -> Vec<u8> {
    let mut got = vec![0; bytes];
    timeout(LIMIT, stream.read_exact(&mut got))
        .await
        .expect("bytes come")
        .unwrap();
    got
}

async fn nothing_comes(stream: &mut Stream) {
    let mut byte = [0];
    assert!(
        timeout(SILENCE, stream.read(&mut byte)).await.is_err(),
        "something came"
    );
}

#[tokio::test]
async fn bytes_come_after_their_delay_and_the_writer_never_waits() {
    let there = Way {
        delay_ms: 60.0,
        ..OPEN
    };
    let pair = Pair::new(there, OPEN).await;
    let begun = Instant::now();
    let (mut hz, mut sh) = pair.connected().await;
    assert!(
        begun.elapsed() >= Duration::from_millis(60),
        "a handshake is a round trip"
    );

    let sent = Instant::now();
    // All three are under way at once: the delay is a distance, not a rate.
    for part in [b"a", b"b", b"c"] {
        hz.write_all(part).await.unwrap();
    }
    assert_eq!(read(&mut sh, 3).await, b"abc");
    assert!(sent.elapsed() >= Duration::from_millis(60));
    sh.write_all(b"back").await.unwrap();
    assert_eq!(read(&mut hz, 4).await, b"back");

    let closed = Instant::now();
    drop(hz);
    assert_eq!(timeout(LIMIT, sh.read(&mut [0])).await.unwrap().unwrap(), 0);
    assert!(
        closed.elapsed() >= Duration::from_millis(60),
        "the end travels as far as the bytes"
    );
}

#[tokio::test]
async fn jitter_never_reorders_and_loses_nothing() {
    let pair = Pair::new(
        Way {
            delay_ms: 1.0,
            jitter_ms: 8.0,
            cut: false,
        },
        OPEN,
    )
    .await;
    let (mut hz, mut sh) = pair.connected().await;
    let sent: Vec<u8> = (0..200_000_u32).flat_map(u32::to_be_bytes).collect();
    let expected = sent.clone();
    let writer = pair.hz.tasks().spawn("writer", async move {
        for part in sent.chunks(7001) {
            hz.write_all(part).await?;
            tokio::task::yield_now().await;
        }
        hz.shutdown().await
    });
    let mut got = Vec::new();
    timeout(LIMIT, sh.read_to_end(&mut got))
        .await
        .unwrap()
        .unwrap();
    assert!(
        got == expected,
        "{} of {} bytes, or another order",
        got.len(),
        expected.len()
    );
    writer.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_cut_is_silent_and_heals_without_loss() {
    let pair = Pair::new(OPEN, OPEN).await;
    let (mut hz, mut sh) = pair.connected().await;
    hz.write_all(b"before ").await.unwrap();
    assert_eq!(read(&mut sh, 7).await, b"before ");
    pair.set(CUT, CUT);
    hz.write_all(b"during ").await.unwrap();
    nothing_comes(&mut sh).await;
    pair.set(OPEN, OPEN);
    hz.write_all(b"after").await.unwrap();
    assert_eq!(read(&mut sh, 12).await, b"during after");
}

#[tokio::test]
async fn a_reader_that_waits_in_a_cut_is_woken_by_the_healing() {
    let pair = Pair::new(CUT, OPEN).await;
    pair.set(OPEN, OPEN);
    let (mut hz, mut sh) = pair.connected().await;
    pair.set(CUT, OPEN);
    hz.write_all(b"held").await.unwrap();
    let mut reader = pair
        .sh
        .tasks()
        .spawn("reader", async move { read(&mut sh, 4).await });
    assert!(timeout(SILENCE, reader.join()).await.is_err());
    pair.set(OPEN, OPEN);
    assert_eq!(
        timeout(LIMIT, reader.join()).await.unwrap().unwrap(),
        b"held"
    );
}

#[tokio::test]
async fn a_one_way_cut_lets_the_other_way_through() {
    let pair = Pair::new(OPEN, OPEN).await;
    let (mut hz, mut sh) = pair.connected().await;
    pair.set(CUT, OPEN);
    sh.write_all(b"ping").await.unwrap();
    assert_eq!(read(&mut hz, 4).await, b"ping");
    hz.write_all(b"pong").await.unwrap();
    nothing_comes(&mut sh).await;
}

#[tokio::test]
async fn the_death_of_a_peer_does_not_cross_a_cut() {
    let pair = Pair::new(OPEN, OPEN).await;
    let (mut hz, sh) = pair.connected().await;
    pair.set(CUT, CUT);
    drop(sh);
    nothing_comes(&mut hz).await;
    for _ in 0..3 {
        hz.write_all(b"is anybody there?")
            .await
            .expect("a reset cannot come over a cut");
    }
    pair.set(OPEN, OPEN);
    let ended = timeout(LIMIT, hz.read(&mut [0]))
        .await
        .expect("after the healing the end shows");
    assert!(matches!(ended, Ok(0)) || ended.is_err_and(|error| is_reset(&error)));
}

fn is_reset(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}

#[tokio::test]
async fn a_connect_over_a_cut_in_either_direction_hangs_until_it_is_healed() {
    for (there, back) in [(CUT, OPEN), (OPEN, CUT)] {
        let pair = Pair::new(there, back).await;
        let (hz, to) = (pair.hz.clone(), pair.at.local_addr());
        let mut connecting = pair
            .hz
            .tasks()
            .spawn("connects", async move { hz.connect(to).await.map(drop) });
        assert!(
            timeout(SILENCE, connecting.join()).await.is_err(),
            "no refusal, no success"
        );
        pair.set(OPEN, OPEN);
        timeout(LIMIT, connecting.join())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }
}

#[tokio::test]
async fn plain_connections_leave_links_to_their_user() {
    let pair = Pair::new(CUT, CUT).await;
    let at = pair
        .sh
        .listen_plain(SocketAddr::new(pair.sh.source().unwrap(), 0))
        .await
        .unwrap();
    let mut hz = pair.hz.connect_plain(at.local_addr()).await.unwrap();
    let (mut sh, from) = at.accept().await.unwrap();
    assert_eq!(
        from.ip(),
        pair.hz.source().unwrap(),
        "who connects is seen from the address"
    );
    hz.write_all(b"through").await.unwrap();
    assert_eq!(read(&mut sh, 7).await, b"through");
}

#[tokio::test]
async fn listeners_may_share_an_address_and_give_their_connections_as_a_stream() {
    let runtime = Runtime::real(RealOptions::default());
    let one = runtime
        .listen_shared("127.0.0.1:0".parse().unwrap())
        .await
        .unwrap();
    let at = one.local_addr();
    let two = runtime.listen_shared(at).await.unwrap();
    let mut incoming = Box::pin(futures::stream::select(
        Box::pin(one.incoming()),
        Box::pin(two.incoming()),
    ));
    for _ in 0..8 {
        let client = runtime.connect(at).await.unwrap();
        let server = timeout(LIMIT, incoming.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        assert_eq!(server.peer_addr(), client.local_addr());
    }
}
