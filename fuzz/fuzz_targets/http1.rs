//! The strict reader in front of hyper: what it lets through, and whether it refuses the rest, does
//! not depend on how the bytes were cut. Which of two violations it names may.
#![no_main]

use atoll_proxy::{Strict, StrictLimits};
use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;

const LIMITS: StrictLimits = StrictLimits {
    head_bytes_max: 4096,
    headers_max: 16,
    body_bytes_max: 1 << 20,
};

fn passed(pieces: &[&[u8]]) -> (Vec<u8>, bool) {
    let mut strict = Strict::new(LIMITS);
    let mut out = BytesMut::new();
    for piece in pieces {
        if strict.feed(piece, &mut out).is_err() {
            return (out.to_vec(), false);
        }
    }
    let whole = !strict.is_refused();
    let marker = b"REFUSED /";
    let refused = out.windows(marker.len()).position(|at| at == marker);
    let passed = match refused {
        Some(at) if !whole => &out[..at],
        _ => &out[..],
    };
    (passed.to_vec(), whole)
}

fuzz_target!(|data: (u8, &[u8])| {
    let (cut, data) = data;
    let at = usize::from(cut).min(data.len());
    assert_eq!(passed(&[data]), passed(&[&data[..at], &data[at..]]));
});
