//! Where a world keeps what: `world.yaml`, `config/`, `data/`, `log/`, `run/`.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use thiserror::Error;

/// The longest path of a world's directory, in bytes: sockets below it have names of at most 107.
pub const PATH_BYTES_MAX: usize = 56;

/// A world's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    root: PathBuf,
}

/// Why a directory cannot hold a world.
#[derive(Debug, Error)]
pub enum BadDirectory {
    /// Sockets below it would have names that are too long.
    #[error("{} is too long for a world's directory: {} bytes > {PATH_BYTES_MAX} (PostgreSQL's sockets lie below it); choose a shorter one with --dir", path.display(), path.as_os_str().len())]
    TooLong {
        /// Which one.
        path: PathBuf,
    },
    /// PostgreSQL's user could not get in.
    #[error("PostgreSQL never runs as root, and its user cannot enter {}: chmod o+x it, or choose another directory with --dir", path.display())]
    Closed {
        /// The directory that bars the way.
        path: PathBuf,
    },
    /// It cannot be made.
    #[error("{} cannot be made or entered", path.display())]
    Io {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Nobody brought up a world there.
    #[error("there is no world in {}; bring one up with: atoll dev up -f FILE --dir {}", path.display(), path.display())]
    NoWorld {
        /// Which one.
        path: PathBuf,
    },
}

/// Where this user's worlds lie unless told otherwise: a place that other users can enter, because
/// PostgreSQL has to reach its data there.
pub fn worlds_of_this_user() -> PathBuf {
    PathBuf::from(format!("/var/tmp/atoll-{}", nix::unistd::getuid()))
}

impl Directory {
    /// Makes the directory and all that lies in it.
    pub fn make(root: &Path) -> Result<Self, BadDirectory> {
        make_open(root)?;
        let io = |path: &Path| {
            let path = path.to_path_buf();
            move |source| BadDirectory::Io { path, source }
        };
        let root = root.canonicalize().map_err(io(root))?;
        if root.as_os_str().len() > PATH_BYTES_MAX {
            return Err(BadDirectory::TooLong { path: root });
        }
        let directory = Self { root };
        for path in [
            directory.config(),
            directory.data(),
            directory.log(),
            directory.run(),
        ] {
            make_open(&path)?;
        }
        if nix::unistd::geteuid().is_root() {
            for above in directory.root.ancestors() {
                let mode = fs::metadata(above).map_err(io(above))?.permissions().mode();
                if mode & 0o001 == 0 {
                    return Err(BadDirectory::Closed {
                        path: above.to_path_buf(),
                    });
                }
            }
        }
        Ok(directory)
    }

    /// A directory that holds a world.
    pub fn open(root: &Path) -> Result<Self, BadDirectory> {
        let missing = || BadDirectory::NoWorld {
            path: root.to_path_buf(),
        };
        let directory = Self {
            root: root.canonicalize().map_err(|_| missing())?,
        };
        if directory.world_record().try_exists().unwrap_or(false) {
            Ok(directory)
        } else {
            Err(missing())
        }
    }

    /// The world's directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The topology file.
    pub fn topology(&self) -> PathBuf {
        self.root.join("world.yaml")
    }

    /// Configurations of all processes.
    pub fn config(&self) -> PathBuf {
        self.root.join("config")
    }

    /// The configuration of one process.
    pub fn config_of(&self, process: &str) -> PathBuf {
        self.config().join(format!("{process}.yaml"))
    }

    /// Data of all processes.
    pub fn data(&self) -> PathBuf {
        self.root.join("data")
    }

    /// The data of one process, and its current directory.
    pub fn data_of(&self, process: &str) -> PathBuf {
        self.data().join(process)
    }

    /// Logs of all processes.
    pub fn log(&self) -> PathBuf {
        self.root.join("log")
    }

    /// The log of one process: its standard error.
    pub fn log_of(&self, process: &str) -> PathBuf {
        self.log().join(format!("{process}.log"))
    }

    /// The standard output of one process: its ready line.
    pub fn output_of(&self, process: &str) -> PathBuf {
        self.log().join(format!("{process}.out"))
    }

    /// What is known about the running world.
    pub fn run(&self) -> PathBuf {
        self.root.join("run")
    }

    /// The links between regions.
    pub fn links(&self) -> PathBuf {
        self.run().join("links.json")
    }

    /// The offset of one process's clock, in milliseconds.
    pub fn clock_of(&self, process: &str) -> PathBuf {
        self.run().join(format!("{process}.clock"))
    }

    /// The library that slows disks down, and how much.
    pub fn slow_disks(&self) -> PathBuf {
        self.run().join("slow-disks")
    }

    /// Every process and what it does now.
    pub fn processes(&self) -> PathBuf {
        self.run().join("processes.json")
    }

    /// The plan and the options that this world was brought up with.
    pub fn world_record(&self) -> PathBuf {
        self.run().join("world.json")
    }

    /// The key by which gateways know one another.
    pub fn peer_key(&self) -> PathBuf {
        self.run().join("peer.key")
    }

    /// Where the supervisor takes orders.
    pub fn socket(&self) -> PathBuf {
        self.run().join("supervisor.sock")
    }

    /// Held by the supervisor for as long as it lives; `None`: another one holds it.
    pub fn lock(&self) -> io::Result<Option<File>> {
        let file = File::create(self.run().join("lock"))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }
}

/// Makes a directory that other users may enter and list, whatever the umask says.
fn make_open(path: &Path) -> Result<(), BadDirectory> {
    let io = |source| BadDirectory::Io {
        path: path.to_path_buf(),
        source,
    };
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent().filter(|p| !p.is_dir()) {
        make_open(parent)?;
    }
    DirBuilder::new().mode(0o755).create(path).map_err(io)?;
    fs::set_permissions(path, Permissions::from_mode(0o755)).map_err(io)
}
