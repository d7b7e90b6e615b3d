//! The promise file's slot, with a checksum that fits and with the one that is there.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| atoll_agent::fuzzing::promise_slot(data));
