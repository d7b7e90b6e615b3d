//! Each kind's `spec`, read by itself: types, names and ranges. What needs a second resource is
//! checked in `check`.

use std::ops::RangeInclusive;

use crate::id::{CellId, ClusterId, GroupId, RegionId, ZoneId};
use crate::model::{CellKind, Extractor, RouteKind, ShardScheme, SlotName, Survives};
use crate::reader::{Cursor, Placed};
use crate::resource::Envelope;
use crate::shards::parse_shards;
use crate::violation::{Rule, Violations};

/// Most shards of the `hash` scheme.
pub(crate) const SHARDS_MAX: u16 = 16_384;

/// Members that one group may have: a commit's wait and a recruit round talk to all of them.
const MEMBERS_MAX: u8 = 9;

/// Everything in a file, read but not compared yet. What could not be read is `None`.
#[derive(Default)]
pub(crate) struct Draft {
    pub(crate) regions: Vec<RegionDraft>,
    pub(crate) zones: Vec<ZoneDraft>,
    pub(crate) clusters: Vec<ClusterDraft>,
    pub(crate) cells: Vec<CellDraft>,
    pub(crate) groups: Vec<GroupDraft>,
    pub(crate) maps: Vec<MapDraft>,
    pub(crate) routes: Vec<RouteDraft>,
}

pub(crate) type Ranges = Placed<Vec<RangeInclusive<u16>>>;

pub(crate) struct RegionDraft {
    pub(crate) id: Placed<RegionId>,
    pub(crate) round_trip_ms: Vec<(Placed<RegionId>, u32)>,
}

pub(crate) struct ZoneDraft {
    pub(crate) id: Placed<ZoneId>,
    pub(crate) region: Option<Placed<RegionId>>,
}

pub(crate) struct ClusterDraft {
    pub(crate) id: Placed<ClusterId>,
    pub(crate) zone: Option<Placed<ZoneId>>,
}

pub(crate) struct SlotDraft {
    pub(crate) name: SlotName,
    pub(crate) zone: Option<Placed<ZoneId>>,
    pub(crate) weight: Option<u8>,
}

pub(crate) struct CellDraft {
    pub(crate) id: Placed<CellId>,
    pub(crate) kind: Option<CellKind>,
    pub(crate) region: Option<Placed<RegionId>>,
    /// With the place of `slots`; none when the key is absent.
    pub(crate) slots: Option<Placed<Vec<SlotDraft>>>,
}

pub(crate) struct GroupDraft {
    pub(crate) id: Placed<GroupId>,
    pub(crate) members: Option<Placed<Vec<Option<Placed<ZoneId>>>>>,
    pub(crate) k: Option<Placed<u8>>,
    pub(crate) survives: Option<Placed<Survives>>,
    pub(crate) shards: Option<Ranges>,
}

pub(crate) struct MapDraft {
    pub(crate) id: Placed<String>,
    pub(crate) scheme: Option<ShardScheme>,
    pub(crate) shards: Option<Placed<u16>>,
    pub(crate) owners: Vec<(Option<Ranges>, Option<Placed<CellId>>)>,
}

pub(crate) struct RouteDraft {
    pub(crate) id: Placed<String>,
    pub(crate) path_prefix: Option<Placed<String>>,
    pub(crate) kind: Option<Placed<RouteKind>>,
    pub(crate) user: Vec<Option<Extractor>>,
}

const KINDS: &str = "Region, Zone, Cluster, Cell, DataGroup, ShardMap, Route";

impl Draft {
    pub(crate) fn read(&mut self, envelope: Envelope<'_>, out: &mut Violations) {
        let Envelope { kind, name, spec } = envelope;
        let bad = Rule::BadId;
        match kind.value {
            "Region" => {
                let read = region(&spec, out);
                if let Some(id) = name.parsed(bad, |t| RegionId::parse(t), out) {
                    self.regions.push(RegionDraft {
                        id,
                        round_trip_ms: read,
                    });
                }
            }
            "Zone" => {
                let region = one(&spec, "region", |t| RegionId::parse(t), out);
                if let Some(id) = name.parsed(bad, |t| ZoneId::parse(t), out) {
                    self.zones.push(ZoneDraft { id, region });
                }
            }
            "Cluster" => {
                let zone = one(&spec, "zone", |t| ZoneId::parse(t), out);
                if let Some(id) = name.parsed(bad, |t| ClusterId::parse(t), out) {
                    self.clusters.push(ClusterDraft { id, zone });
                }
            }
            "Cell" => {
                if let Some(id) = name.parsed(bad, |t| CellId::parse(t), out) {
                    self.cells.extend(cell(id, &spec, out));
                }
            }
            "DataGroup" => {
                if let Some(id) = name.parsed(bad, |t| GroupId::parse(t), out) {
                    self.groups.extend(group(id, &spec, out));
                }
            }
            "ShardMap" => {
                if let Some(id) = name.parsed(bad, plain_name, out) {
                    self.maps.extend(map(id, &spec, out));
                }
            }
            "Route" => {
                if let Some(id) = name.parsed(bad, plain_name, out) {
                    self.routes.extend(route(id, &spec, out));
                }
            }
            other => {
                let message = format!("kind {other:?} is not one of a topology: {KINDS}");
                out.add(Rule::UnknownKind, &kind.spot, message);
            }
        }
    }
}

/// Names of shard maps and routes follow the rule of cells.
fn plain_name(text: &str) -> Result<String, String> {
    match CellId::parse(text) {
        Ok(id) => Ok(id.as_str().to_owned()),
        Err(error) => Err(format!("name {text:?} is not valid: {}", error.rule)),
    }
}

/// A `spec` of exactly one key that names something.
fn one<T, E: std::fmt::Display>(
    spec: &Cursor<'_>,
    key: &str,
    parse: impl FnOnce(&str) -> Result<T, E>,
    out: &mut Violations,
) -> Option<Placed<T>> {
    spec.fields(&[key], out)?
        .required(key, out)?
        .parsed(Rule::BadId, parse, out)
}

fn region(spec: &Cursor<'_>, out: &mut Violations) -> Vec<(Placed<RegionId>, u32)> {
    let Some(trips) = spec
        .fields(&["roundTripMs"], out)
        .and_then(|fields| fields.optional("roundTripMs"))
    else {
        return Vec::new();
    };
    let entries = trips.entries(out);
    entries
        .into_iter()
        .filter_map(|(key, value)| {
            let ms = value.number(0u32, 60_000, out);
            let other = key.parsed(Rule::BadId, |t| RegionId::parse(t), out);
            Some((other?, ms?.value))
        })
        .collect()
}

fn cell(id: Placed<CellId>, spec: &Cursor<'_>, out: &mut Violations) -> Option<CellDraft> {
    let kinds = [
        ("sharded", CellKind::Sharded),
        ("global", CellKind::Global),
        ("city", CellKind::City),
    ];
    let fields = spec.fields(&["kind", "region", "slots"], out)?;
    let kind = fields
        .required("kind", out)
        .and_then(|k| k.word(&kinds, out));
    let region = fields
        .required("region", out)
        .and_then(|r| r.parsed(Rule::BadId, |t| RegionId::parse(t), out));
    let slots = fields.required("slots", out).map(|slots| {
        let value = slots.entries(out).into_iter().filter_map(|(name, body)| {
            let name = match name.value {
                "blue" => SlotName::Blue,
                "green" => SlotName::Green,
                other => {
                    let message = format!("slot {other:?} is none of: blue, green");
                    out.add(Rule::UnknownKey, &name.spot, message);
                    return None;
                }
            };
            let fields = body.fields(&["zone", "weight"], out)?;
            let zone = fields
                .required("zone", out)
                .and_then(|z| z.parsed(Rule::BadId, |t| ZoneId::parse(t), out));
            let weight = fields
                .required("weight", out)
                .and_then(|w| w.number(0u8, 100, out));
            Some(SlotDraft {
                name,
                zone,
                weight: weight.map(|w| w.value),
            })
        });
        Placed {
            value: value.collect(),
            spot: slots.spot.clone(),
        }
    });
    Some(CellDraft {
        id,
        kind: kind.map(|k| k.value),
        region,
        slots,
    })
}

fn shards(cursor: &Cursor<'_>, out: &mut Violations) -> Option<Ranges> {
    cursor.parsed(Rule::BadShards, parse_shards, out)
}

fn group(id: Placed<GroupId>, spec: &Cursor<'_>, out: &mut Violations) -> Option<GroupDraft> {
    let fields = spec.fields(&["members", "k", "survives", "shards"], out)?;
    let members = fields.required("members", out).map(|members| Placed {
        value: members
            .items(out)
            .into_iter()
            .map(|zone| zone.parsed(Rule::BadId, |t| ZoneId::parse(t), out))
            .collect::<Vec<_>>(),
        spot: members.spot.clone(),
    });
    let members = members.filter(|members| {
        let fits = (1..=usize::from(MEMBERS_MAX)).contains(&members.value.len());
        if !fits {
            let message = format!(
                "{} members; 1 to {MEMBERS_MAX} are allowed",
                members.value.len()
            );
            out.add(Rule::BadValue, &members.spot, message);
        }
        fits
    });
    let k = match fields.optional("k") {
        Some(k) => k.number(0u8, MEMBERS_MAX - 1, out),
        None => Some(Placed {
            value: 1,
            spot: spec.spot.clone(),
        }),
    };
    let policies = [("zone", Survives::Zone), ("region", Survives::Region)];
    let survives = fields
        .required("survives", out)
        .and_then(|s| s.word(&policies, out));
    let shards = fields.required("shards", out).and_then(|s| shards(&s, out));
    Some(GroupDraft {
        id,
        members,
        k,
        survives,
        shards,
    })
}

fn map(id: Placed<String>, spec: &Cursor<'_>, out: &mut Violations) -> Option<MapDraft> {
    let schemes = [("digits", ShardScheme::Digits), ("hash", ShardScheme::Hash)];
    let fields = spec.fields(&["scheme", "shards", "owners"], out)?;
    let scheme = fields
        .required("scheme", out)
        .and_then(|s| s.word(&schemes, out));
    let count = fields
        .required("shards", out)
        .and_then(|s| s.number(1, SHARDS_MAX, out));
    let owners = fields
        .required("owners", out)
        .map(|owners| owners.items(out));
    let owners = owners.unwrap_or_default().into_iter().filter_map(|owner| {
        let fields = owner.fields(&["shards", "cell"], out)?;
        let ranges = fields.required("shards", out).and_then(|s| shards(&s, out));
        let cell = fields
            .required("cell", out)
            .and_then(|c| c.parsed(Rule::BadId, |t| CellId::parse(t), out));
        Some((ranges, cell))
    });
    let owners = owners.collect();
    Some(MapDraft {
        id,
        scheme: scheme.map(|s| s.value),
        shards: count,
        owners,
    })
}

fn route(id: Placed<String>, spec: &Cursor<'_>, out: &mut Violations) -> Option<RouteDraft> {
    let kinds = [
        ("sharded", RouteKind::Sharded),
        ("global", RouteKind::Global),
        ("nearest", RouteKind::Nearest),
    ];
    let fields = spec.fields(&["pathPrefix", "kind", "user"], out)?;
    let path_prefix = fields
        .required("pathPrefix", out)
        .and_then(|p| p.parsed(Rule::RoutePath, path_prefix, out));
    let kind = fields
        .required("kind", out)
        .and_then(|k| k.word(&kinds, out));
    let user = fields
        .optional("user")
        .map(|user| user.items(out))
        .unwrap_or_default();
    let user = user.into_iter().map(|item| extractor(&item, out)).collect();
    Some(RouteDraft {
        id,
        path_prefix,
        kind,
        user,
    })
}

fn path_prefix(text: &str) -> Result<String, String> {
    let legal = text.starts_with('/')
        && (text == "/" || !text.ends_with('/'))
        && text
            .bytes()
            .all(|b| b.is_ascii_graphic() && b != b'?' && b != b'#');
    if legal {
        Ok(text.to_owned())
    } else {
        let rule = "it starts with '/', does not end with one, and has no blanks, '?' or '#'";
        Err(format!("{text:?} is not a path prefix: {rule}"))
    }
}

fn extractor(item: &Cursor<'_>, out: &mut Violations) -> Option<Extractor> {
    let known = ["header", "cookie", "query"];
    item.fields(&known, out)?;
    let mut entries = item.entries(out);
    let (key, value) = match entries.len() {
        1 => entries.remove(0),
        n => {
            let message = format!("{n} keys; exactly one of: {}", known.join(", "));
            out.add(Rule::Type, &item.spot, message);
            return None;
        }
    };
    // The `token` of RFC 9110 5.6.2; cookies follow it (RFC 6265), and a query that needs more
    // would need escaping, too.
    let token = |text: &str| {
        let legal = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if !text.is_empty() && text.len() <= 64 && text.bytes().all(legal) {
            Ok(text.to_owned())
        } else {
            Err(format!(
                "{text:?} is not a name of 1 to 64 letters, digits and !#$%&'*+-.^_`|~"
            ))
        }
    };
    let name = value.parsed(Rule::BadValue, token, out)?;
    match key.value {
        "header" if name.value.to_ascii_lowercase().starts_with("atoll-") => {
            let message = "headers that start with atoll- are removed at the edge";
            out.add(Rule::BadValue, &name.spot, message);
            None
        }
        "header" => Some(Extractor::Header(name.value.to_ascii_lowercase())),
        "cookie" => Some(Extractor::Cookie(name.value)),
        "query" => Some(Extractor::Query(name.value)),
        // Named above as an unknown key.
        _ => None,
    }
}
