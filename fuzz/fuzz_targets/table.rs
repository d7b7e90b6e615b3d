//! The routing table: as a file, and as the stream's snapshot.
#![no_main]

use atoll_proxy::table::file;
use atoll_streams::EncodedTable;
use atoll_streams::proto::table::Snapshot;
use libfuzzer_sys::fuzz_target;
use prost::Message;

fuzz_target!(|data: &[u8]| {
    let _ = file::decode(data);
    let Ok(snapshot) = Snapshot::decode(data) else {
        return;
    };
    let Ok(encoded) = EncodedTable::from_snapshot(snapshot) else {
        return;
    };
    let read = file::decode(&file::encode(&encoded, 7)).expect("what was written is read");
    assert_eq!(read.table, encoded);
    if let Ok(table) = atoll_streams::decode(&encoded) {
        let again = atoll_streams::decode(&atoll_streams::encode(&table)).expect("a table");
        assert_eq!(again, table);
    }
});
