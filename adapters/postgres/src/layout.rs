//! Where a member keeps its things.

use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::{Account, Error};

/// What fits into `sockaddr_un`, without its closing zero.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// The socket's file name, fixed by PostgreSQL for port 5432.
const SOCKET: &str = ".s.PGSQL.5432";

/// The folders of one member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// Makes the folders that PostgreSQL's account may enter: `run` (its socket), `link` (ours,
    /// for its receiver) and `scratch`. `root` itself stays ours, but can be passed through.
    pub fn prepare(root: &Path, account: Option<Account>) -> Result<Self, Error> {
        let layout = Self {
            root: root.to_owned(),
        };
        fs::create_dir_all(root).map_err(Error::file("create", root))?;
        mode(root, 0o755)?;
        for folder in [layout.run(), layout.link(), layout.copy(), layout.scratch()] {
            fs::create_dir_all(&folder).map_err(Error::file("create", &folder))?;
            mode(&folder, 0o700)?;
            if let Some(account) = account {
                account.give(&folder)?;
            }
        }
        for socket in [layout.socket(), layout.link_socket()] {
            if socket.as_os_str().as_bytes().len() > SOCKET_PATH_BYTES_MAX {
                return Err(Error::SocketPath {
                    path: socket,
                    limit: SOCKET_PATH_BYTES_MAX,
                });
            }
        }
        Ok(layout)
    }

    /// All of it.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// PostgreSQL's data directory.
    pub fn data(&self) -> PathBuf {
        self.root.join("pg")
    }

    /// Its log files.
    pub fn wal(&self) -> PathBuf {
        self.data().join("pg_wal")
    }

    /// Where PostgreSQL puts its socket.
    pub fn run(&self) -> PathBuf {
        self.root.join("run")
    }

    /// PostgreSQL's socket.
    pub fn socket(&self) -> PathBuf {
        self.run().join(SOCKET)
    }

    /// Where the agent listens for its own PostgreSQL's receiver.
    pub fn link(&self) -> PathBuf {
        self.root.join("link")
    }

    /// The agent's socket for the receiver.
    pub fn link_socket(&self) -> PathBuf {
        self.link().join(SOCKET)
    }

    /// Where the agent listens for a rewind or a clone.
    pub fn copy(&self) -> PathBuf {
        self.root.join("copy")
    }

    /// The agent's socket for a rewind or a clone.
    pub fn copy_socket(&self) -> PathBuf {
        self.copy().join(SOCKET)
    }

    /// For scripts and copies in the making; writable for PostgreSQL's account.
    pub fn scratch(&self) -> PathBuf {
        self.root.join("scratch")
    }

    /// The configuration, outside of the data directory so that no rewind or clone overwrites it.
    pub fn settings(&self) -> PathBuf {
        self.root.join("postgresql.conf")
    }

    /// Who may enter.
    pub fn hba(&self) -> PathBuf {
        self.root.join("pg_hba.conf")
    }

    /// What PostgreSQL and its tools print.
    pub fn log(&self) -> PathBuf {
        self.root.join("postgres.log")
    }

    /// The agent's promise.
    pub fn promise(&self) -> PathBuf {
        self.root.join("promise")
    }
}

/// Sets a file's permissions.
pub fn mode(path: &Path, bits: u32) -> Result<(), Error> {
    fs::set_permissions(path, Permissions::from_mode(bits))
        .map_err(Error::file("set the mode of", path))
}
