//! Data groups: their shards, their members, and whether the arithmetic keeps their promise.

use std::collections::{BTreeMap, BTreeSet};

use super::{Check, untaken};
use crate::id::{GroupId, MemberId, RegionId, ShardId, ZoneId};
use crate::model::{DataGroup, Member, Quorum, Survives};
use crate::reader::Placed;
use crate::shards::format_shards;
use crate::spec::GroupDraft;
use crate::violation::Rule;

impl Check<'_> {
    pub(super) fn groups(
        &mut self,
        drafts: &[GroupDraft],
        count: Option<&Placed<u16>>,
    ) -> BTreeMap<GroupId, DataGroup> {
        let mut stored: Vec<Option<GroupId>> =
            vec![None; count.map_or(0, |c| usize::from(c.value))];
        let mut groups = BTreeMap::new();
        let mut all_read = true;
        for draft in drafts {
            let members = self.members(draft);
            self.arithmetic(draft);
            all_read &= draft.shards.is_some();
            let Some(ranges) = &draft.shards else {
                continue;
            };
            if count.is_some() {
                self.take(&mut stored, ranges, &draft.id.value, Rule::StoredTwice);
            }
            if let (Some(members), Some(k), Some(survives)) = (members, &draft.k, &draft.survives) {
                let shards: BTreeSet<_> = ranges
                    .value
                    .iter()
                    .cloned()
                    .flatten()
                    .map(ShardId)
                    .collect();
                let group = DataGroup {
                    members,
                    k: k.value,
                    survives: survives.value,
                    shards: shards.into_iter().collect(),
                };
                groups.insert(draft.id.value.clone(), group);
            }
        }
        let never = untaken(&stored);
        if let Some(count) = count.filter(|_| all_read && !never.is_empty()) {
            let message = format!("shard {} is stored in no data group", format_shards(&never));
            self.out.add(Rule::NeverStored, &count.spot, message);
        }
        groups
    }

    /// The members that could be read, and whether each has a zone of its own.
    fn members(&mut self, draft: &GroupDraft) -> Option<Vec<Member>> {
        let zones = &draft.members.as_ref()?.value;
        let mut seen: BTreeMap<&ZoneId, usize> = BTreeMap::new();
        let mut members = Vec::new();
        for (n, zone) in zones.iter().enumerate() {
            let Some(zone) = zone else { continue };
            self.zone(zone);
            if let Some(first) = seen.insert(&zone.value, n + 1) {
                let message = format!(
                    "members {first} and {} are both in zone {}",
                    n + 1,
                    zone.value
                );
                self.out.add(Rule::MembersShareZone, &zone.spot, message);
            }
            match MemberId::parse(format!("{}-{}", draft.id.value, n + 1)) {
                Ok(id) => members.push(Member {
                    id,
                    zone: zone.value.clone(),
                }),
                Err(error) if n == 0 => {
                    let message = format!("too long for its members' names: {error}");
                    self.out.add(Rule::BadId, &draft.id.spot, message);
                }
                Err(_) => {}
            }
        }
        (members.len() == zones.len()).then_some(members)
    }

    /// `survives` holds when, for every failure domain, the members outside it are at least
    /// max(F, 1 + k): then the rest can be recruited whoever led, and can acknowledge again.
    fn arithmetic(&mut self, draft: &GroupDraft) {
        let (Some(members), Some(k)) = (&draft.members, &draft.k) else {
            return;
        };
        let n = members.value.len();
        if usize::from(k.value) >= n {
            let message = format!("k = {} standbys cannot be awaited: {n} members", k.value);
            self.out.add(Rule::KTooLarge, &k.spot, message);
            return;
        }
        let Some(survives) = &draft.survives else {
            return;
        };
        // Zones that could not be read or found have been named.
        let homes: Option<Vec<(&ZoneId, &RegionId)>> = members
            .value
            .iter()
            .map(|zone| {
                let zone = zone.as_ref()?;
                Some((&zone.value, &self.zones.get(&zone.value)?.region))
            })
            .collect();
        let Some(homes) = homes else { return };
        let quorum = Quorum {
            members: n,
            k: usize::from(k.value),
        };
        let domain = |home: &(&ZoneId, &RegionId)| match survives.value {
            Survives::Zone => format!("zone {}", home.0),
            Survives::Region => format!("region {}", home.1),
        };
        let domains: BTreeSet<String> = homes.iter().map(domain).collect();
        for lost in domains {
            let left = homes.iter().filter(|home| domain(home) != lost).count();
            if left < quorum.survivors() {
                let message = format!(
                    "does not survive the loss of {lost}: {left} of {n} members are left, \
                     {} are needed (F = {}, 1 + k = {})",
                    quorum.survivors(),
                    quorum.recruits(),
                    quorum.write()
                );
                self.out.add(Rule::CannotSurvive, &survives.spot, message);
            }
        }
    }
}
