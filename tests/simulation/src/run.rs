//! One run of one seed.

use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Result;
use atoll_ownership::record::GroupRecord;
use atoll_store::Store;
use futures::FutureExt;

use crate::faults::{Fault, Faults};
use crate::member::Weakened;
use crate::oracle::{Counts, LOOK_MS};
use crate::trace::{self, Trace};
use crate::world::World;

/// What a run is made of.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Everything random is drawn from it.
    pub seed: u64,
    /// How long faults and orders go on, in virtual time, after the world has been born.
    pub length: Duration,
    /// Which faults; none: as drawn from the seed.
    pub faults: Option<Vec<(Duration, Fault)>>,
    /// Protections that are switched off, for negative controls.
    pub weakened: Weakened,
    /// Whether the store has a network of its own: a replica of control may then reach it and
    /// nothing else.
    pub store_apart: bool,
}

impl Setup {
    /// The usual run of a seed.
    pub fn of(seed: u64) -> Self {
        Self {
            seed,
            length: Duration::from_secs(12),
            faults: None,
            weakened: Weakened::default(),
            store_apart: seed % 4 == 3,
        }
    }
}

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    /// Of which seed.
    pub seed: u64,
    /// Everything that the services said, and all faults, in order.
    pub trace: Vec<String>,
    /// What was broken; empty if all is well.
    pub violations: Vec<String>,
    /// How much happened.
    pub counts: Counts,
    /// Executions that the operator began.
    pub executions: u64,
}

/// How long the world has to come to life.
const BIRTH_LIMIT: Duration = Duration::from_secs(20);
/// How long everything has to be well again after the last fault.
const RECOVERY_LIMIT: Duration = Duration::from_secs(40);
/// One step of the simulator.
const TICK: Duration = Duration::from_millis(1);

/// Runs a seed to its end.
pub fn run(setup: &Setup) -> Result<History> {
    let mut world = World::new(setup.seed, setup.weakened, setup.store_apart)?;
    let trace = Trace::begin(world.names(), world.directory());
    let ran = simulate(setup, &mut world);
    let trace = trace.end();
    ran?;
    Ok(History {
        seed: setup.seed,
        trace,
        violations: world.oracle.violations(),
        counts: world.oracle.counts(),
        executions: world.operator.begun(),
    })
}

fn simulate(setup: &Setup, world: &mut World) -> Result<()> {
    let mut sim = turmoil::Builder::new()
        .rng_seed(setup.seed)
        .simulation_duration(Duration::from_secs(3600))
        .tick_duration(TICK)
        .tcp_capacity(4096)
        .min_message_latency(Duration::ZERO)
        .max_message_latency(Duration::from_millis(2))
        .build();
    world.populate(&mut sim)?;
    world.spread(&sim);
    let mut run = Run {
        sim,
        world,
        ticks: 0,
    };
    run.all_write("everybody can write", BIRTH_LIMIT)?;
    let born = run.sim.elapsed();
    let mut faults = match &setup.faults {
        Some(given) => Faults::given(given.clone()),
        None => Faults::drawn(setup.seed, setup.length, run.world),
    };
    while run.sim.elapsed() < born + setup.length {
        let now = run.sim.elapsed() - born;
        faults.act(now, &mut run.sim, run.world);
        run.step()?;
    }
    faults.heal(&mut run.sim, run.world);
    run.all_write("everybody can write again", RECOVERY_LIMIT)?;
    run.world.quiet.store(true, Ordering::Relaxed);
    run.until("all members agree", RECOVERY_LIMIT, Run::agreed)?;
    for group in run.world.topology.groups.keys() {
        run.world.oracle.settled(group, &run.world.disks);
    }
    Ok(())
}

struct Run<'s, 'w> {
    sim: turmoil::Sim<'s>,
    world: &'w mut World,
    ticks: u64,
}

impl Run<'_, '_> {
    fn step(&mut self) -> Result<()> {
        let stepped = self.sim.step();
        stepped.map_err(|error| anyhow::anyhow!("the simulator: {error}"))?;
        self.ticks += 1;
        trace::now(self.sim.elapsed());
        if self.ticks.is_multiple_of(LOOK_MS) {
            self.look();
        }
        Ok(())
    }

    /// Reads the group records past everybody.
    fn look(&self) {
        let Some(Ok(listed)) = self.world.memory.list("/group/").now_or_never() else {
            return;
        };
        for (_, found) in listed.entries {
            if let Ok(record) = serde_json::from_slice::<GroupRecord>(&found.value) {
                self.world.oracle.record(&record);
            }
        }
    }

    /// Steps until every user has had a write done since now.
    fn all_write(&mut self, what: &str, limit: Duration) -> Result<()> {
        let users = self.world.users.clone();
        let count = |run: &Self| -> Vec<usize> {
            let oracle = &run.world.oracle;
            users
                .iter()
                .map(|user| oracle.acknowledged_of(user).len())
                .collect()
        };
        let before = count(self);
        self.until(what, limit, |run| {
            count(run).iter().zip(&before).all(|(now, then)| now > then)
        })
    }

    /// Whether the members of each group have the same writes.
    fn agreed(&mut self) -> bool {
        let oracle = &self.world.oracle;
        let mut groups = self.world.topology.groups.keys();
        groups.all(|group| oracle.agree(group, &self.world.disks))
    }

    /// Steps until something holds; that it never does is itself a violation.
    fn until(
        &mut self,
        what: &str,
        limit: Duration,
        mut holds: impl FnMut(&mut Self) -> bool,
    ) -> Result<()> {
        let end = self.sim.elapsed() + limit;
        while !holds(self) {
            if self.sim.elapsed() >= end {
                let text = format!("not within {limit:?}: {what}");
                self.world.oracle.violation("LIVENESS", &text);
                return Ok(());
            }
            self.step()?;
        }
        Ok(())
    }
}
