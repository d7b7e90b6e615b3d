//! The W of a world's addresses: free on this machine for as long as the world runs.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use thiserror::Error;

/// The largest world number; 0 belongs to no world (127.0.x.x is everybody's).
pub const WORLDS_MAX: u8 = 250;

/// Where the numbers of this machine are handed out, for all users.
const NUMBERS: &str = "/var/tmp/atoll-worlds";

/// A number, ours until this is dropped or the process ends, however it ends.
#[derive(Debug)]
pub struct WorldNumber {
    number: u8,
    _lock: File,
}

/// Why there is no number.
#[derive(Debug, Error)]
pub enum NoNumber {
    /// All are taken.
    #[error("{WORLDS_MAX} worlds run on this machine; end one of them")]
    AllTaken,
    /// The directory of locks cannot be used.
    #[error("world numbers are handed out in {NUMBERS}, which cannot be used")]
    Directory(#[from] io::Error),
}

impl WorldNumber {
    /// Takes `wish` if it is free, else the first free one.
    pub fn take(wish: Option<u8>) -> Result<Self, NoNumber> {
        let directory = Path::new(NUMBERS);
        if !directory.try_exists()? {
            fs::create_dir_all(directory)?;
            // Like /tmp: all users take numbers here, and nobody removes another's.
            fs::set_permissions(directory, Permissions::from_mode(0o1777))?;
        }
        let wish = wish.filter(|w| (1..=WORLDS_MAX).contains(w));
        for number in wish.into_iter().chain(1..=WORLDS_MAX) {
            let path = directory.join(number.to_string());
            // A lock file of another user may be out of our reach: then it is not our number.
            let mut open = OpenOptions::new();
            open.read(true).write(true).create(true).truncate(false);
            let Ok(lock) = open.open(&path) else { continue };
            if lock.try_lock().is_ok() {
                return Ok(Self {
                    number,
                    _lock: lock,
                });
            }
        }
        Err(NoNumber::AllTaken)
    }

    /// The number.
    pub fn get(&self) -> u8 {
        self.number
    }
}
