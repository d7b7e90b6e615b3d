//! A whole world on one machine: topology → addresses, configurations, processes, links.
//!
//! Behind `atoll dev`, and used by tests. It starts the `atoll` binary and knows no service but by
//! its configuration file.
#![warn(missing_docs)]

mod board;
mod config;
mod directory;
mod disks;
mod etcd;
mod keeper;
mod links;
mod local;
mod number;
mod options;
mod order;
mod orders;
mod plan;
mod status;
mod supervisor;

pub use config::ConfigError;
pub use directory::{BadDirectory, Directory, PATH_BYTES_MAX, worlds_of_this_user};
pub use disks::{DiskError, Disks};
pub use etcd::{EtcdConfig, EtcdError, serve_etcd};
pub use links::{
    Change, LinkError, Ways, change_link, edit_links, links_of, read_links, write_links,
};
pub use local::{LocalWorld, Up, WorldError};
pub use number::{NoNumber, WORLDS_MAX, WorldNumber};
pub use options::{BadFile, Canary, OUTSIDE_ROUND_TRIP_MS, Options, Record, Store};
pub use order::{OrderError, Outcome};
pub use plan::{
    OUTSIDE, PROCESSES_PER_ZONE_MAX, Place, Plan, Port, REGIONS_MAX, Role, TooLarge,
    ZONES_PER_REGION_MAX,
};
pub use status::{Doing, ProcessStatus, WorldStatus};
pub use supervisor::{SuperviseError, supervise};
