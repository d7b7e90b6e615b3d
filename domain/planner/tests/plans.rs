//! Golden plans and refusals, as a person reads them, for the world of three cities.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;

use atoll_detection::guard::Guard;
use atoll_detection::{
    FailoverVerdict, FrozenVerdict, Judged, LostVerdict, RunView, Scope, Signal, SignalKind,
    Verdict, Why,
};
use atoll_ownership::OpKind;
use atoll_ownership::record::{GroupRecord, Open, RunPhase};
use atoll_planner::{
    Capacity, CellSeen, Limits, MemberSeen, Observed, Order, Plan, Refused, plan_failover,
    plan_switchover,
};
use atoll_topology::{CellId, Epoch, GroupId, Lsn, MemberId, Position, RegionId, Term, Topology};

use proptest::prelude::*;

const THREE_CITIES: &str = include_str!("../../../examples/topologies/three-cities.yaml");
const NOW_MS: u64 = 1_000_000;

fn cell(id: &str) -> CellId {
    CellId::parse(id).unwrap()
}

fn group(id: &str) -> GroupId {
    GroupId::parse(id).unwrap()
}

fn member(id: &str) -> MemberId {
    MemberId::parse(id).unwrap()
}

fn region(id: &str) -> RegionId {
    RegionId::parse(id).unwrap()
}

/// Three cities in which everything is well.
fn observed() -> Observed {
    let topology = Topology::parse(THREE_CITIES).unwrap();
    let records = topology.groups.iter().map(|(id, wanted)| {
        let admitted = wanted
            .members
            .iter()
            .map(|member| atoll_ownership::Admitted {
                id: member.id.clone(),
                volume: "v".to_owned(),
            });
        let owners = wanted.shards.iter().map(|shard| {
            (
                *shard,
                topology.shard_map.owners[usize::from(shard.0)].clone(),
            )
        });
        let mut record = GroupRecord::birth(id.clone(), admitted.collect(), wanted.k, owners);
        record.term = Term::new(2);
        record.open = Some(Open {
            term: Term::new(2),
            primary: wanted.members[0].id.clone(),
        });
        for run in &mut record.runs {
            run.epoch = Epoch::new(1);
        }
        (id.clone(), record)
    });
    let position = Position {
        term: Term::new(2),
        lsn: Lsn(0x500_0000),
    };
    let seen = MemberSeen {
        at_ms: NOW_MS - 100,
        usable: true,
        position: Some(position),
        replay_lag_bytes: 0,
        oldest_transaction_ms: 3,
    };
    let members = topology.groups.values().flat_map(|group| &group.members);
    let capacity = Some(Capacity {
        used: 200,
        limit: 1_000,
    });
    Observed {
        broken_privileges: BTreeMap::new(),
        records: records.collect(),
        members: members.map(|member| (member.id.clone(), seen)).collect(),
        cells: topology
            .cells
            .keys()
            .map(|id| {
                (
                    id.clone(),
                    CellSeen {
                        at_ms: NOW_MS - 100,
                        capacity,
                    },
                )
            })
            .collect(),
        guard: Guard::default(),
        now_ms: NOW_MS,
        topology,
    }
}

/// A city of which nothing has been heard for two seconds.
fn silence(observed: &mut Observed, city: &str) {
    let at_ms = NOW_MS - 2_000;
    let zones = &observed.topology.zones;
    for wanted in observed
        .topology
        .groups
        .values()
        .flat_map(|group| &group.members)
    {
        if zones[&wanted.zone].region.as_str() == city {
            observed.members.get_mut(&wanted.id).unwrap().at_ms = at_ms;
        }
    }
    for (id, wanted) in &observed.topology.cells {
        if wanted.region.as_str() == city {
            observed.cells.get_mut(id).unwrap().at_ms = at_ms;
        }
    }
}

fn lost(observed: &Observed, city: &str) -> Verdict {
    let cells: Vec<_> = observed
        .topology
        .cells
        .iter()
        .filter(|(_, wanted)| wanted.region.as_str() == city)
        .map(|(id, _)| id.clone())
        .collect();
    let judged = observed.records.values().filter_map(|record| {
        let runs: Vec<_> = record
            .runs
            .iter()
            .filter(|run| cells.contains(&run.cell))
            .map(|run| RunView {
                first: run.first,
                last: run.last,
                cell: run.cell.clone(),
                leaving: None,
                epoch: run.epoch,
            })
            .collect();
        let term = record.open_term();
        (!runs.is_empty()).then(|| Judged {
            group: record.group.clone(),
            term,
            runs,
        })
    });
    let judged = judged.collect();
    Verdict::Lost(LostVerdict {
        scope: Scope::Region {
            region: region(city),
        },
        cells,
        judged,
        signals: vec![Signal {
            kind: SignalKind::Silent,
            from: region("outside"),
            since_ms: 0,
        }],
    })
}

fn primary_lost(id: &str, term: u64, over: Option<u64>, who: &str) -> Verdict {
    Verdict::Failover(FailoverVerdict {
        group: group(id),
        term: Term::new(term),
        epoch: Epoch::new(1),
        over: over.map(Term::new),
        lost: member(who),
        why: Why::Exited,
    })
}

fn switch(observed: &Observed, from: &str, to: &str) -> Result<Plan, Refused> {
    let order = Order::SwitchCell {
        cell: cell(from),
        to: to.to_owned(),
    };
    plan_switchover(observed, &order, &Limits::default())
}

fn judge(observed: &Observed, verdict: &Verdict) -> Result<Plan, Refused> {
    plan_failover(observed, verdict, &Limits::default())
}

/// The plan with its checks, as `switch plan` shows it.
fn shown(plan: &Plan) -> String {
    let mut text = format!("{plan}\n");
    for check in &plan.checks {
        text += &format!("{:?} {}: {}\n", check.state, check.name, check.message);
    }
    text
}

/// The records once every step has been carried out.
fn done(observed: &mut Observed, plan: &Plan) {
    for step in &plan.steps {
        let record = observed.records.get_mut(&step.group).unwrap();
        step.fits(record).unwrap();
        let begun = record.begin(&step.begin(plan, "test", NOW_MS)).unwrap();
        *record = begun;
        record.op = None;
        record.open = Some(Open {
            term: step.term,
            primary: step.target.clone(),
        });
        for run in &mut record.runs {
            run.phase = RunPhase::Active;
        }
    }
}

#[test]
fn a_cell_is_switched_to_another_city_with_its_primary() {
    let observed = observed();
    let plan = switch(&observed, "hz-1", "sh-1").unwrap();
    insta::assert_snapshot!(shown(&plan));
    assert_eq!(plan, switch(&observed, "hz-1", "shanghai").unwrap());
    assert_eq!(plan.hash().len(), 64);
    assert_eq!(plan.made_for()[0].shards, "0-24");
}

#[test]
fn a_cell_is_switched_within_its_city_in_place() {
    insta::assert_snapshot!(shown(&switch(&observed(), "hz-1", "hz-2").unwrap()));
}

#[test]
fn the_hash_names_the_text_and_nothing_that_changes_by_itself() {
    let mut observed = observed();
    let plan = switch(&observed, "hz-1", "sh-1").unwrap();
    for seen in observed.members.values_mut() {
        seen.oldest_transaction_ms += 40;
    }
    let again = switch(&observed, "hz-1", "sh-1").unwrap();
    assert_ne!(plan.checks, again.checks);
    assert_eq!(plan.hash(), again.hash());
    observed.records.get_mut(&group("g1")).unwrap().runs[0].epoch = Epoch::new(5);
    assert_ne!(
        plan.hash(),
        switch(&observed, "hz-1", "sh-1").unwrap().hash()
    );
    let stale = plan.steps[0]
        .fits(&observed.records[&group("g1")])
        .unwrap_err();
    insta::assert_snapshot!(stale, @"shard 0 is not owned by hz-1 at epoch 1 any more");
}

#[test]
fn a_city_is_evacuated_evenly() {
    let order = Order::EvacuateRegion {
        region: region("hangzhou"),
    };
    let plan = plan_switchover(&observed(), &order, &Limits::default()).unwrap();
    insta::assert_snapshot!(shown(&plan));
}

#[test]
fn what_was_switched_comes_home_by_an_order() {
    let mut observed = observed();
    let order = Order::EvacuateRegion {
        region: region("hangzhou"),
    };
    let away = plan_switchover(&observed, &order, &Limits::default()).unwrap();
    done(&mut observed, &away);
    let home = plan_switchover(&observed, &Order::Failback, &Limits::default()).unwrap();
    insta::assert_snapshot!(home);
    done(&mut observed, &home);
    let nothing = plan_switchover(&observed, &Order::Failback, &Limits::default()).unwrap_err();
    insta::assert_snapshot!(nothing, @"there is nothing to do: fail back to the preferred owners");
}

#[test]
fn a_lost_primary_is_replaced_where_its_owner_is_nearest() {
    let observed = observed();
    insta::assert_snapshot!(shown(
        &judge(&observed, &primary_lost("g1", 2, None, "g1-1")).unwrap()
    ));
}

#[test]
fn the_longer_log_leads() {
    let mut observed = observed();
    let behind = Position {
        term: Term::new(2),
        lsn: Lsn(0x100_0000),
    };
    observed.members.get_mut(&member("g1-2")).unwrap().position = Some(behind);
    let plan = judge(&observed, &primary_lost("g1", 2, None, "g1-1")).unwrap();
    assert_eq!(plan.steps[0].target, member("g1-3"));
}

#[test]
fn a_lost_city_goes_to_the_surviving_ones() {
    let mut observed = observed();
    silence(&mut observed, "hangzhou");
    let plan = judge(&observed, &lost(&observed, "hangzhou")).unwrap();
    insta::assert_snapshot!(shown(&plan));
}

#[test]
fn a_lost_city_whose_groups_have_failed_over_changes_owners_in_place() {
    let mut observed = observed();
    silence(&mut observed, "hangzhou");
    let first = judge(&observed, &primary_lost("g1", 2, None, "g1-1")).unwrap();
    done(&mut observed, &first);
    // The other group is still at it.
    let second = judge(&observed, &primary_lost("g2", 2, None, "g2-1")).unwrap();
    let record = observed.records.get_mut(&group("g2")).unwrap();
    *record = record
        .begin(&second.steps[0].begin(&second, "test", NOW_MS))
        .unwrap();
    insta::assert_snapshot!(judge(&observed, &lost(&observed, "hangzhou")).unwrap());
    // Past its deadline it is taken over.
    observed.now_ms = NOW_MS + 10_000;
    for seen in observed
        .members
        .values_mut()
        .filter(|seen| seen.at_ms > NOW_MS - 200)
    {
        seen.at_ms = observed.now_ms;
    }
    for seen in observed
        .cells
        .values_mut()
        .filter(|seen| seen.at_ms > NOW_MS - 200)
    {
        seen.at_ms = observed.now_ms;
    }
    insta::assert_snapshot!(judge(&observed, &lost(&observed, "hangzhou")).unwrap());
}

#[test]
fn an_op_whose_target_is_lost_is_taken_over() {
    let mut observed = observed();
    let plan = switch(&observed, "hz-1", "sh-1").unwrap();
    let record = observed.records.get_mut(&group("g1")).unwrap();
    *record = record
        .begin(&plan.steps[0].begin(&plan, "test", NOW_MS))
        .unwrap();
    let verdict = primary_lost("g1", 2, Some(3), "g1-2");
    // The coming owner lives: its shards go on to it.
    let onwards = judge(&observed, &verdict).unwrap();
    insta::assert_snapshot!(onwards);
    let record = &observed.records[&group("g1")];
    assert!(
        record
            .begin(&onwards.steps[0].begin(&onwards, "next", NOW_MS))
            .is_ok()
    );
    // It does not: they go back.
    observed.cells.get_mut(&cell("sh-1")).unwrap().at_ms = 0;
    insta::assert_snapshot!(judge(&observed, &verdict).unwrap());
}

#[test]
fn a_person_may_evacuate_a_city_that_is_dead() {
    let mut observed = observed();
    silence(&mut observed, "hangzhou");
    let order = Order::EvacuateRegion {
        region: region("hangzhou"),
    };
    let plan = plan_switchover(&observed, &order, &Limits::default()).unwrap();
    assert!(plan.steps.iter().all(|step| step.kind == OpKind::Failover));
    assert!(!plan.automatic);
}

#[test]
fn a_cell_far_from_its_data_is_told_what_that_costs() {
    let mut observed = observed();
    // Half of the group's shards go to shanghai: the primary stays with the other half.
    let record = observed.records.get_mut(&group("g1")).unwrap();
    let mut half = record.runs[0].clone();
    record.runs[0].last = atoll_topology::ShardId(11);
    half.first = atoll_topology::ShardId(12);
    half.cell = cell("hz-2");
    record.runs.push(half);
    insta::assert_snapshot!(shown(&switch(&observed, "hz-1", "sh-1").unwrap()));
}

#[test]
fn no_op_begins_while_something_goes_round_the_owners_privilege() {
    let mut observed = observed();
    let what = "a grant to PUBLIC: s00003.account".to_owned();
    observed.broken_privileges.insert(member("g1-1"), what);
    let refused = switch(&observed, "hz-1", "sh-1").unwrap_err();
    insta::assert_snapshot!(refused, @"something goes round the owner's privilege on g1-1: a grant to PUBLIC: s00003.account; mend it (REVOKE, ALTER … OWNER TO, DROP), and plan again");
}

#[test]
fn every_reason_against_a_switch_is_named() {
    let mut observed = observed();
    let seen = observed.members.get_mut(&member("g1-1")).unwrap();
    seen.oldest_transaction_ms = 60_000;
    seen.position = Some(Position {
        term: Term::new(2),
        lsn: Lsn(0x700_0000),
    });
    observed
        .members
        .get_mut(&member("g1-2"))
        .unwrap()
        .replay_lag_bytes = 1;
    observed.cells.get_mut(&cell("sh-1")).unwrap().capacity = Some(Capacity {
        used: 200,
        limit: 400,
    });
    insta::assert_snapshot!(switch(&observed, "hz-1", "sh-1").unwrap_err());
    insta::assert_snapshot!(switch(&observed, "hz-1", "hz-1").unwrap_err(), @"there is nothing to do: cell hz-1 is where it is");
    insta::assert_snapshot!(switch(&observed, "hz-9", "sh-1").unwrap_err(), @"there is no sharded cell hz-9");
    insta::assert_snapshot!(switch(&observed, "hz-1", "beijing").unwrap_err(), @"there is no sharded cell beijing");
    observed.cells.get_mut(&cell("sh-1")).unwrap().at_ms = 0;
    assert!(switch(&observed, "hz-1", "sh-1").is_err());
    assert!(switch(&observed, "hz-1", "shanghai").is_err());
}

#[test]
fn a_group_that_is_busy_or_short_of_members_is_left_alone() {
    let mut observed = observed();
    let plan = switch(&observed, "hz-1", "sh-1").unwrap();
    let record = observed.records.get_mut(&group("g1")).unwrap();
    *record = record
        .begin(&plan.steps[0].begin(&plan, "test", NOW_MS))
        .unwrap();
    insta::assert_snapshot!(switch(&observed, "sh-1", "hz-1").map(|plan| plan.steps.len()).unwrap_err(), @"group g1 is going through a switchover of term 3");
    observed.members.get_mut(&member("g3-2")).unwrap().usable = false;
    insta::assert_snapshot!(judge(&observed, &primary_lost("g3", 2, None, "g3-1")).unwrap_err());
}

#[test]
fn guards_hold_automation_back_and_say_why() {
    let mut observed = observed();
    silence(&mut observed, "hangzhou");
    let hangzhou = lost(&observed, "hangzhou");
    let Verdict::Lost(shanghai) = lost(&observed, "shanghai") else {
        return;
    };
    let limits = Limits::default().automatic;
    observed.guard = Guard::default()
        .admit_owner_change(&shanghai, &[], &limits, NOW_MS)
        .unwrap();
    insta::assert_snapshot!(judge(&observed, &hangzhou).unwrap_err());
    observed.guard = Guard::default().kill_switch(Some("maintenance".to_owned()));
    let held = judge(&observed, &primary_lost("g1", 2, None, "g1-1")).unwrap_err();
    insta::assert_snapshot!(held, @"automation is off: maintenance");
    let regions = vec![region("hangzhou"), region("shanghai")];
    let frozen = judge(&observed, &Verdict::Frozen(FrozenVerdict { regions })).unwrap_err();
    insta::assert_snapshot!(frozen, @"owner changes are frozen: frozen: hangzhou, shanghai are suspect at once");
    observed.guard = Guard::default();
    let stale = judge(&observed, &primary_lost("g1", 1, None, "g1-1")).unwrap_err();
    insta::assert_snapshot!(stale, @"group g1 was judged at term 1, and term 2 is open");
}

#[test]
fn one_group_that_cannot_be_helped_holds_up_no_other() {
    let mut observed = observed();
    silence(&mut observed, "hangzhou");
    observed.members.get_mut(&member("g2-3")).unwrap().usable = false;
    let plan = judge(&observed, &lost(&observed, "hangzhou")).unwrap();
    assert_eq!(plan.steps.len(), 1);
    insta::assert_snapshot!(plan.to_string().lines().last().unwrap(), @"later group g2: group g2 has 1 of 3 members within reach; 2 are needed");
}

#[test]
fn a_plan_survives_json() {
    let plan = switch(&observed(), "hz-1", "sh-1").unwrap();
    let text = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
    let _: BTreeMap<String, serde_json::Value> = serde_json::from_str(&text).unwrap();
}

proptest! {
    #[test]
    fn a_plan_is_always_one_that_the_records_take(
        members in proptest::collection::vec(0u8..8, 12),
        cells in proptest::collection::vec(0u8..8, 4),
        order in 0usize..9,
    ) {
        let mut observed = observed();
        for (seen, state) in observed.members.values_mut().zip(members) {
            seen.usable = state != 0;
            seen.at_ms = if state == 1 { 0 } else { NOW_MS };
        }
        for (seen, state) in observed.cells.values_mut().zip(cells) {
            seen.at_ms = if state == 0 { 0 } else { NOW_MS };
        }
        let cities = ["hangzhou", "shanghai", "shenzhen"];
        let plan = match order {
            0..3 => judge(&observed, &lost(&observed, cities[order])),
            3..6 => {
                let order = Order::EvacuateRegion { region: region(cities[order - 3]) };
                plan_switchover(&observed, &order, &Limits::default())
            }
            6 => switch(&observed, "hz-1", "shenzhen"),
            7 => judge(&observed, &primary_lost("g2", 2, None, "g2-1")),
            _ => plan_switchover(&observed, &Order::Failback, &Limits::default()),
        };
        match plan {
            Ok(plan) => {
                prop_assert!(!plan.steps.is_empty());
                done(&mut observed, &plan);
            }
            Err(refused) => prop_assert!(!refused.0.is_empty()),
        }
    }
}
