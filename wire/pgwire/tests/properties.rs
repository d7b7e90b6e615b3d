//! The codec's three properties: what is written is read back, a cut anywhere changes nothing, and
//! garbage is an error or nothing, never a panic.

use atoll_pgwire::backend::{self, Report, Severity, Status};
use atoll_pgwire::frontend::{self, Target, Value};
use atoll_pgwire::{
    Frame, Limits, Peer, StartupMessage, StartupRequest, decode, decode_startup, hint, sql,
};
use bytes::{BufMut, Bytes, BytesMut};
use proptest::collection::vec;
use proptest::prelude::*;

/// A protocol string: bytes without a zero.
fn text() -> impl Strategy<Value = Bytes> {
    vec(1_u8..=255, 0..20).prop_map(Bytes::from)
}

#[derive(Debug, Clone)]
enum Sent {
    Query(Bytes),
    Parse(Bytes, Bytes, Vec<u32>),
    Bind(Bytes, Bytes, Vec<u16>, Vec<Option<Bytes>>),
    Describe(Target),
    Close(Target),
    Execute(Bytes, u32),
    Sync,
    Flush,
}

fn target() -> impl Strategy<Value = Target> {
    prop_oneof![
        text().prop_map(Target::Statement),
        text().prop_map(Target::Portal)
    ]
}

fn sent() -> impl Strategy<Value = Sent> {
    prop_oneof![
        text().prop_map(Sent::Query),
        (text(), text(), vec(any::<u32>(), 0..4)).prop_map(|(n, q, t)| Sent::Parse(n, q, t)),
        (
            text(),
            text(),
            0_u16..2,
            vec(proptest::option::of(text()), 0..4)
        )
            .prop_map(|(p, s, format, values)| Sent::Bind(p, s, vec![format], values)),
        target().prop_map(Sent::Describe),
        target().prop_map(Sent::Close),
        (text(), any::<u32>()).prop_map(|(p, rows)| Sent::Execute(p, rows)),
        Just(Sent::Sync),
        Just(Sent::Flush),
    ]
}

fn bind_rest(formats: &[u16], values: &[Option<Bytes>]) -> Bytes {
    let mut rest = BytesMut::new();
    rest.put_u16(u16::try_from(formats.len()).expect("few"));
    formats.iter().for_each(|f| rest.put_u16(*f));
    rest.put_u16(u16::try_from(values.len()).expect("few"));
    for value in values {
        match value {
            None => rest.put_i32(-1),
            Some(value) => {
                rest.put_u32(u32::try_from(value.len()).expect("short"));
                rest.extend_from_slice(value);
            }
        }
    }
    rest.put_u16(0);
    rest.freeze()
}

fn write(out: &mut BytesMut, message: &Sent) {
    match message {
        Sent::Query(q) => frontend::put_query(out, q),
        Sent::Parse(n, q, t) => frontend::put_parse(out, n, q, t),
        Sent::Bind(p, s, f, v) => frontend::put_bind(out, p, s, &bind_rest(f, v)),
        Sent::Describe(t) => frontend::put_describe(out, t),
        Sent::Close(t) => frontend::put_close(out, t),
        Sent::Execute(p, rows) => frontend::put_execute(out, p, *rows),
        Sent::Sync => frontend::put_sync(out),
        Sent::Flush => frontend::put_flush(out),
    }
}

fn check(frame: &Frame, message: &Sent) {
    let body = frame.body();
    match message {
        Sent::Query(q) => assert_eq!(frontend::query(body).as_ref(), Ok(q)),
        Sent::Parse(n, q, t) => {
            let parse = frontend::parse(body).expect("Parse");
            assert_eq!((&parse.name, &parse.query, &parse.types), (n, q, t));
        }
        Sent::Bind(p, s, formats, values) => {
            let bind = frontend::bind(body).expect("Bind");
            assert_eq!((&bind.portal, &bind.statement), (p, s));
            for (number, value) in (1..).zip(values) {
                let expected = match (value, formats.first()) {
                    (None, _) => Value::Null,
                    (Some(value), Some(1)) => Value::Binary(value.clone()),
                    (Some(value), _) => Value::Text(value.clone()),
                };
                assert_eq!(bind.value(number), Ok(Some(expected)));
            }
            let beyond = u16::try_from(values.len()).expect("few") + 1;
            assert_eq!(bind.value(beyond), Ok(None));
        }
        Sent::Describe(t) | Sent::Close(t) => assert_eq!(frontend::target(body).as_ref(), Ok(t)),
        Sent::Execute(p, rows) => {
            let execute = frontend::execute(body).expect("Execute");
            assert_eq!((&execute.portal, execute.rows), (p, *rows));
        }
        Sent::Sync => assert_eq!((frame.tag(), body.len()), (b'S', 0)),
        Sent::Flush => assert_eq!((frame.tag(), body.len()), (b'H', 0)),
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read_back_however_the_bytes_arrive(
        messages in vec(sent(), 1..8),
        piece in 1_usize..40,
    ) {
        let mut wire = BytesMut::new();
        messages.iter().for_each(|message| write(&mut wire, message));
        let mut input = BytesMut::new();
        let mut frames = Vec::new();
        for piece in wire.chunks(piece) {
            input.extend_from_slice(piece);
            while let Some(frame) =
                decode(&mut input, Peer::Frontend, Limits::default()).expect("decode")
            {
                frames.push(frame);
            }
        }
        prop_assert!(input.is_empty());
        prop_assert_eq!(frames.len(), messages.len());
        let raw: Vec<u8> = frames.iter().flat_map(|f| f.raw().to_vec()).collect();
        prop_assert_eq!(&raw[..], &wire[..]);
        frames.iter().zip(&messages).for_each(|(frame, message)| check(frame, message));
    }

    #[test]
    fn a_startup_packet_is_read_back_and_waits_for_its_last_byte(
        parameters in vec(("[a-z_.]{1,10}", "[ -~]{0,20}"), 0..5),
        process in any::<u32>(),
        secret in any::<u32>(),
        which in 0..4,
        cut in any::<prop::sample::Index>(),
    ) {
        let request = match which {
            0 => StartupRequest::Ssl,
            1 => StartupRequest::GssEnc,
            2 => StartupRequest::Cancel { process, secret },
            _ => StartupRequest::Startup(StartupMessage { minor: 0, parameters }),
        };
        let mut wire = BytesMut::new();
        request.encode(&mut wire);
        let cut = cut.index(wire.len());
        let mut part = BytesMut::from(&wire[..cut]);
        prop_assert_eq!(decode_startup(&mut part, Limits::default()), Ok(None));
        part.extend_from_slice(&wire[cut..]);
        prop_assert_eq!(decode_startup(&mut part, Limits::default()), Ok(Some(request)));
        prop_assert!(part.is_empty());
    }

    #[test]
    fn reports_and_statuses_are_read_back(message in "[ -~]{1,30}", detail in "[ -~]{0,30}") {
        let mut wire = BytesMut::new();
        let severity = Severity::Error;
        let report = Report { severity, sqlstate: "08007", message: &message, detail: &detail, hint: "" };
        backend::put_report(&mut wire, report);
        backend::put_ready_for_query(&mut wire, Status::Failed);
        let error = decode(&mut wire, Peer::Backend, Limits::default()).expect("decode").expect("frame");
        let fields = backend::fields(error.body()).expect("fields");
        prop_assert_eq!(fields.code(), b"08007");
        prop_assert_eq!(fields.message(), message);
        prop_assert_eq!(fields.get(b'D').is_some(), !detail.is_empty());
        let ready = decode(&mut wire, Peer::Backend, Limits::default()).expect("decode").expect("frame");
        prop_assert_eq!(backend::ready_for_query(&ready.body()), Ok(Status::Failed));
    }

    #[test]
    fn garbage_never_panics(bytes in vec(any::<u8>(), 0..200), tag in any::<u8>()) {
        let limits = Limits { frame_bytes_max: 1000, startup_bytes_max: 1000 };
        let mut startup = BytesMut::from(&bytes[..]);
        drop(decode_startup(&mut startup, limits));
        for peer in [Peer::Frontend, Peer::Backend] {
            let mut input = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = decode(&mut input, peer, limits) {}
            // A well-framed message with a body of garbage reaches the views.
            let mut input = BytesMut::new();
            input.put_u8(tag);
            input.put_u32(u32::try_from(bytes.len()).expect("short") + 4);
            input.extend_from_slice(&bytes);
            let Ok(Some(frame)) = decode(&mut input, peer, limits) else { continue };
            let body = || frame.body();
            drop((frontend::query(body()), frontend::parse(body()), frontend::execute(body())));
            drop((frontend::target(body()), backend::fields(body()), backend::data_row(body())));
            drop((backend::parameter_status(body()), backend::backend_key_data(body())));
            drop((backend::parameter_description(body()), backend::command_complete(body())));
            drop(frontend::bind(body()).map(|bind| bind.value(3)));
        }
    }

    #[test]
    fn garbage_sql_never_panics(bytes in vec(any::<u8>(), 0..100), text in "[-/*$'\"eE\\\\a;.0-9\n ]{0,60}") {
        for text in [&bytes[..], text.as_bytes()] {
            drop(hint::comment(text));
            if let Ok(statements) = sql::statements(text) {
                for statement in statements {
                    drop(hint::assignment(&statement.tokens));
                    prop_assert!(statement.begins <= statement.ends && statement.ends <= text.len());
                }
            }
        }
        drop(hint::options(&text));
    }
}

#[test]
fn a_frame_above_the_limit_is_refused_by_the_name_of_the_limit() {
    let mut wire = BytesMut::new();
    frontend::put_query(&mut wire, &[b'x'; 100]);
    let limits = Limits {
        frame_bytes_max: 50,
        ..Limits::default()
    };
    let error = decode(&mut wire, Peer::Frontend, limits).expect_err("too long");
    assert!(error.to_string().contains("frame_bytes_max"), "{error}");
}
