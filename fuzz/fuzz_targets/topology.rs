//! A topology file: whatever it says, it is a topology or a list of violations with their places.
#![no_main]

use atoll_topology::Topology;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Err(violations) = Topology::parse(text) {
        assert!(!violations.to_string().is_empty());
    }
});
