//! `Table` to entries and back.

use std::collections::BTreeMap;

use atoll_routing::{CellRow, Closed, GroupRow, Instance, Phase, ShardRow, Table, TableVersion};
use atoll_topology::{
    CellId, CellKind, Epoch, Extractor, GroupId, MemberId, Route, RouteKind, ShardScheme, SlotName,
    Term,
};
use bytes::Bytes;
use prost::Message;

use crate::encoded::EncodedTable;
use crate::proto::table as wire;
use crate::text::{DecodeError, Place};

const SCHEME: &str = "scheme";
const ROUND_TRIPS: &str = "rtt";
const SHARDS: &str = "shard/";
const CELLS: &str = "cell/";
const GROUPS: &str = "group/";
const ROUTES: &str = "route/";

/// A table's entries. Equal tables have equal entries.
pub fn encode(table: &Table) -> EncodedTable {
    let mut entries = BTreeMap::new();
    let mut put = |key: String, entry: Bytes| {
        entries.insert(key, entry);
    };
    let count = u32::try_from(table.shards.len()).unwrap_or(u32::MAX);
    let scheme = wire::SchemeEntry {
        scheme: scheme(table.scheme).into(),
        shards: count,
    };
    put(SCHEME.into(), scheme.encode_to_vec().into());
    for run in runs(&table.shards) {
        put(run_key(&run), run.encode_to_vec().into());
    }
    for (id, row) in &table.cells {
        put(format!("{CELLS}{id}"), cell(id, row).encode_to_vec().into());
    }
    for (id, row) in &table.groups {
        put(
            format!("{GROUPS}{id}"),
            group(id, row).encode_to_vec().into(),
        );
    }
    for (index, row) in table.routes.iter().enumerate() {
        put(
            format!("{ROUTES}{:03}", index + 1),
            route(row).encode_to_vec().into(),
        );
    }
    let round_trips = table
        .round_trip_ms
        .iter()
        .map(|((from, to), ms)| wire::round_trips_entry::RoundTrip {
            from: from.to_string(),
            to: to.to_string(),
            ms: *ms,
        })
        .collect();
    put(
        ROUND_TRIPS.into(),
        wire::RoundTripsEntry { round_trips }.encode_to_vec().into(),
    );
    EncodedTable::new(table.version.clone(), entries)
}

/// The table that the entries describe. Keys of an unknown kind are ignored (a newer control wrote
/// them); known ones must be complete and agree with each other.
pub fn decode(encoded: &EncodedTable) -> Result<Table, DecodeError> {
    let mut scheme: Option<(ShardScheme, u32)> = None;
    let mut runs: Vec<(wire::ShardRunEntry, ShardRow)> = Vec::new();
    let mut routes: BTreeMap<u32, Route> = BTreeMap::new();
    let mut table = empty(encoded.version().clone());
    for (key, entry) in encoded.entries() {
        let place = Place(key);
        if key == SCHEME {
            scheme = Some(read_scheme(place, entry)?);
        } else if key == ROUND_TRIPS {
            let entry: wire::RoundTripsEntry = message(place, entry)?;
            for trip in entry.round_trips {
                table
                    .round_trip_ms
                    .insert((place.id(&trip.from)?, place.id(&trip.to)?), trip.ms);
            }
        } else if key.starts_with(SHARDS) {
            runs.push(read_run(place, entry)?);
        } else if let Some(id) = key.strip_prefix(CELLS) {
            table
                .cells
                .insert(place.id(id)?, read_cell(place, id, entry)?);
        } else if let Some(id) = key.strip_prefix(GROUPS) {
            table
                .groups
                .insert(place.id(id)?, read_group(place, id, entry)?);
        } else if let Some(number) = key.strip_prefix(ROUTES) {
            let number = number
                .parse()
                .map_err(|_| place.inconsistent("the key has no number"))?;
            routes.insert(number, read_route(place, entry)?);
        }
    }
    let (scheme, count) = scheme.ok_or_else(|| Place(SCHEME).absent("scheme"))?;
    table.scheme = scheme;
    table.shards = join(runs, count)?;
    table.routes = routes.into_values().collect();
    refer(&table)?;
    Ok(table)
}

fn empty(version: TableVersion) -> Table {
    Table {
        version,
        scheme: ShardScheme::Hash,
        shards: Vec::new(),
        cells: BTreeMap::new(),
        groups: BTreeMap::new(),
        round_trip_ms: BTreeMap::new(),
        routes: Vec::new(),
    }
}

fn message<M: Message + Default>(place: Place<'_>, entry: &Bytes) -> Result<M, DecodeError> {
    M::decode(entry.clone()).map_err(|why| place.garbage(&why))
}

// ---- scheme ----

fn scheme(scheme: ShardScheme) -> wire::Scheme {
    match scheme {
        ShardScheme::Digits => wire::Scheme::Digits,
        ShardScheme::Hash => wire::Scheme::Hash,
    }
}

fn read_scheme(place: Place<'_>, entry: &Bytes) -> Result<(ShardScheme, u32), DecodeError> {
    let entry: wire::SchemeEntry = message(place, entry)?;
    let scheme = match entry.scheme() {
        wire::Scheme::Digits => ShardScheme::Digits,
        wire::Scheme::Hash => ShardScheme::Hash,
        wire::Scheme::Unspecified => return Err(place.absent("scheme")),
    };
    Ok((scheme, entry.shards))
}

// ---- shards ----

fn runs(shards: &[ShardRow]) -> Vec<wire::ShardRunEntry> {
    let mut runs = Vec::new();
    let mut first: u32 = 0;
    for run in shards.chunk_by(|a, b| a == b) {
        let Some(row) = run.first() else { continue };
        let length = u32::try_from(run.len()).unwrap_or(u32::MAX);
        let (phase, leaving) = match &row.phase {
            Phase::Active => (wire::Phase::Active, String::new()),
            Phase::Switching {
                leaving,
                closed: Closed::Gateways,
            } => (wire::Phase::SwitchingGateways, leaving.to_string()),
            Phase::Switching {
                leaving,
                closed: Closed::All,
            } => (wire::Phase::SwitchingAll, leaving.to_string()),
        };
        runs.push(wire::ShardRunEntry {
            first,
            last: first.saturating_add(length - 1),
            cell: row.cell.to_string(),
            epoch: row.epoch.get(),
            group: row.group.to_string(),
            phase: phase.into(),
            leaving,
        });
        first = first.saturating_add(length);
    }
    runs
}

fn run_key(run: &wire::ShardRunEntry) -> String {
    format!("{SHARDS}{:05}-{:05}", run.first, run.last)
}

fn read_run(
    place: Place<'_>,
    entry: &Bytes,
) -> Result<(wire::ShardRunEntry, ShardRow), DecodeError> {
    let run: wire::ShardRunEntry = message(place, entry)?;
    if run_key(&run) != place.0 {
        return Err(place.inconsistent(format!("the entry is about {}", run_key(&run))));
    }
    let leaving = || place.id(&run.leaving);
    let phase = match run.phase() {
        wire::Phase::Active => Phase::Active,
        wire::Phase::SwitchingGateways => Phase::Switching {
            leaving: leaving()?,
            closed: Closed::Gateways,
        },
        wire::Phase::SwitchingAll => Phase::Switching {
            leaving: leaving()?,
            closed: Closed::All,
        },
        wire::Phase::Unspecified => return Err(place.absent("phase")),
    };
    let row = ShardRow {
        cell: place.id(&run.cell)?,
        epoch: Epoch::new(run.epoch),
        phase,
        group: place.id(&run.group)?,
    };
    Ok((run, row))
}

/// Most shards of a table, that of the widest scheme.
const SHARDS_MAX: u32 = 16_384;

/// Runs to rows: they must follow each other without a gap, from 0 to the scheme's count.
fn join(
    mut runs: Vec<(wire::ShardRunEntry, ShardRow)>,
    count: u32,
) -> Result<Vec<ShardRow>, DecodeError> {
    if count > SHARDS_MAX {
        return Err(Place(SCHEME).inconsistent(format!("{count} shards; at most {SHARDS_MAX}")));
    }
    runs.sort_by_key(|(run, _)| run.first);
    let mut rows = Vec::new();
    let mut next = 0;
    for (run, row) in runs {
        let key = run_key(&run);
        if run.first != next || run.last < run.first || run.last >= count {
            return Err(
                Place(&key).inconsistent(format!("shard {next} of {count} should come next"))
            );
        }
        for _ in run.first..=run.last {
            rows.push(row.clone());
        }
        next = run.last + 1;
    }
    if next != count {
        return Err(Place(SCHEME).inconsistent(format!("shard {next} of {count} has no row")));
    }
    Ok(rows)
}

/// Every shard's cell and group must be there, or a request would meet a hole.
fn refer(table: &Table) -> Result<(), DecodeError> {
    let mut last: Option<&ShardRow> = None;
    for (shard, row) in table.shards.iter().enumerate() {
        if last == Some(row) {
            continue;
        }
        last = Some(row);
        let place = format!("shard {shard}");
        if !table.cells.contains_key(&row.cell) {
            return Err(Place(&place).inconsistent(format!("no cell {}", row.cell)));
        }
        if !table.groups.contains_key(&row.group) {
            return Err(Place(&place).inconsistent(format!("no data group {}", row.group)));
        }
    }
    Ok(())
}

// ---- cells ----

fn slot(slot: SlotName) -> wire::Slot {
    match slot {
        SlotName::Blue => wire::Slot::Blue,
        SlotName::Green => wire::Slot::Green,
    }
}

fn read_slot(place: Place<'_>, slot: wire::Slot) -> Result<SlotName, DecodeError> {
    match slot {
        wire::Slot::Blue => Ok(SlotName::Blue),
        wire::Slot::Green => Ok(SlotName::Green),
        wire::Slot::Unspecified => Err(place.absent("slot")),
    }
}

fn cell(id: &CellId, row: &CellRow) -> wire::CellEntry {
    let kind = match row.kind {
        CellKind::Sharded => wire::CellKind::Sharded,
        CellKind::Global => wire::CellKind::Global,
        CellKind::City => wire::CellKind::City,
    };
    let instance = |instance: &Instance| wire::cell_entry::Instance {
        address: instance.address.to_string(),
        slot: slot(instance.slot).into(),
    };
    let weight = |(name, percent): (&SlotName, &u8)| wire::cell_entry::Weight {
        slot: slot(*name).into(),
        percent: u32::from(*percent),
    };
    wire::CellEntry {
        cell: id.to_string(),
        kind: kind.into(),
        region: row.region.to_string(),
        gateways: row.gateways.iter().map(ToString::to_string).collect(),
        instances: row.instances.iter().map(instance).collect(),
        weights: row.weights.iter().map(weight).collect(),
    }
}

fn read_cell(place: Place<'_>, id: &str, entry: &Bytes) -> Result<CellRow, DecodeError> {
    let entry: wire::CellEntry = message(place, entry)?;
    if entry.cell != id {
        return Err(place.inconsistent(format!("the entry is about cell {:?}", entry.cell)));
    }
    let kind = match entry.kind() {
        wire::CellKind::Sharded => CellKind::Sharded,
        wire::CellKind::Global => CellKind::Global,
        wire::CellKind::City => CellKind::City,
        wire::CellKind::Unspecified => return Err(place.absent("kind")),
    };
    let instance = |instance: &wire::cell_entry::Instance| {
        Ok(Instance {
            address: place.address(&instance.address)?,
            slot: read_slot(place, instance.slot())?,
        })
    };
    let weight = |weight: &wire::cell_entry::Weight| {
        Ok((
            read_slot(place, weight.slot())?,
            place.narrow("percent", u64::from(weight.percent))?,
        ))
    };
    Ok(CellRow {
        kind,
        region: place.id(&entry.region)?,
        gateways: entry
            .gateways
            .iter()
            .map(|a| place.address(a))
            .collect::<Result<_, _>>()?,
        instances: entry
            .instances
            .iter()
            .map(instance)
            .collect::<Result<_, _>>()?,
        weights: entry.weights.iter().map(weight).collect::<Result<_, _>>()?,
    })
}

// ---- groups ----

fn group(id: &GroupId, row: &GroupRow) -> wire::GroupEntry {
    let primary = |(term, member): &(Term, MemberId)| wire::group_entry::Primary {
        term: term.get(),
        member: member.to_string(),
    };
    wire::GroupEntry {
        group: id.to_string(),
        open: row.open.as_ref().map(primary),
        coming: row.coming.as_ref().map(primary),
        members: row
            .members
            .iter()
            .map(|(member, address)| wire::group_entry::Member {
                member: member.to_string(),
                sql_address: address.to_string(),
            })
            .collect(),
    }
}

fn read_group(place: Place<'_>, id: &str, entry: &Bytes) -> Result<GroupRow, DecodeError> {
    let entry: wire::GroupEntry = message(place, entry)?;
    if entry.group != id {
        return Err(place.inconsistent(format!("the entry is about group {:?}", entry.group)));
    }
    let members: BTreeMap<MemberId, _> = entry
        .members
        .iter()
        .map(|member| {
            Ok((
                place.id(&member.member)?,
                place.address(&member.sql_address)?,
            ))
        })
        .collect::<Result<_, DecodeError>>()?;
    let primary = |primary: Option<wire::group_entry::Primary>| {
        let Some(primary) = primary else {
            return Ok(None);
        };
        let member: MemberId = place.id(&primary.member)?;
        if !members.contains_key(&member) {
            return Err(place.inconsistent(format!("primary {member} is not a member")));
        }
        Ok(Some((Term::new(primary.term), member)))
    };
    Ok(GroupRow {
        open: primary(entry.open)?,
        coming: primary(entry.coming)?,
        members,
    })
}

// ---- routes ----

fn route(row: &Route) -> wire::RouteEntry {
    use wire::route_entry::extractor::Place as In;
    let kind = match row.kind {
        RouteKind::Sharded => wire::RouteKind::Sharded,
        RouteKind::Global => wire::RouteKind::Global,
        RouteKind::Nearest => wire::RouteKind::Nearest,
    };
    let extractor = |extractor: &Extractor| wire::route_entry::Extractor {
        place: Some(match extractor {
            Extractor::Header(name) => In::Header(name.clone()),
            Extractor::Cookie(name) => In::Cookie(name.clone()),
            Extractor::Query(name) => In::Query(name.clone()),
        }),
    };
    wire::RouteEntry {
        name: row.name.clone(),
        path_prefix: row.path_prefix.clone(),
        kind: kind.into(),
        user: row.user.iter().map(extractor).collect(),
    }
}

fn read_route(place: Place<'_>, entry: &Bytes) -> Result<Route, DecodeError> {
    use wire::route_entry::extractor::Place as In;
    let entry: wire::RouteEntry = message(place, entry)?;
    let kind = match entry.kind() {
        wire::RouteKind::Sharded => RouteKind::Sharded,
        wire::RouteKind::Global => RouteKind::Global,
        wire::RouteKind::Nearest => RouteKind::Nearest,
        wire::RouteKind::Unspecified => return Err(place.absent("kind")),
    };
    let extractor = |extractor: wire::route_entry::Extractor| match extractor.place {
        Some(In::Header(name)) => Ok(Extractor::Header(name)),
        Some(In::Cookie(name)) => Ok(Extractor::Cookie(name)),
        Some(In::Query(name)) => Ok(Extractor::Query(name)),
        None => Err(place.absent("user.place")),
    };
    Ok(Route {
        name: entry.name,
        path_prefix: entry.path_prefix,
        kind,
        user: entry
            .user
            .into_iter()
            .map(extractor)
            .collect::<Result<_, _>>()?,
    })
}
