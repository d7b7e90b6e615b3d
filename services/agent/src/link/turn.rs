//! Links of receivers, which turn with their upstream to a new timeline.
//!
//! When an upstream is promoted, its stream on the old timeline ends, and each standby's receiver
//! asks it in turn how the stream ended, for the new timeline's history, and who it is, before it
//! asks for the log again (PostgreSQL 15 documentation, 55.4 "Streaming Replication Protocol"):
//! three round trips, and the opening transaction of a switch waits for all of them. A receiver
//! that has just connected, as after a failover, asks who its upstream is, and for the history. So
//! the upstream's end of the link puts these questions itself, at once, beside its PostgreSQL, and
//! the answers follow the greeting or the end of the stream; the standby's end gives each to the
//! receiver when that asks for it. What nobody foresaw is asked and answered over the link as ever.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use atoll_pgwire::backend::{self, tag};
use atoll_pgwire::{FrameError, Limits, Peer, decode, frontend};
use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::sync::{Mutex, mpsc};
use tokio::time::{Duration, timeout};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::relay::{Consent, PIECE_BYTES, Run};

/// The end of a stream, from either side.
const COPY_DONE: u8 = b'c';
const COPY_DONE_FRAME: [u8; 5] = [COPY_DONE, 0, 0, 0, 4];
/// A simple query.
const QUERY: u8 = b'Q';

const IDENTIFY: &str = "IDENTIFY_SYSTEM";
const START: &[u8] = b"START_REPLICATION";

/// The bytes of a frame's tag and length.
const HEADER: usize = 5;

/// PostgreSQL answers its neighbour within this, or the link ends: as long as a receiver waits for
/// its sender.
const ASK_LIMIT: Duration = Duration::from_secs(4);

/// Answers of one turn at most: the stream's end, the history, the identity.
const ANSWERS: usize = 3;

/// The upstream's end: relays until one end closes or `cut`; both sockets are closed before `run`
/// ends.
pub(crate) async fn relay_up<S, P>(
    standby: S,
    postgres: P,
    cut: &CancellationToken,
    run: Run,
    consent: &Consent,
) where
    S: AsyncRead + AsyncWrite + Unpin,
    P: AsyncRead + AsyncWrite + Unpin,
{
    let both = async move {
        let (from_standby, to_standby) = split(standby);
        let (from_postgres, socket) = split(postgres);
        let to_postgres = Mutex::new(ToPostgres {
            socket,
            ended: false,
        });
        tokio::select! {
            ended = requests_up(Requests::new(from_standby), &to_postgres, consent) => ended,
            ended = answers_up(from_postgres, to_standby, &to_postgres, consent) => ended,
        }
    };
    until_cut(both, cut).await;
    drop(run);
}

/// The standby's end, likewise.
pub(crate) async fn relay_down<P, S>(postgres: P, upstream: S, cut: &CancellationToken, run: Run)
where
    P: AsyncRead + AsyncWrite + Unpin,
    S: AsyncRead + AsyncWrite + Unpin,
{
    let both = async move {
        let (from_postgres, to_postgres) = split(postgres);
        let (from_upstream, to_upstream) = split(upstream);
        let to_postgres = Mutex::new(to_postgres);
        let turning = AtomicBool::new(true);
        let (ahead, answers) = mpsc::channel(ANSWERS);
        let asking = Asking {
            turning: &turning,
            to_postgres: &to_postgres,
            answers,
        };
        tokio::select! {
            ended = asking.requests_down(Requests::new(from_postgres), to_upstream) => ended,
            ended = answers_down(from_upstream, &to_postgres, &turning, ahead) => ended,
        }
    };
    until_cut(both, cut).await;
    drop(run);
}

/// Whichever end closes or fails: the other end sees its connection close.
async fn until_cut(both: impl Future<Output = io::Result<()>>, cut: &CancellationToken) {
    tokio::select! {
        ended = both => if let Err(error) = ended {
            debug!(%error, "link ends");
        },
        () = cut.cancelled() => {}
    }
}

/// The upstream's PostgreSQL.
struct ToPostgres<W> {
    socket: W,
    /// We have ended the stream in the receiver's name: what that still says of it reaches nobody.
    ended: bool,
}

async fn requests_up<R, W>(
    mut requests: Requests<R>,
    to_postgres: &Mutex<ToPostgres<W>>,
    consent: &Consent,
) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    while let Some(request) = requests.next().await? {
        consent.given().await;
        let mut to = to_postgres.lock().await;
        let ends = request.first() == Some(&COPY_DONE);
        if to.ended {
            to.ended = !ends;
        } else if ends {
            return Err(io::Error::other("a receiver ends its stream by itself"));
        } else {
            to.socket.write_all(&request).await?;
        }
    }
    // The turn that may be under way has nobody left to tell.
    Ok(())
}

async fn answers_up<R, S, W>(
    mut from_postgres: R,
    mut to_standby: S,
    to_postgres: &Mutex<ToPostgres<W>>,
    consent: &Consent,
) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    S: AsyncWrite + Unpin,
    W: AsyncWrite + Unpin,
{
    // Nothing is asked of the receiver in it: local connections are trusted.
    let greeting = Answer::read_any(&mut from_postgres, &mut BytesMut::new()).await?;
    consent.given().await;
    {
        let mut to = to_postgres.lock().await;
        to_standby.write_all(&greeting.frames).await?;
        if !greeting.whole {
            return to_standby.flush().await;
        }
        let ahead = ask_ahead(&mut from_postgres, &mut to.socket, Turn::Begin).await?;
        // Our member may have been told to promote meanwhile, and these answers tell of it.
        consent.given().await;
        to_standby.write_all(&ahead).await?;
    }
    let (mut piece, mut ends) = (vec![0; PIECE_BYTES], Ends::default());
    loop {
        let length = from_postgres.read(&mut piece).await?;
        if length == 0 {
            return to_standby.flush().await;
        }
        consent.given().await;
        if ends.after_end(&piece[..length]).is_none() {
            to_standby.write_all(&piece[..length]).await?;
            continue;
        }
        // From before the receiver can know: what it answers is not for PostgreSQL. Behind the end
        // of its stream PostgreSQL says nothing before it is asked.
        let mut to = to_postgres.lock().await;
        to.ended = true;
        to_standby.write_all(&piece[..length]).await?;
        let ahead = ask_ahead(&mut from_postgres, &mut to.socket, Turn::End).await?;
        consent.given().await;
        to_standby.write_all(&ahead).await?;
    }
}

/// Puts the receiver's questions, and returns all the answers.
async fn ask_ahead<R, W>(
    from_postgres: &mut R,
    to_postgres: &mut W,
    turn: Turn,
) -> io::Result<BytesMut>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let asked = async {
        let mut input = BytesMut::new();
        match turn {
            Turn::Begin => to_postgres.write_all(&query(IDENTIFY)).await?,
            Turn::End => to_postgres.write_all(&COPY_DONE_FRAME).await?,
        }
        let first = Answer::read(from_postgres, &mut input).await?;
        let questions = turn.questions_behind(&first);
        let mut all = first.frames;
        for question in questions {
            to_postgres.write_all(&query(&question)).await?;
            let answer = Answer::read(from_postgres, &mut input).await?;
            all.extend_from_slice(&answer.frames);
        }
        debug!(?turn, bytes = all.len(), "asked ahead");
        Ok(all)
    };
    // What the receiver does meanwhile, closing too, is not looked at.
    timeout(ASK_LIMIT, asked).await?
}

fn query(text: &str) -> BytesMut {
    let mut query = BytesMut::new();
    frontend::put_query(&mut query, text.as_bytes());
    query
}

fn history(timeline: &str) -> String {
    format!("TIMELINE_HISTORY {timeline}")
}

async fn answers_down<R, W>(
    mut from_upstream: R,
    to_postgres: &Mutex<W>,
    turning: &AtomicBool,
    ahead: mpsc::Sender<Answer>,
) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let (mut input, mut ends) = (BytesMut::new(), Ends::default());
    let greeting = Answer::read_any(&mut from_upstream, &mut input).await?;
    to_postgres.lock().await.write_all(&greeting.frames).await?;
    if !greeting.whole {
        return to_postgres.lock().await.flush().await;
    }
    take_ahead(&mut from_upstream, &mut input, &ahead, Turn::Begin).await?;
    loop {
        input.reserve(PIECE_BYTES);
        if input.is_empty() && from_upstream.read_buf(&mut input).await? == 0 {
            return to_postgres.lock().await.flush().await;
        }
        let end = ends.after_end(&input);
        // Before the receiver can know of the end, and ask.
        turning.fetch_or(end.is_some(), Ordering::SeqCst);
        let stream = input.split_to(end.unwrap_or(input.len()));
        to_postgres.lock().await.write_all(&stream).await?;
        if end.is_some() {
            take_ahead(&mut from_upstream, &mut input, &ahead, Turn::End).await?;
        }
    }
}

/// Keeps what was asked ahead for the receiver.
async fn take_ahead<R: AsyncRead + Unpin>(
    from_upstream: &mut R,
    input: &mut BytesMut,
    ahead: &mpsc::Sender<Answer>,
    turn: Turn,
) -> io::Result<()> {
    let first = Answer::read(from_upstream, input).await?;
    let more = turn.questions_behind(&first).len();
    // The other half lives as long as this one.
    drop(ahead.send(first).await);
    for _ in 0..more {
        drop(ahead.send(Answer::read(from_upstream, input).await?).await);
    }
    Ok(())
}

/// The standby's receiver, asking.
struct Asking<'a, W> {
    /// There is no stream; the receiver has not asked for one yet.
    turning: &'a AtomicBool,
    to_postgres: &'a Mutex<W>,
    /// What was asked ahead, in order.
    answers: mpsc::Receiver<Answer>,
}

impl<W: AsyncWrite + Unpin> Asking<'_, W> {
    async fn requests_down<R, S>(
        mut self,
        mut requests: Requests<R>,
        mut to_upstream: S,
    ) -> io::Result<()>
    where
        R: AsyncRead + Unpin,
        S: AsyncWrite + Unpin,
    {
        let mut foreseen = Foreseen {
            turn: Turn::Begin,
            questions: VecDeque::from([IDENTIFY.to_owned()]),
        };
        while let Some(request) = requests.next().await? {
            let turning = self.turning.load(Ordering::SeqCst);
            match question(&request)? {
                Some(question) if turning && foreseen.questions.contains(&question) => {
                    while let Some((next, answer)) = self.next(&mut foreseen).await? {
                        if next == question {
                            self.give(&answer).await?;
                            break;
                        }
                    }
                    continue;
                }
                Some(question) if turning && question.as_bytes().starts_with(START) => {
                    while self.next(&mut foreseen).await?.is_some() {}
                    self.turning.store(false, Ordering::SeqCst);
                }
                _ => {}
            }
            to_upstream.write_all(&request).await?;
            if turning && request.first() == Some(&COPY_DONE) {
                let end = self.answer().await?;
                foreseen = Foreseen {
                    turn: Turn::End,
                    questions: Turn::End.questions_behind(&end).into(),
                };
                self.give(&end).await?;
            }
        }
        to_upstream.flush().await
    }

    /// The next question that was asked ahead, and its answer.
    async fn next(&mut self, foreseen: &mut Foreseen) -> io::Result<Option<(String, Answer)>> {
        let Some(question) = foreseen.questions.pop_front() else {
            return Ok(None);
        };
        let answer = self.answer().await?;
        if foreseen.turn == Turn::Begin && question == IDENTIFY {
            foreseen.questions = Turn::Begin.questions_behind(&answer).into();
        }
        Ok(Some((question, answer)))
    }

    async fn answer(&mut self) -> io::Result<Answer> {
        let answer = self.answers.recv().await;
        answer.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    async fn give(&self, answer: &Answer) -> io::Result<()> {
        let mut to = self.to_postgres.lock().await;
        to.write_all(&answer.frames).await
    }
}

/// The text of a query.
fn question(request: &Bytes) -> io::Result<Option<String>> {
    if request.first() != Some(&QUERY) {
        return Ok(None);
    }
    let text = frontend::query(request.slice(HEADER..)).map_err(malformed)?;
    Ok(Some(String::from_utf8_lossy(&text).into_owned()))
}

/// When questions are asked ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// A connection begins: who the upstream is comes first.
    Begin,
    /// A stream ends: how it ended comes first.
    End,
}

impl Turn {
    /// The questions that follow the first answer.
    fn questions_behind(self, first: &Answer) -> Vec<String> {
        let column = |at: usize| first.row.get(at)?.as_deref();
        match self {
            // The first timeline has no history.
            Self::Begin => column(1)
                .filter(|timeline| *timeline != "1")
                .map_or_else(Vec::new, |timeline| vec![history(timeline)]),
            Self::End => column(0).map_or_else(Vec::new, |timeline| {
                vec![history(timeline), IDENTIFY.to_owned()]
            }),
        }
    }
}

/// What was asked ahead and not put by the receiver yet.
struct Foreseen {
    turn: Turn,
    questions: VecDeque<String>,
}

/// One answer, up to and with ReadyForQuery.
struct Answer {
    frames: BytesMut,
    /// The columns of its first row.
    row: Vec<Option<String>>,
    /// It ends with ReadyForQuery, and not with the connection.
    whole: bool,
}

impl Answer {
    async fn read<R: AsyncRead + Unpin>(from: &mut R, input: &mut BytesMut) -> io::Result<Self> {
        let answer = Self::read_any(from, input).await?;
        match answer.whole {
            true => Ok(answer),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Also what a server says last.
    async fn read_any<R: AsyncRead + Unpin>(
        from: &mut R,
        input: &mut BytesMut,
    ) -> io::Result<Self> {
        let mut answer = Self {
            frames: BytesMut::new(),
            row: Vec::new(),
            whole: false,
        };
        loop {
            while let Some(frame) =
                decode(input, Peer::Backend, Limits::default()).map_err(malformed)?
            {
                answer.frames.extend_from_slice(frame.raw());
                match frame.tag() {
                    tag::READY_FOR_QUERY => {
                        answer.whole = true;
                        return Ok(answer);
                    }
                    tag::DATA_ROW if answer.row.is_empty() => {
                        let row = backend::data_row(frame.body()).map_err(malformed)?;
                        let text = |bytes: Bytes| String::from_utf8_lossy(&bytes).into_owned();
                        answer.row = row.into_iter().map(|column| column.map(text)).collect();
                    }
                    _ => {}
                }
            }
            if from.read_buf(input).await? == 0 {
                return Ok(answer);
            }
        }
    }
}

/// What a receiver sends: its start-up packet, then frames.
struct Requests<R> {
    from: R,
    input: BytesMut,
    started: bool,
}

impl<R: AsyncRead + Unpin> Requests<R> {
    fn new(from: R) -> Self {
        Self {
            from,
            input: BytesMut::new(),
            started: false,
        }
    }

    /// The next one, as it came; none when the receiver has closed.
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            if let Some(request) = self.cut_off().map_err(malformed)? {
                return Ok(Some(request));
            }
            if self.from.read_buf(&mut self.input).await? == 0 {
                return Ok(None);
            }
        }
    }

    fn cut_off(&mut self) -> Result<Option<Bytes>, FrameError> {
        let limits = Limits::default();
        if self.started {
            let frame = decode(&mut self.input, Peer::Frontend, limits)?;
            return Ok(frame.map(|frame| frame.raw().clone()));
        }
        let Some(mut header) = self.input.get(..4) else {
            return Ok(None);
        };
        let length = header.get_u32();
        let bytes = usize::try_from(length)
            .ok()
            .filter(|bytes| (4..=limits.startup_bytes_max).contains(bytes))
            .ok_or(FrameError::Length(length))?;
        if self.input.len() < bytes {
            return Ok(None);
        }
        self.started = true;
        Ok(Some(self.input.split_to(bytes).freeze()))
    }
}

fn malformed(error: FrameError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// Finds the end of a stream among the frames of a server that pass by.
#[derive(Default)]
struct Ends {
    /// Tag and length of the frame that is passing, as far as they are here.
    header: Vec<u8>,
    /// Bytes of its body that are still to come.
    body: usize,
}

impl Ends {
    /// Where the first end of a stream in `piece` is over; what is behind it is not looked at.
    fn after_end(&mut self, piece: &[u8]) -> Option<usize> {
        let mut at = 0;
        while at < piece.len() {
            if self.body > 0 {
                let passing = self.body.min(piece.len() - at);
                self.body -= passing;
                at += passing;
                continue;
            }
            let missing = HEADER - self.header.len();
            let here = &piece[at..piece.len().min(at + missing)];
            self.header.extend_from_slice(here);
            at += here.len();
            if self.header.len() < HEADER {
                break;
            }
            let length = (&self.header[1..]).get_u32();
            self.body = usize::try_from(length)
                .unwrap_or(usize::MAX)
                .saturating_sub(4);
            let ends = self.header.first() == Some(&COPY_DONE);
            self.header.clear();
            if ends {
                return Some(at);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;
