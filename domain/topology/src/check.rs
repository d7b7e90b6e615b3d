//! The rules between resources: from a draft to a topology that cannot be wrong.

mod groups;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

use crate::id::{CellId, RegionId, ShardId, ZoneId};
use crate::model::{
    Cell, CellKind, Cluster, Region, Route, RouteKind, ShardMap, ShardScheme, Slot, Topology, Zone,
};
use crate::reader::Placed;
use crate::shards::format_shards;
use crate::spec::{CellDraft, Draft, MapDraft, Ranges, RegionDraft, RouteDraft};
use crate::violation::{Rule, Spot, Violations};

/// Shards of the `digits` scheme: two decimal digits.
const DIGITS_SHARDS: u16 = 100;

pub(crate) fn check(draft: Draft, mut out: Violations) -> Result<Topology, Violations> {
    let out_ref = &mut out;
    let region_ids = unique("region", draft.regions.iter().map(|r| &r.id), out_ref);
    unique("zone", draft.zones.iter().map(|z| &z.id), out_ref);
    unique("cluster", draft.clusters.iter().map(|c| &c.id), out_ref);
    unique("cell", draft.cells.iter().map(|c| &c.id), out_ref);
    unique("data group", draft.groups.iter().map(|g| &g.id), out_ref);
    unique("route", draft.routes.iter().map(|r| &r.id), out_ref);

    let mut check = Check {
        zone_ids: draft.zones.iter().map(|z| z.id.value.clone()).collect(),
        zones: BTreeMap::new(),
        cells: draft
            .cells
            .iter()
            .map(|c| (c.id.value.clone(), c.kind))
            .collect(),
        regions: region_ids,
        out: &mut out,
    };
    let regions = check.regions(&draft.regions);
    for zone in &draft.zones {
        if let Some(region) = &zone.region
            && check.region(region)
        {
            check.zones.insert(
                zone.id.value.clone(),
                Zone {
                    region: region.value.clone(),
                },
            );
        }
    }
    let clusters = draft.clusters.iter().filter_map(|cluster| {
        let zone = cluster.zone.as_ref()?;
        check.zone(zone);
        Some((
            cluster.id.value.clone(),
            Cluster {
                zone: zone.value.clone(),
            },
        ))
    });
    let clusters = clusters.collect();
    let cells: BTreeMap<_, _> = draft
        .cells
        .iter()
        .filter_map(|cell| check.cell(cell))
        .collect();
    check.cell_counts(&draft.cells);
    let shard_map = check.shard_map(&draft.maps);
    let count = draft.maps.first().and_then(|map| map.shards.as_ref());
    let groups = check.groups(&draft.groups, count);
    let routes = check.routes(draft.routes);
    let zones = check.zones;

    // Without a shard map there is at least one violation, so the placeholder never gets out.
    let shard_map = shard_map.unwrap_or(ShardMap {
        scheme: ShardScheme::Digits,
        shards: 0,
        owners: Vec::new(),
    });
    out.into_result(Topology {
        regions,
        zones,
        clusters,
        cells,
        groups,
        shard_map,
        routes,
    })
}

/// Names each name that stands twice, and returns all of them.
fn unique<'a, T: Ord + Clone + Display + 'a>(
    what: &str,
    ids: impl Iterator<Item = &'a Placed<T>>,
    out: &mut Violations,
) -> BTreeSet<T> {
    let mut seen: BTreeMap<T, &Spot> = BTreeMap::new();
    for id in ids {
        if let Some(first) = seen.get(&id.value) {
            let first = first
                .place
                .map(|p| format!(" (first at {p})"))
                .unwrap_or_default();
            let message = format!("a second {what} called {}{first}", id.value);
            out.add(Rule::DuplicateName, &id.spot, message);
        } else {
            seen.insert(id.value.clone(), &id.spot);
        }
    }
    seen.into_keys().collect()
}

fn list<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<_> = items.into_iter().map(|item| item.to_string()).collect();
    if items.is_empty() {
        "none".to_owned()
    } else {
        items.join(", ")
    }
}

struct Check<'a> {
    regions: BTreeSet<RegionId>,
    /// All names of zones, also of those whose region is unknown.
    zone_ids: BTreeSet<ZoneId>,
    /// Zones whose region is known.
    zones: BTreeMap<ZoneId, Zone>,
    cells: BTreeMap<CellId, Option<CellKind>>,
    out: &'a mut Violations,
}

impl Check<'_> {
    fn region(&mut self, region: &Placed<RegionId>) -> bool {
        let known = self.regions.contains(&region.value);
        if !known {
            let message = format!("no region {}; known: {}", region.value, list(&self.regions));
            self.out.add(Rule::UnknownRegion, &region.spot, message);
        }
        known
    }

    fn zone(&mut self, zone: &Placed<ZoneId>) {
        if !self.zone_ids.contains(&zone.value) {
            let message = format!("no zone {}; known: {}", zone.value, list(&self.zone_ids));
            self.out.add(Rule::UnknownZone, &zone.spot, message);
        }
    }

    fn regions(&mut self, drafts: &[RegionDraft]) -> BTreeMap<RegionId, Region> {
        let mut trips: BTreeMap<(RegionId, RegionId), u32> = BTreeMap::new();
        for draft in drafts {
            let here = &draft.id.value;
            for (other, ms) in &draft.round_trip_ms {
                if other.value == *here {
                    let message = "a region has no round trip to itself";
                    self.out.add(Rule::RoundTrip, &other.spot, message);
                } else if self.region(other) {
                    let there = trips.get(&(other.value.clone(), here.clone()));
                    if let Some(back) = there.filter(|back| *back != ms) {
                        let other_id = &other.value;
                        let message = format!(
                            "{here} to {other_id} takes {ms} ms, but {other_id} to {here} {back} ms"
                        );
                        self.out.add(Rule::RoundTrip, &other.spot, message);
                    }
                    trips.insert((here.clone(), other.value.clone()), *ms);
                }
            }
        }
        let mut regions: BTreeMap<_, _> = drafts
            .iter()
            .map(|draft| {
                (
                    draft.id.value.clone(),
                    Region {
                        round_trip_ms: BTreeMap::new(),
                    },
                )
            })
            .collect();
        for ((from, to), ms) in trips {
            for (from, to) in [(&from, &to), (&to, &from)] {
                if let Some(region) = regions.get_mut(from) {
                    region.round_trip_ms.insert(to.clone(), ms);
                }
            }
        }
        regions
    }

    fn cell(&mut self, draft: &CellDraft) -> Option<(CellId, Cell)> {
        let region = draft.region.as_ref().filter(|region| self.region(region));
        let placed = draft.slots.as_ref()?;
        let mut slots = BTreeMap::new();
        for slot in &placed.value {
            let Some(zone) = &slot.zone else { continue };
            self.zone(zone);
            if let (Some(region), Some(found)) = (region, self.zones.get(&zone.value))
                && found.region != region.value
            {
                let message = format!(
                    "zone {} is in region {}, the cell in {}",
                    zone.value, found.region, region.value
                );
                self.out.add(Rule::SlotRegion, &zone.spot, message);
            }
            if let Some(weight) = slot.weight {
                slots.insert(
                    slot.name,
                    Slot {
                        zone: zone.value.clone(),
                        weight,
                    },
                );
            }
        }
        let weights: Option<Vec<u8>> = placed.value.iter().map(|slot| slot.weight).collect();
        if let Some(weights) = weights {
            let sum: u32 = weights.iter().map(|weight| u32::from(*weight)).sum();
            if sum != 100 {
                let message = format!("weights sum to {sum}, not to 100 ({})", list(weights));
                self.out.add(Rule::Weights, &placed.spot, message);
            }
        }
        Some((
            draft.id.value.clone(),
            Cell {
                kind: draft.kind?,
                region: region?.value.clone(),
                slots,
            },
        ))
    }

    fn cell_counts(&mut self, drafts: &[CellDraft]) {
        let mut global: Option<&CellId> = None;
        let mut city: BTreeMap<&RegionId, &CellId> = BTreeMap::new();
        for draft in drafts {
            let id = &draft.id.value;
            let first = match (draft.kind, &draft.region) {
                (Some(CellKind::Global), _) => {
                    global.replace(id).map(|first| (first, "global cell"))
                }
                (Some(CellKind::City), Some(region)) => city
                    .insert(&region.value, id)
                    .map(|first| (first, "city cell of this region")),
                _ => None,
            };
            if let Some((first, what)) = first.filter(|(first, _)| *first != id) {
                let message = format!("{first} is the {what} already");
                self.out.add(Rule::CellCount, &draft.id.spot, message);
            }
        }
    }

    /// Marks each shard of `ranges` in `taken`; names those that do not exist or were taken.
    fn take<T: PartialEq + Clone + Display>(
        &mut self,
        taken: &mut [Option<T>],
        ranges: &Ranges,
        by: &T,
        rule: Rule,
    ) {
        let mut beyond = Vec::new();
        let mut twice: BTreeMap<String, Vec<ShardId>> = BTreeMap::new();
        for shard in ranges.value.iter().cloned().flatten() {
            match taken.get_mut(usize::from(shard)) {
                None => beyond.push(ShardId(shard)),
                Some(Some(first)) => twice
                    .entry(first.to_string())
                    .or_default()
                    .push(ShardId(shard)),
                Some(free) => *free = Some(by.clone()),
            }
        }
        if !beyond.is_empty() {
            let message = format!(
                "shard {} does not exist: the shard map has 0 to {}",
                format_shards(&beyond),
                taken.len().saturating_sub(1)
            );
            self.out.add(Rule::BadShards, &ranges.spot, message);
        }
        let (verb, by) = match rule {
            Rule::OwnedTwice => ("owned by", by.to_string()),
            _ => ("stored in", by.to_string()),
        };
        for (first, shards) in twice {
            let shards = format_shards(&shards);
            let message = format!("shard {shards} is {verb} {first} already, and here by {by}");
            let message = if first == by {
                format!("shard {shards} is {verb} {first} twice")
            } else {
                message
            };
            self.out.add(rule, &ranges.spot, message);
        }
    }

    fn shard_map(&mut self, maps: &[MapDraft]) -> Option<ShardMap> {
        for second in maps.iter().skip(1) {
            let message = format!("a second shard map; {} is the first", maps[0].id.value);
            self.out.add(Rule::ShardMapCount, &second.id.spot, message);
        }
        let Some(map) = maps.first() else {
            self.out.add(
                Rule::ShardMapCount,
                &Spot::default(),
                "no ShardMap: exactly one is needed",
            );
            return None;
        };
        let count = map.shards.as_ref()?;
        if map.scheme == Some(ShardScheme::Digits) && count.value != DIGITS_SHARDS {
            let message = format!(
                "scheme digits has {DIGITS_SHARDS} shards (two digits), not {}",
                count.value
            );
            self.out.add(Rule::ShardCount, &count.spot, message);
        }
        let mut owners: Vec<Option<CellId>> = vec![None; usize::from(count.value)];
        for (ranges, cell) in &map.owners {
            if let Some(cell) = cell {
                match self.cells.get(&cell.value) {
                    None => {
                        let known = list(self.cells.keys());
                        let message = format!("no cell {}; known: {known}", cell.value);
                        self.out.add(Rule::UnknownCell, &cell.spot, message);
                    }
                    Some(Some(CellKind::Global | CellKind::City)) => {
                        let message = format!("cell {} is not sharded: it owns none", cell.value);
                        self.out.add(Rule::OwnerKind, &cell.spot, message);
                    }
                    Some(_) => {}
                }
            }
            if let (Some(ranges), Some(cell)) = (ranges, cell) {
                self.take(&mut owners, ranges, &cell.value, Rule::OwnedTwice);
            }
        }
        // An owner that could not be read has been named; its shards would only repeat it.
        if map
            .owners
            .iter()
            .all(|(ranges, cell)| ranges.is_some() && cell.is_some())
        {
            let never = untaken(&owners);
            if !never.is_empty() {
                let message = format!("shard {} is never owned", format_shards(&never));
                self.out.add(Rule::NeverOwned, &map.id.spot, message);
            }
        }
        let owners = owners.into_iter().collect::<Option<Vec<_>>>()?;
        Some(ShardMap {
            scheme: map.scheme?,
            shards: count.value,
            owners,
        })
    }

    fn routes(&mut self, drafts: Vec<RouteDraft>) -> Vec<Route> {
        let global = self
            .cells
            .values()
            .any(|kind| *kind == Some(CellKind::Global));
        let mut seen: BTreeMap<String, String> = BTreeMap::new();
        let mut routes = Vec::new();
        for draft in drafts {
            if let Some(prefix) = &draft.path_prefix
                && let Some(first) = seen.insert(prefix.value.clone(), draft.id.value.clone())
            {
                let message = format!("route {first} has the prefix {} already", prefix.value);
                self.out.add(Rule::RoutePath, &prefix.spot, message);
            }
            if let Some(kind) = &draft.kind {
                if kind.value == RouteKind::Sharded && draft.user.is_empty() {
                    let message = "a sharded route needs `user`: where to look for the user's id";
                    self.out.add(Rule::RouteUser, &kind.spot, message);
                }
                if kind.value == RouteKind::Global && !global {
                    let message = "a global route needs a cell of kind global";
                    self.out.add(Rule::RouteGlobal, &kind.spot, message);
                }
            }
            let user: Option<Vec<_>> = draft.user.into_iter().collect();
            if let (Some(prefix), Some(kind), Some(user)) = (draft.path_prefix, draft.kind, user) {
                routes.push(Route {
                    name: draft.id.value,
                    path_prefix: prefix.value,
                    kind: kind.value,
                    user,
                });
            }
        }
        // The longest prefix first, so that the first match is the most precise one, wherever the
        // resources were stored in between. Prefixes are unique.
        routes.sort_by(|a, b| {
            b.path_prefix
                .len()
                .cmp(&a.path_prefix.len())
                .then(a.path_prefix.cmp(&b.path_prefix))
        });
        routes
    }
}

fn untaken<T>(taken: &[Option<T>]) -> Vec<ShardId> {
    taken
        .iter()
        .zip(0..)
        .filter(|(by, _)| by.is_none())
        .map(|(_, shard)| ShardId(shard))
        .collect()
}
