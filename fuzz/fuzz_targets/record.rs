//! A data group's record as the store holds it.
#![no_main]

use atoll_ownership::record::GroupRecord;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(record) = serde_json::from_slice::<GroupRecord>(data) else {
        return;
    };
    let _ = record.drive_order();
    let _ = record.grants();
    let kept = serde_json::to_vec(&record).expect("a record is JSON");
    let again: GroupRecord = serde_json::from_slice(&kept).expect("what was written is read");
    assert_eq!(again, record);
});
