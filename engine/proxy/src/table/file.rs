//! The last good table on disk. Little-endian: magic, schema version (u32), time of writing
//! (u64, Unix ms), length (u32), checksum (XXH64 of all that precedes it and of the payload),
//! payload (an encoded `Snapshot`).

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use atoll_streams::proto::table::Snapshot;
use atoll_streams::{EncodedTable, MESSAGE_BYTES_MAX, UpdateError};
use prost::Message;
use xxhash_rust::xxh64::Xxh64;

const MAGIC: &[u8; 8] = b"ATOLLTBL";
/// Grows when an older version could no longer read the file.
const SCHEMA: u32 = 1;
const HEADER_BYTES: usize = 8 + 4 + 8 + 4;
const CHECKSUM_BYTES: usize = 8;

/// Why a file gives no table.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read or written.
    #[error("the file cannot be read or written")]
    Io(#[from] io::Error),
    /// It is something else.
    #[error("this is not a table file")]
    Magic,
    /// A newer Atoll wrote it.
    #[error(
        "the file has schema version {found}, this program knows {SCHEMA}: start the version of \
         Atoll that wrote it, or delete the file to begin with a table from mesh"
    )]
    Newer {
        /// Its schema version.
        found: u32,
    },
    /// It is cut short or damaged.
    #[error("the file is damaged: its length or its checksum is wrong")]
    Damaged,
    /// Its payload is not a snapshot.
    #[error("the file's payload is not a snapshot")]
    Payload(#[from] prost::DecodeError),
    /// Its payload contradicts itself.
    #[error("the file's table contradicts itself")]
    Table(#[from] UpdateError),
}

/// A table as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The table.
    pub table: EncodedTable,
    /// When it was written.
    pub written_unix_ms: u64,
}

/// The file's bytes.
pub fn encode(table: &EncodedTable, unix_ms: u64) -> Vec<u8> {
    let payload = table.to_snapshot().encode_to_vec();
    let mut bytes = Vec::with_capacity(HEADER_BYTES + CHECKSUM_BYTES + payload.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&SCHEMA.to_le_bytes());
    bytes.extend_from_slice(&unix_ms.to_le_bytes());
    // What would not fit is far beyond MESSAGE_BYTES_MAX, and `decode` refuses it.
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    bytes.extend_from_slice(&length.to_le_bytes());
    let checksum = checksum(&bytes, &payload);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes.extend_from_slice(&payload);
    bytes
}

/// The table of a file's bytes.
pub fn decode(bytes: &[u8]) -> Result<Stored, FileError> {
    let (header, rest) = bytes
        .split_at_checked(HEADER_BYTES)
        .ok_or(FileError::Damaged)?;
    let (magic, fields) = header.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err(FileError::Magic);
    }
    let (schema, fields) = fields.split_at(4);
    let (written, length) = fields.split_at(8);
    let schema = u32::from_le_bytes(schema.try_into().unwrap_or_default());
    if schema > SCHEMA {
        return Err(FileError::Newer { found: schema });
    }
    let (sum, payload) = rest
        .split_at_checked(CHECKSUM_BYTES)
        .ok_or(FileError::Damaged)?;
    let length = u32::from_le_bytes(length.try_into().unwrap_or_default());
    let sum = u64::from_le_bytes(sum.try_into().unwrap_or_default());
    if u32::try_from(payload.len()) != Ok(length)
        || payload.len() > MESSAGE_BYTES_MAX
        || sum != checksum(header, payload)
    {
        return Err(FileError::Damaged);
    }
    Ok(Stored {
        table: EncodedTable::from_snapshot(Snapshot::decode(payload)?)?,
        written_unix_ms: u64::from_le_bytes(written.try_into().unwrap_or_default()),
    })
}

fn checksum(header: &[u8], payload: &[u8]) -> u64 {
    let mut sum = Xxh64::new(0);
    sum.update(header);
    sum.update(payload);
    sum.digest()
}

/// Reads the file; none if there is no such file.
pub fn read(path: &Path) -> Result<Option<Stored>, FileError> {
    match fs::read(path) {
        Ok(bytes) => decode(&bytes).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Replaces the file: a crash leaves the old one or the new one. Blocks; a file has one writer.
pub fn write(path: &Path, table: &EncodedTable, unix_ms: u64) -> Result<(), FileError> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let new = path.with_extension("new");
    fs::create_dir_all(folder)?;
    let mut file = File::create(&new)?;
    file.write_all(&encode(table, unix_ms))?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(folder)?.sync_all()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use atoll_routing::TableVersion;

    use super::*;

    fn table(number: u64) -> EncodedTable {
        let version = TableVersion {
            world: "w".into(),
            number,
        };
        let entries = BTreeMap::from([("scheme".to_owned(), vec![1, 2, 3].into())]);
        EncodedTable::new(version, entries)
    }

    #[test]
    fn what_is_written_is_read_again_and_replaced_as_a_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/table");
        assert_eq!(read(&path).unwrap(), None);
        for number in [1, 2] {
            write(&path, &table(number), 99).unwrap();
            let stored = Stored {
                table: table(number),
                written_unix_ms: 99,
            };
            assert_eq!(read(&path).unwrap(), Some(stored));
        }
    }

    #[test]
    fn any_damage_is_noticed() {
        let good = encode(&table(1), 99);
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            assert!(decode(&bad).is_err(), "byte {at} flipped");
            assert!(decode(&good[..at]).is_err(), "cut at {at}");
        }
        let mut long = good;
        long.push(0);
        assert!(matches!(decode(&long), Err(FileError::Damaged)));
    }

    #[test]
    fn the_file_of_a_newer_version_says_what_to_do_next() {
        let mut newer = encode(&table(1), 99);
        newer[8] = 2;
        let error = decode(&newer).unwrap_err().to_string();
        assert!(
            error.contains("start the version of Atoll that wrote it"),
            "{error}"
        );
    }
}
