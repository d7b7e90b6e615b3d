//! What control keeps in the store: executions, plans, guards, marks, who waits, who acts.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| atoll_control::fuzzing::stored(data));
