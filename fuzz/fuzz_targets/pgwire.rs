//! PostgreSQL's frames, from either end, cut anywhere: what is decoded from two pieces is what is
//! decoded from one.
#![no_main]

use atoll_pgwire::{Limits, Peer, backend, decode, decode_startup, frontend};
use bytes::{Bytes, BytesMut};
use libfuzzer_sys::fuzz_target;

fn frames(pieces: &[&[u8]], from: Peer) -> (Vec<Bytes>, bool) {
    let (mut input, mut frames) = (BytesMut::new(), Vec::new());
    for piece in pieces {
        input.extend_from_slice(piece);
        loop {
            match decode(&mut input, from, Limits::default()) {
                Ok(Some(frame)) => frames.push(frame.raw().clone()),
                Ok(None) => break,
                Err(_) => return (frames, false),
            }
        }
    }
    (frames, true)
}

fuzz_target!(|data: (u8, &[u8])| {
    let (cut, data) = data;
    let at = usize::from(cut).min(data.len());
    for from in [Peer::Frontend, Peer::Backend] {
        assert_eq!(
            frames(&[data], from),
            frames(&[&data[..at], &data[at..]], from)
        );
    }
    let body = Bytes::copy_from_slice(data);
    // None of them may do anything but answer.
    let _ = decode_startup(&mut BytesMut::from(data), Limits::default());
    let _ = frontend::query(body.clone());
    let _ = frontend::parse(body.clone());
    if let Ok(bind) = frontend::bind(body.clone()) {
        for number in 0..4 {
            let _ = bind.value(number);
        }
    }
    let _ = frontend::target(body.clone());
    let _ = frontend::execute(body.clone());
    let _ = backend::ready_for_query(&body);
    let _ = backend::fields(body.clone()).map(|fields| fields.message());
    let _ = backend::parameter_status(body.clone());
    let _ = backend::backend_key_data(body.clone());
    let _ = backend::authentication(body.clone());
    let _ = backend::command_complete(body.clone());
    let _ = backend::parameter_description(body.clone());
    let _ = backend::data_row(body);
});
