//! Which fault comes next: drawn from the seed, so that a campaign can be played again.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result};
use atoll_api::WorldStatus;
use atoll_world::{ProcessStatus, Role};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::means::Means;
use crate::stage::Stage;

/// Frozen, cut or slow for this long.
const SHORT: std::ops::Range<u64> = 500..4_000;
/// Long enough for detection to act.
const LONG: std::ops::Range<u64> = 2_500..6_000;
/// A slow link's delay, one way.
const SLOW_MS: std::ops::Range<u32> = 30..120;
/// A slow disk's addition to every wait.
const SLOW_DISK_MS: std::ops::Range<u32> = 50..600;
/// How wrong a clock may be: less than a limit of ours, more than most, more than all.
const OFFSETS_MS: [i64; 3] = [1_000, 60_000, 86_400_000];

/// What is done to a world.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A process is killed with -9 and started again.
    Kill { process: String, down: Duration },
    /// All of a member's PostgreSQL is killed with -9; its agent lives.
    KillPostgres { agent: String },
    /// One process of a member's PostgreSQL is killed with -9.
    KillBackend { agent: String, which: usize },
    /// A process is frozen and thawed.
    Freeze { process: String, lasting: Duration },
    /// All of a region is frozen at one instant and thawed.
    FreezeRegion { region: String, lasting: Duration },
    /// All of a region is frozen, killed with -9, and started again.
    LoseRegion { region: String, down: Duration },
    /// Two regions do not hear each other.
    Cut {
        a: String,
        b: String,
        lasting: Duration,
    },
    /// One region does not hear the other, which hears it.
    CutOneWay {
        from: String,
        to: String,
        lasting: Duration,
    },
    /// One region hears nobody, and nobody hears it; control included.
    Isolate { region: String, lasting: Duration },
    /// Control and a region do not hear each other.
    CutControl { region: String, lasting: Duration },
    /// A link is slow.
    Slow {
        a: String,
        b: String,
        delay_ms: u32,
        lasting: Duration,
    },
    /// A member's disk is filled to the last page, and freed.
    DiskFull { agent: String, lasting: Duration },
    /// Everything that waits for a member's disk waits longer.
    SlowDisk {
        agent: String,
        delay_ms: u32,
        lasting: Duration,
    },
    /// The clocks of a process, or of a region, are wrong.
    Clock {
        target: String,
        offset_ms: i64,
        lasting: Duration,
    },
    /// All members of a data group are killed with -9 and started again.
    RestartGroup { group: String },
    /// Everything but the users is killed with -9 and started again.
    RestartAll,
    /// Two of the others at once.
    Both(Box<Fault>, Box<Fault>),
}

impl Fault {
    /// Its name in the report.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Kill { .. } => "kill",
            Self::KillPostgres { .. } => "kill-postgres",
            Self::KillBackend { .. } => "kill-backend",
            Self::Freeze { .. } => "freeze",
            Self::FreezeRegion { .. } => "freeze-region",
            Self::LoseRegion { .. } => "lose-region",
            Self::Cut { .. } => "cut",
            Self::CutOneWay { .. } => "cut-one-way",
            Self::Isolate { .. } => "isolate-region",
            Self::CutControl { .. } => "cut-control",
            Self::Slow { .. } => "slow-link",
            Self::DiskFull { .. } => "disk-full",
            Self::SlowDisk { .. } => "slow-disk",
            Self::Clock { .. } => "clock",
            Self::RestartGroup { .. } => "restart-group",
            Self::RestartAll => "restart-all",
            Self::Both(..) => "two-at-once",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |d: &Duration| d.as_millis();
        match self {
            Self::Kill { process, down } => write!(f, "kill {process}, down {} ms", ms(down)),
            Self::KillPostgres { agent } => write!(f, "kill PostgreSQL of {agent}"),
            Self::KillBackend { agent, which } => {
                write!(f, "kill process {which} of PostgreSQL of {agent}")
            }
            Self::Freeze { process, lasting } => write!(f, "freeze {process} {} ms", ms(lasting)),
            Self::FreezeRegion { region, lasting } => {
                write!(f, "freeze all of {region} {} ms", ms(lasting))
            }
            Self::LoseRegion { region, down } => write!(f, "lose {region} {} ms", ms(down)),
            Self::Cut { a, b, lasting } => write!(f, "cut {a} and {b} {} ms", ms(lasting)),
            Self::CutOneWay { from, to, lasting } => {
                write!(f, "cut {from} to {to}, one way, {} ms", ms(lasting))
            }
            Self::Isolate { region, lasting } => write!(f, "isolate {region} {} ms", ms(lasting)),
            Self::CutControl { region, lasting } => {
                write!(f, "cut {region} and the outside {} ms", ms(lasting))
            }
            Self::Slow {
                a,
                b,
                delay_ms,
                lasting,
            } => {
                write!(
                    f,
                    "{a} and {b} {delay_ms} ms apart, {} ms long",
                    ms(lasting)
                )
            }
            Self::DiskFull { agent, lasting } => {
                write!(f, "fill the disk of {agent} {} ms", ms(lasting))
            }
            Self::SlowDisk {
                agent,
                delay_ms,
                lasting,
            } => {
                write!(
                    f,
                    "slow the disk of {agent} by {delay_ms} ms, {} ms long",
                    ms(lasting)
                )
            }
            Self::Clock {
                target,
                offset_ms,
                lasting,
            } => {
                write!(
                    f,
                    "clock of {target} off by {offset_ms} ms, {} ms long",
                    ms(lasting)
                )
            }
            Self::RestartGroup { group } => write!(f, "restart all members of {group}"),
            Self::RestartAll => write!(f, "restart everything"),
            Self::Both(a, b) => write!(f, "{a}, and {b}"),
        }
    }
}

/// What a person orders meanwhile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ordered {
    /// A cell's users move to another city.
    Switch { cell: String, to: String },
    /// Everything goes home.
    Failback,
}

/// All chance of a campaign.
pub(crate) struct Chance(StdRng);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }

    /// Whether something is ordered beside the next fault.
    pub(crate) fn orders_meanwhile(&mut self) -> bool {
        self.0.random_range(0..3_u32) == 0
    }

    pub(crate) fn order(&mut self, status: &WorldStatus) -> Ordered {
        let owning: Vec<_> = status
            .cells
            .iter()
            .filter(|c| !c.shards.is_empty())
            .collect();
        let Some(cell) = self.one(&owning) else {
            return Ordered::Failback;
        };
        let mut regions: Vec<String> = status.cells.iter().map(|c| c.region.to_string()).collect();
        regions.sort();
        regions.dedup();
        regions.retain(|region| *region != cell.region.as_str());
        match self.one(&regions) {
            Some(to) if self.0.random_range(0..3_u32) > 0 => Ordered::Switch {
                cell: cell.name.to_string(),
                to: to.clone(),
            },
            _ => Ordered::Failback,
        }
    }

    /// The next fault.
    pub(crate) fn fault(&mut self, stage: &Stage, means: &Means) -> Result<Fault> {
        if self.0.random_range(0..10_u32) == 0 {
            let (a, b) = (self.single(stage, means)?, self.single(stage, means)?);
            return Ok(Fault::Both(Box::new(a), Box::new(b)));
        }
        self.single(stage, means)
    }

    fn single(&mut self, stage: &Stage, means: &Means) -> Result<Fault> {
        let processes = stage.world.status()?.processes;
        let mut regions: Vec<String> = processes
            .iter()
            .filter_map(|p| p.place.region.as_ref().map(ToString::to_string))
            .collect();
        regions.sort();
        regions.dedup();
        let region = self
            .one(&regions)
            .context("a world without regions")?
            .clone();
        let others: Vec<String> = regions.iter().filter(|r| **r != region).cloned().collect();
        let other = self
            .one(&others)
            .context("a world with one region")?
            .clone();
        let agents = names(&processes, &[Role::Agent]);
        let agent = self
            .one(&agents)
            .context("a world without members")?
            .clone();
        let ours = [
            Role::Control,
            Role::Etcd,
            Role::Mesh,
            Role::Gateway,
            Role::SqlRouter,
            Role::Agent,
        ];
        let all = names(&processes, &ours);
        let process = self.one(&all).context("a world without processes")?.clone();
        let group = processes.iter().find(|p| p.name.as_str() == agent);
        let group = group.and_then(|p| p.place.group.as_ref());
        let group = group.context("a member without a group")?.to_string();
        let (short, long) = (self.lasting(SHORT), self.lasting(LONG));
        let full = self.one(&means.own_disks(stage)?).cloned();
        Ok(match self.0.random_range(0..50_u32) {
            0..=6 => Fault::Kill {
                process,
                down: short,
            },
            7..=11 => Fault::KillPostgres { agent },
            12..=14 => Fault::KillBackend {
                agent,
                which: self.0.random_range(0..16_usize),
            },
            15..=20 => Fault::Freeze {
                process,
                lasting: short,
            },
            21..=22 => Fault::FreezeRegion {
                region,
                lasting: long,
            },
            23 => Fault::LoseRegion { region, down: long },
            24..=26 => Fault::Cut {
                a: region,
                b: other,
                lasting: short,
            },
            27..=30 => Fault::CutOneWay {
                from: region,
                to: other,
                lasting: short,
            },
            31..=32 => Fault::Isolate {
                region,
                lasting: long,
            },
            33..=34 => Fault::CutControl {
                region,
                lasting: short,
            },
            35..=37 => Fault::Slow {
                a: region,
                b: other,
                delay_ms: self.0.random_range(SLOW_MS),
                lasting: short,
            },
            38 => Fault::RestartGroup { group },
            39..=42 => match full {
                Some(agent) => Fault::DiskFull {
                    agent,
                    lasting: long,
                },
                None => Fault::KillPostgres { agent },
            },
            43..=46 if means.slow_disks.is_ok() => Fault::SlowDisk {
                agent,
                delay_ms: self.0.random_range(SLOW_DISK_MS),
                lasting: long,
            },
            43..=48 => {
                let target = if self.0.random_range(0..2_u32) == 0 {
                    region
                } else {
                    process
                };
                let size = self.one(&OFFSETS_MS).copied().unwrap_or_default();
                Fault::Clock {
                    target,
                    offset_ms: self.0.random_range(-size..=size),
                    lasting: long,
                }
            }
            _ => Fault::RestartAll,
        })
    }

    fn lasting(&mut self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.0.random_range(range))
    }

    fn one<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        if of.is_empty() {
            return None;
        }
        of.get(self.0.random_range(0..of.len()))
    }
}

fn names(processes: &[ProcessStatus], roles: &[Role]) -> Vec<String> {
    let of_role = processes.iter().filter(|p| roles.contains(&p.place.role));
    of_role.map(|p| p.name.to_string()).collect()
}
