//! A receiver and a server that speak as PostgreSQL's do, with both ends of a link between them.

use std::collections::BTreeMap;

use atoll_topology::{MemberId, Term};
use bytes::BufMut;
use tokio::io::{DuplexStream, duplex};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::super::relay::Running;
use super::*;

/// So small that frames come in several pieces; so large that one is on its way before it is heard.
const PIPE_BYTES: usize = 23;

fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![tag];
    frame.put_u32(u32::try_from(body.len() + 4).unwrap());
    frame.extend_from_slice(body);
    frame
}

/// An answer of one row with one column.
fn answer(value: &str) -> Vec<u8> {
    let mut out = BytesMut::new();
    backend::put_text_column(&mut out, "value");
    backend::put_text_row(&mut out, value);
    backend::put_command_complete(&mut out, "SELECT");
    backend::put_ready_for_query(&mut out, backend::Status::Idle);
    out.to_vec()
}

/// Who a server on this timeline is: the first two columns.
fn identity(timeline: &str) -> Vec<u8> {
    let mut row = vec![0, 2];
    for column in ["7301", timeline] {
        row.put_u32(u32::try_from(column.len()).unwrap());
        row.extend_from_slice(column.as_bytes());
    }
    [frame(b'D', &row), READY.to_vec()].concat()
}

const READY: &[u8] = b"Z\0\0\0\x05I";
const STARTUP: &[u8] = b"\0\0\0\x0c\0\x03\0\0rep\0";

/// One end of a conversation; everything it expects, it expects to the byte.
struct Party(DuplexStream);

impl Party {
    async fn says(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }

    async fn hears(&mut self, expected: &[u8]) {
        let mut heard = vec![0; expected.len()];
        self.0.read_exact(&mut heard).await.unwrap();
        assert_eq!(
            heard,
            expected,
            "{:?} instead of {:?}",
            String::from_utf8_lossy(&heard),
            String::from_utf8_lossy(expected)
        );
    }
}

/// A receiver and a server that has greeted nobody yet, and the link between them.
async fn connected() -> (Party, Party, JoinSet<()>) {
    let (receiver, down) = duplex(PIPE_BYTES);
    let (below, above) = duplex(PIPE_BYTES);
    let (up, server) = duplex(PIPE_BYTES);
    let mut link = JoinSet::new();
    link.spawn(async move {
        relay_down(
            down,
            below,
            &CancellationToken::new(),
            Running::new().begin(),
        )
        .await;
    });
    link.spawn(async move {
        let (_promised, promised) = watch::channel(BTreeMap::new());
        let (_needed, needed) = watch::channel(Term::ZERO);
        let consent = Consent {
            standby: MemberId::parse("g-3").unwrap(),
            greeted: Term::new(2),
            promised,
            needed,
        };
        relay_up(
            above,
            up,
            &CancellationToken::new(),
            Running::new().begin(),
            &consent,
        )
        .await;
    });
    let (mut receiver, mut server) = (Party(receiver), Party(server));
    receiver.says(STARTUP).await;
    server.hears(STARTUP).await;
    (receiver, server, link)
}

/// The server greets; it is asked who it is before the receiver has said a word.
async fn greets(server: &mut Party, timeline: &str) {
    server.says(READY).await;
    server.hears(&query(IDENTIFY)).await;
    server.says(&identity(timeline)).await;
    if timeline != "1" {
        let history = history(timeline);
        server.hears(&query(&history)).await;
        server.says(&answer(&history)).await;
    }
}

/// They stream on timeline 2.
async fn linked() -> (Party, Party, JoinSet<()>) {
    let (mut receiver, mut server, link) = connected().await;
    tokio::join!(greets(&mut server, "2"), receiver.hears(READY));
    receiver.says(&query(IDENTIFY)).await;
    receiver.hears(&identity("2")).await;
    let start = query("START_REPLICATION 0/F00000 TIMELINE 2");
    receiver.says(&start).await;
    server.hears(&start).await;
    let log = frame(b'd', b"w and a record with a c in it: c\0\0\0\x04");
    server.says(&frame(b'W', &[0; 3])).await;
    server.says(&log).await;
    receiver.hears(&frame(b'W', &[0; 3])).await;
    receiver.hears(&log).await;
    (receiver, server, link)
}

/// The server's stream ends; it is asked three things before the receiver has said a word.
async fn ends(server: &mut Party) {
    server.says(&COPY_DONE_FRAME).await;
    server.hears(&COPY_DONE_FRAME).await;
    server.says(&answer("3")).await;
    server.hears(&query("TIMELINE_HISTORY 3")).await;
    server.says(&answer("3.history")).await;
    server.hears(&query("IDENTIFY_SYSTEM")).await;
    server.says(&answer("system")).await;
}

/// A question that nobody foresaw is asked and answered over the link.
async fn passes(receiver: &mut Party, server: &mut Party, question: &str) {
    receiver.says(&query(question)).await;
    server.hears(&query(question)).await;
    server.says(&answer("told")).await;
    receiver.hears(&answer("told")).await;
}

/// From the request for the new stream on, everything passes as ever.
async fn starts(receiver: &mut Party, server: &mut Party) {
    let start = query("START_REPLICATION 0/F00000 TIMELINE 3");
    receiver.says(&start).await;
    server.hears(&start).await;
    let (log, status) = (frame(b'd', b"w more"), frame(b'd', b"r status"));
    server.says(&frame(b'W', &[0; 3])).await;
    server.says(&log).await;
    receiver.hears(&frame(b'W', &[0; 3])).await;
    receiver.hears(&log).await;
    receiver.says(&status).await;
    server.hears(&status).await;
}

#[tokio::test]
async fn what_a_receiver_asks_at_a_new_timeline_was_asked_before_it_asks() {
    let (mut receiver, mut server, _link) = linked().await;
    // Said on the old stream, and too late for it.
    receiver.says(&frame(b'd', b"r status")).await;
    server.hears(&frame(b'd', b"r status")).await;
    let late = async {
        receiver.hears(&COPY_DONE_FRAME).await;
        receiver.says(&frame(b'd', b"r late")).await;
    };
    // The server's half is over before the receiver's begins.
    tokio::join!(ends(&mut server), late);
    receiver.says(&COPY_DONE_FRAME).await;
    receiver.hears(&answer("3")).await;
    receiver.says(&query("TIMELINE_HISTORY 3")).await;
    receiver.hears(&answer("3.history")).await;
    receiver.says(&query("IDENTIFY_SYSTEM")).await;
    receiver.hears(&answer("system")).await;
    starts(&mut receiver, &mut server).await;
}

#[tokio::test]
async fn what_was_not_foreseen_is_asked_over_the_link() {
    let (mut receiver, mut server, _link) = linked().await;
    tokio::join!(ends(&mut server), receiver.hears(&COPY_DONE_FRAME));
    receiver.says(&COPY_DONE_FRAME).await;
    receiver.hears(&answer("3")).await;
    for question in ["TIMELINE_HISTORY 2", "SHOW wal_segment_size"] {
        passes(&mut receiver, &mut server, question).await;
    }
    // The history is at hand already, from somebody else.
    receiver.says(&query("IDENTIFY_SYSTEM")).await;
    receiver.hears(&answer("system")).await;
    starts(&mut receiver, &mut server).await;
    // And again, at the next one.
    tokio::join!(ends(&mut server), receiver.hears(&COPY_DONE_FRAME));
    receiver.says(&COPY_DONE_FRAME).await;
    receiver.hears(&answer("3")).await;
    starts(&mut receiver, &mut server).await;
}

#[tokio::test]
async fn what_a_receiver_asks_at_first_was_asked_before_it_asks() {
    for timeline in ["1", "3"] {
        let (mut receiver, mut server, _link) = connected().await;
        tokio::join!(greets(&mut server, timeline), receiver.hears(READY));
        receiver.says(&query(IDENTIFY)).await;
        receiver.hears(&identity(timeline)).await;
        // Of the histories, one that is older and was not foreseen.
        passes(&mut receiver, &mut server, "TIMELINE_HISTORY 2").await;
        if timeline == "3" {
            receiver.says(&query("TIMELINE_HISTORY 3")).await;
            receiver.hears(&answer("TIMELINE_HISTORY 3")).await;
        }
        starts(&mut receiver, &mut server).await;
    }
}

#[tokio::test]
async fn a_receiver_that_asks_nothing_first_gets_its_stream() {
    let (mut receiver, mut server, _link) = connected().await;
    tokio::join!(greets(&mut server, "3"), receiver.hears(READY));
    starts(&mut receiver, &mut server).await;
}

#[tokio::test]
async fn a_server_that_greets_nobody_is_heard() {
    let (mut receiver, mut server, mut link) = connected().await;
    let refusal = frame(
        b'E',
        b"SFATAL\0C57P03\0Mthe database system is starting up\0\0",
    );
    server.says(&refusal).await;
    drop(server);
    receiver.hears(&refusal).await;
    drop(receiver);
    while link.join_next().await.is_some() {}
}

#[tokio::test]
async fn a_stream_that_ends_with_its_server_ends_the_link() {
    let (mut receiver, mut server, mut link) = linked().await;
    tokio::join!(
        server.says(&COPY_DONE_FRAME),
        receiver.hears(&COPY_DONE_FRAME)
    );
    drop(server);
    while link.join_next().await.is_some() {}
    assert_eq!(receiver.0.read(&mut [0; 1]).await.unwrap(), 0);
}
