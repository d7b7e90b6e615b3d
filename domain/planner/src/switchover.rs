//! What a person orders: one cell elsewhere, a whole city evacuated, everything home again. Where
//! a primary cannot be reached any more, the same order recruits who is left.

use atoll_topology::{CellId, CellKind, RegionId};

use crate::choose::Adoption;
use crate::groups::{Adopt, Ask, Draft};
use crate::limits::Limits;
use crate::observed::{Avoid, Observed};
use crate::plan::{Pace, Plan};
use crate::refusal::{Refusal, Refused};

/// What is ordered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// All shards of a cell go to another cell.
    SwitchCell {
        /// The cell that gives.
        cell: CellId,
        /// A cell, or a region in which the planner chooses one.
        to: String,
    },
    /// Everything leaves a region: its cells' shards and all primaries.
    EvacuateRegion {
        /// Which one.
        region: RegionId,
    },
    /// Everything goes back to where the topology prefers it.
    Failback,
}

/// Plans an order. The order of a person is not held back by the guards of automation.
pub fn plan_switchover(
    observed: &Observed,
    order: &Order,
    limits: &Limits,
) -> Result<Plan, Refused> {
    let mut draft = Draft::new(observed, limits);
    let title = match order {
        Order::SwitchCell { cell, to } => {
            sharded(observed, cell)?;
            let to = destination(observed, limits, cell, to)?;
            if to == *cell {
                return Err(Refusal::NothingToDo(format!("cell {cell} is where it is")).into());
            }
            for record in observed.records.values() {
                if record.runs.iter().any(|run| run.cell == *cell) {
                    let ask = Ask {
                        leaves: &|run| run.cell == *cell,
                        adopt: &Adopt::To(to.clone()),
                        avoid: &Avoid::default(),
                        unplanned: false,
                        over: None,
                    };
                    draft.group(record, &ask);
                }
            }
            let region = observed.region_of_cell(&to);
            let region = region
                .map(|region| format!(" in {region}"))
                .unwrap_or_default();
            format!("switch cell {cell} to cell {to}{region}")
        }
        Order::EvacuateRegion { region } => {
            if !observed.topology.regions.contains_key(region) {
                return Err(Refusal::NoSuchRegion(region.clone()).into());
            }
            let avoid = Avoid {
                region: Some(region.clone()),
                ..Avoid::default()
            };
            for record in observed.records.values() {
                let ask = Ask {
                    leaves: &|run| avoid.has_cell(observed, &run.cell),
                    adopt: &Adopt::Near,
                    avoid: &avoid,
                    unplanned: false,
                    over: None,
                };
                draft.group(record, &ask);
            }
            format!("evacuate region {region}")
        }
        Order::Failback => {
            for record in observed.records.values() {
                let ask = Ask {
                    leaves: &|_| true,
                    adopt: &Adopt::Home,
                    avoid: &Avoid::default(),
                    unplanned: false,
                    over: None,
                };
                draft.group(record, &ask);
            }
            "fail back to the preferred owners".to_owned()
        }
    };
    draft.finish(title, false, Pace::OneByOne)
}

fn sharded(observed: &Observed, cell: &CellId) -> Result<(), Refusal> {
    let found = observed.topology.cells.get(cell);
    match found.filter(|found| found.kind == CellKind::Sharded) {
        Some(_) => Ok(()),
        None => Err(Refusal::NoSuchCell(cell.to_string())),
    }
}

/// The cell that is named, or the one with the fewest shards in the region that is named.
fn destination(
    observed: &Observed,
    limits: &Limits,
    from: &CellId,
    to: &str,
) -> Result<CellId, Refusal> {
    if let Ok(cell) = CellId::parse(to)
        && observed.topology.cells.contains_key(&cell)
    {
        return sharded(observed, &cell).map(|()| cell);
    }
    let region = RegionId::parse(to)
        .ok()
        .filter(|id| observed.topology.regions.contains_key(id));
    let region = region.ok_or_else(|| Refusal::NoSuchCell(to.to_owned()))?;
    let avoid = Avoid {
        cells: vec![from.clone()],
        ..Avoid::default()
    };
    let found = Adoption::new(observed).cell(observed, limits, &avoid, &region);
    found
        .filter(|cell| observed.region_of_cell(cell) == Some(&region))
        .ok_or_else(|| Refusal::NoSuchCell(format!("in {region} that is up")))
}
