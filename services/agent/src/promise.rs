//! The promise file: what a member must not forget.
//!
//! Two slots of one sector each, checksummed. A change is written to the first slot and synced,
//! and only then copied to the second: a write that breaks off leaves the old promise, whose
//! successor was never answered for, and one slot that rots later leaves its twin. The file is
//! preallocated and never renamed, so no file system journal stands on the path.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use atoll_ownership::member::{Durable, Mark};
use atoll_topology::Term;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh64::xxh64;

use crate::error::Error;

const MAGIC: [u8; 8] = *b"ATOLLPR\x01";

/// One sector, written in one go by every disk.
const SLOT_BYTES: usize = 512;

/// In different pages, so that one bad page cannot take both.
const SLOTS: [u64; 2] = [0, 4096];

const FILE_BYTES: u64 = 8192;

/// Magic, number, length; the checksum stands at the end of the slot.
const HEAD_BYTES: usize = 8 + 8 + 2;
const BODY_BYTES_MAX: usize = SLOT_BYTES - HEAD_BYTES - 8;

/// What stands in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promise {
    /// Nonce of the volume that this member was admitted with.
    pub volume: String,
    /// What the state machine keeps over a crash.
    pub durable: Durable,
}

impl Promise {
    /// A new member, admitted with this volume.
    pub fn born(volume: String) -> Self {
        let durable = Durable {
            promise: Term::new(1),
            upstream: None,
            mark: Mark::None,
        };
        Self { volume, durable }
    }
}

/// The open file.
#[derive(Debug)]
pub struct PromiseFile {
    path: PathBuf,
    file: File,
    number: u64,
}

impl PromiseFile {
    /// Opens the file and reads the last promise; `None` where there is no file.
    pub fn open(path: &Path) -> Result<Option<(Self, Promise)>, Error> {
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(failed(path)(source)),
        };
        let mut last: Option<(u64, Promise)> = None;
        for offset in SLOTS {
            let mut slot = [0; SLOT_BYTES];
            file.read_exact_at(&mut slot, offset)
                .map_err(failed(path))?;
            if let Some(found) = decode(&slot)
                && last.as_ref().is_none_or(|(number, _)| found.0 > *number)
            {
                last = Some(found);
            }
        }
        let what = "has no slot that can be read; this member's promise is lost";
        let (number, promise) = last.ok_or_else(|| Error::PromiseContent {
            path: path.to_owned(),
            what,
        })?;
        let mut opened = Self {
            path: path.to_owned(),
            file,
            number,
        };
        // After a broken-off write the slots differ; make them alike before anything is added.
        opened.write(&promise)?;
        Ok(Some((opened, promise)))
    }

    /// Makes the file, durably, with its first promise.
    pub fn create(path: &Path, promise: &Promise) -> Result<Self, Error> {
        let making = path.with_extension("making");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&making)
            .map_err(failed(path))?;
        let zeros = vec![0; usize::try_from(FILE_BYTES).unwrap_or(0)];
        file.write_all_at(&zeros, 0).map_err(failed(path))?;
        let mut created = Self {
            path: path.to_owned(),
            file,
            number: 0,
        };
        created.write(promise)?;
        created.file.sync_all().map_err(failed(path))?;
        std::fs::rename(&making, path).map_err(failed(path))?;
        if let Some(folder) = path.parent() {
            let folder = File::open(folder).map_err(failed(path))?;
            folder.sync_all().map_err(failed(path))?;
        }
        Ok(created)
    }

    /// Makes a promise durable. After an error nothing is known: the caller cuts everything and
    /// ends.
    pub fn write(&mut self, promise: &Promise) -> Result<(), Error> {
        self.number += 1;
        let slot = encode(self.number, promise).ok_or_else(|| Error::PromiseContent {
            path: self.path.clone(),
            what: "has no room for this promise",
        })?;
        let [first, second] = SLOTS;
        self.file
            .write_all_at(&slot, first)
            .map_err(failed(&self.path))?;
        self.file.sync_data().map_err(failed(&self.path))?;
        // The twin becomes durable with the next sync at the latest.
        self.file
            .write_all_at(&slot, second)
            .map_err(failed(&self.path))
    }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Promise { path, source }
}

fn encode(number: u64, promise: &Promise) -> Option<[u8; SLOT_BYTES]> {
    let body = serde_json::to_vec(promise).ok()?;
    let length = u16::try_from(body.len()).ok()?;
    if body.len() > BODY_BYTES_MAX {
        return None;
    }
    let mut slot = [0; SLOT_BYTES];
    slot[..8].copy_from_slice(&MAGIC);
    slot[8..16].copy_from_slice(&number.to_be_bytes());
    slot[16..18].copy_from_slice(&length.to_be_bytes());
    slot[HEAD_BYTES..HEAD_BYTES + body.len()].copy_from_slice(&body);
    let sum = xxh64(&slot[..SLOT_BYTES - 8], 0);
    slot[SLOT_BYTES - 8..].copy_from_slice(&sum.to_be_bytes());
    Some(slot)
}

fn decode(slot: &[u8; SLOT_BYTES]) -> Option<(u64, Promise)> {
    let sum = u64::from_be_bytes(slot[SLOT_BYTES - 8..].try_into().ok()?);
    if slot[..8] != MAGIC || sum != xxh64(&slot[..SLOT_BYTES - 8], 0) {
        return None;
    }
    let number = u64::from_be_bytes(slot[8..16].try_into().ok()?);
    let length = usize::from(u16::from_be_bytes(slot[16..18].try_into().ok()?));
    let body = slot.get(HEAD_BYTES..HEAD_BYTES + length)?;
    Some((number, serde_json::from_slice(body).ok()?))
}

/// Any bytes as a slot, as they are and with a checksum that fits; what is read is written alike.
#[cfg(fuzzing)]
pub fn fuzz(bytes: &[u8]) {
    let mut slot = [0; SLOT_BYTES];
    let length = bytes.len().min(SLOT_BYTES);
    slot[..length].copy_from_slice(&bytes[..length]);
    decode(&slot);
    slot[..8].copy_from_slice(&MAGIC);
    let sum = xxh64(&slot[..SLOT_BYTES - 8], 0);
    slot[SLOT_BYTES - 8..].copy_from_slice(&sum.to_be_bytes());
    if let Some((number, promise)) = decode(&slot)
        && let Some(again) = encode(number, &promise)
    {
        assert_eq!(decode(&again), Some((number, promise)));
    }
}

#[cfg(test)]
mod tests {
    use atoll_topology::MemberId;

    use super::*;

    fn promise(term: u64) -> Promise {
        let upstream = Some(MemberId::parse("a".repeat(40)).unwrap());
        let durable = Durable {
            promise: Term::new(term),
            upstream,
            mark: Mark::Rebuilding,
        };
        Promise {
            volume: "v".repeat(64),
            durable,
        }
    }

    fn reopened(path: &Path) -> Promise {
        PromiseFile::open(path).unwrap().unwrap().1
    }

    #[test]
    fn the_last_promise_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("promise");
        assert!(PromiseFile::open(&path).unwrap().is_none());
        let mut file = PromiseFile::create(&path, &promise(1)).unwrap();
        for term in 2..9 {
            file.write(&promise(term)).unwrap();
            assert_eq!(reopened(&path), promise(term));
        }
        assert_eq!(std::fs::metadata(&path).unwrap().len(), FILE_BYTES);
    }

    #[test]
    fn a_write_that_broke_off_leaves_the_promise_before_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("promise");
        drop(PromiseFile::create(&path, &promise(6)).unwrap());
        let torn = encode(99, &promise(7)).unwrap();
        for bytes in [1, 17, 100, 300, SLOT_BYTES - 1] {
            let file = OpenOptions::new().write(true).open(&path).unwrap();
            file.write_all_at(&torn[..bytes], SLOTS[0]).unwrap();
            assert_eq!(
                reopened(&path),
                promise(6),
                "{bytes} bytes of the new promise"
            );
        }
    }

    #[test]
    fn one_slot_that_rots_leaves_its_twin_and_two_are_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("promise");
        let mut file = PromiseFile::create(&path, &promise(6)).unwrap();
        file.write(&promise(7)).unwrap();
        for slot in SLOTS {
            file.file.write_all_at(b"rot", slot + 30).unwrap();
            assert_eq!(reopened(&path), promise(7));
        }
        for slot in SLOTS {
            file.file.write_all_at(b"rot", slot + 30).unwrap();
        }
        assert!(matches!(
            PromiseFile::open(&path),
            Err(Error::PromiseContent { .. })
        ));
    }
}
