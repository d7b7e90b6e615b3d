//! Golden verdicts: faults are played to the detector as the streams of a three-city world would
//! tell of them, in steps of 100 ms.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

use std::collections::{BTreeMap, BTreeSet};

use atoll_detection::guard::{Guard, Held};
use atoll_detection::{
    CellView, Detector, Exit, GatewayReport, GroupView, Home, Limits, MemberReport, OpView,
    Reports, RunView, Seen, Verdict,
};
use atoll_topology::{
    CellId, Epoch, GroupId, MemberId, ProcessId, RegionId, ShardId, Term, Topology, ZoneId,
};

const THREE_CITIES: &str = include_str!("../../../examples/topologies/three-cities.yaml");
const START_MS: u64 = 1_000_000;
const OPEN: Term = Term::new(2);

/// A world as its observers see it.
struct World {
    now_ms: u64,
    fault_ms: u64,
    reports: Reports,
    detector: Detector,
    limits: Limits,
    /// Regions of which all processes are frozen.
    dark: BTreeSet<RegionId>,
    /// Regions whose reports do not reach control.
    unreported: BTreeSet<RegionId>,
    /// Region pairs that hear nothing of each other.
    cut: BTreeSet<(RegionId, RegionId)>,
    dead_members: BTreeSet<MemberId>,
    /// Cells of which nothing runs.
    dead_cells: BTreeSet<CellId>,
    /// Cells that answer errors.
    broken_cells: BTreeSet<CellId>,
    /// Members whose agent was restarted.
    restarted: BTreeSet<MemberId>,
    /// Members that are being rebuilt: their agents are there, their logs are not.
    rebuilding: BTreeSet<MemberId>,
    /// What each gateway falsely says is down.
    lies: BTreeMap<ProcessId, BTreeSet<CellId>>,
    beats: BTreeMap<(MemberId, MemberId), u64>,
}

fn region(id: &str) -> RegionId {
    RegionId::parse(id).unwrap()
}

fn cell(id: &str) -> CellId {
    CellId::parse(id).unwrap()
}

fn member(id: &str) -> MemberId {
    MemberId::parse(id).unwrap()
}

fn group(id: &str) -> GroupId {
    GroupId::parse(id).unwrap()
}

fn gateway(cell: &CellId) -> ProcessId {
    ProcessId::parse(format!("{cell}-gateway")).unwrap()
}

impl World {
    /// Everything is well, and has been for three seconds.
    fn new() -> Self {
        let topology = Topology::parse(THREE_CITIES).unwrap();
        let home = |zone: &ZoneId| Home {
            zone: zone.clone(),
            region: topology.zones[zone].region.clone(),
        };
        let groups = topology.groups.iter().map(|(id, group)| {
            let first = *group.shards.first().unwrap();
            let run = RunView {
                first,
                last: *group.shards.last().unwrap(),
                cell: topology.shard_map.owners[usize::from(first.0)].clone(),
                leaving: None,
                epoch: Epoch::new(1),
            };
            let view = GroupView {
                survives: group.survives,
                k: group.k,
                members: group
                    .members
                    .iter()
                    .map(|m| (m.id.clone(), home(&m.zone)))
                    .collect(),
                open: Some((OPEN, group.members[0].id.clone())),
                op: None,
                runs: vec![run],
            };
            (id.clone(), view)
        });
        let cells = topology.cells.iter().map(|(id, cell)| {
            let zones = cell.slots.values().map(|slot| slot.zone.clone()).collect();
            (
                id.clone(),
                CellView {
                    region: cell.region.clone(),
                    zones,
                    reported_ms: None,
                },
            )
        });
        let gateways = topology.cells.iter().map(|(id, cell)| {
            let sees = topology
                .cells
                .keys()
                .map(|seen| (seen.clone(), Seen::default()))
                .collect();
            (
                gateway(id),
                GatewayReport {
                    at_ms: 0,
                    region: cell.region.clone(),
                    sees,
                },
            )
        });
        let reports = Reports {
            here: region("outside"),
            groups: groups.collect(),
            cells: cells.collect(),
            members: BTreeMap::new(),
            gateways: gateways.collect(),
        };
        let mut world = Self {
            now_ms: START_MS,
            fault_ms: START_MS,
            reports,
            detector: Detector::default(),
            limits: Limits::default(),
            dark: BTreeSet::new(),
            unreported: BTreeSet::new(),
            cut: BTreeSet::new(),
            dead_members: BTreeSet::new(),
            dead_cells: BTreeSet::new(),
            broken_cells: BTreeSet::new(),
            restarted: BTreeSet::new(),
            rebuilding: BTreeSet::new(),
            lies: BTreeMap::new(),
            beats: BTreeMap::new(),
        };
        assert_eq!(world.run(3_000), "");
        world.fault_ms = world.now_ms;
        world
    }

    fn linked(&self, a: &RegionId, b: &RegionId) -> bool {
        let cut = |a: &RegionId, b: &RegionId| self.cut.contains(&(a.clone(), b.clone()));
        !self.dark.contains(a) && !self.dark.contains(b) && !cut(a, b) && !cut(b, a)
    }

    fn reaches_control(&self, region: &RegionId) -> bool {
        !self.dark.contains(region) && !self.unreported.contains(region)
    }

    /// Time goes on; the verdicts of this moment.
    fn tick(&mut self) -> Vec<Verdict> {
        self.now_ms += 100;
        let now_ms = self.now_ms;
        let homes: BTreeMap<MemberId, (GroupId, RegionId)> = self
            .reports
            .groups
            .iter()
            .flat_map(|(id, group)| {
                let region = |home: &Home| (id.clone(), home.region.clone());
                group
                    .members
                    .iter()
                    .map(move |(m, home)| (m.clone(), region(home)))
            })
            .collect();
        for (id, (group, region)) in &homes {
            let peers = homes
                .iter()
                .filter(|(other, (g, _))| g == group && *other != id);
            for (other, (_, there)) in peers {
                let hears = self.linked(region, there)
                    && !self.dead_members.contains(other)
                    && !self.dead_members.contains(id);
                if hears {
                    self.beats.insert((id.clone(), other.clone()), now_ms);
                }
            }
        }
        if now_ms.is_multiple_of(200) {
            self.report_members(&homes);
            self.report_cells();
        }
        self.detector.judge(&self.reports, &self.limits, now_ms)
    }

    fn report_members(&mut self, homes: &BTreeMap<MemberId, (GroupId, RegionId)>) {
        for (id, (group, region)) in homes {
            if self.dead_members.contains(id) || !self.reaches_control(region) {
                continue;
            }
            let open = self.reports.groups[group].open.clone().unwrap();
            let leads = open.1 == *id && !self.restarted.contains(id);
            let led = if leads { open.0 } else { Term::ZERO };
            let old = self.reports.members.get(id);
            let exit = old.and_then(|old| old.exit);
            let heard = self
                .beats
                .iter()
                .filter(|((observer, _), _)| observer == id);
            let heard = heard
                .map(|((_, other), at)| (other.clone(), self.now_ms - at))
                .collect();
            let serving = if exit.is_some() { Term::ZERO } else { led };
            let report = MemberReport {
                at_ms: self.now_ms,
                led,
                open: serving,
                follows: (!leads && !self.rebuilding.contains(id)).then(|| open.1.clone()),
                exit,
                heard_ms_ago: heard,
            };
            self.reports.members.insert(id.clone(), report);
        }
    }

    fn report_cells(&mut self) {
        let now_ms = self.now_ms;
        let cells: Vec<_> = self
            .reports
            .cells
            .iter()
            .map(|(id, view)| (id.clone(), view.region.clone()))
            .collect();
        for (id, home) in &cells {
            if self.reaches_control(home) && !self.dead_cells.contains(id) {
                self.reports.cells.get_mut(id).unwrap().reported_ms = Some(now_ms);
            }
            if !self.reaches_control(home) {
                continue;
            }
            let lies = self.lies.get(&gateway(id)).cloned().unwrap_or_default();
            // Whether it answers, and whether well.
            let answers: Vec<(bool, bool)> = cells
                .iter()
                .map(|(seen, there)| {
                    let answers = self.linked(home, there)
                        && !self.dead_cells.contains(seen)
                        && !lies.contains(seen);
                    (answers, answers && !self.broken_cells.contains(seen))
                })
                .collect();
            let report = self.reports.gateways.get_mut(&gateway(id)).unwrap();
            report.at_ms = now_ms;
            for (seen, (answers, well)) in report.sees.values_mut().zip(answers) {
                // A canary leaves with each full second and fails half a second later.
                match (well, now_ms % 1_000) {
                    (true, 0) => seen.canary_ok += 1,
                    (false, 600) => seen.canary_failed += 1,
                    _ => {}
                }
                if answers {
                    seen.requests += 10;
                    seen.errors += if well { 0 } else { 10 };
                }
            }
        }
    }

    /// Runs on, and tells each verdict at its first appearance, in milliseconds after the fault.
    fn run(&mut self, for_ms: u64) -> String {
        let mut told: Vec<String> = Vec::new();
        let mut out = String::new();
        for _ in 0..for_ms / 100 {
            for verdict in self.tick() {
                let text = verdict.to_string();
                if !told.contains(&text) {
                    out += &format!("{:>5} ms  {text}\n", self.now_ms - self.fault_ms);
                    told.push(text);
                }
            }
        }
        out
    }

    /// What a failover leaves behind.
    fn open(&mut self, id: &str, primary: &str) {
        let view = self.reports.groups.get_mut(&group(id)).unwrap();
        let (term, _) = view.open.clone().unwrap();
        view.open = Some((term.next(), member(primary)));
        view.op = None;
    }

    fn begin(&mut self, id: &str, target: &str, deadline_ms: u64) {
        let deadline_ms = self.now_ms + deadline_ms;
        let view = self.reports.groups.get_mut(&group(id)).unwrap();
        let term = view.open.as_ref().unwrap().0.next();
        view.op = Some(OpView {
            term,
            target: member(target),
            deadline_ms,
        });
    }
}

#[test]
fn an_exit_that_the_agent_saw_is_a_fact_at_once() {
    let mut world = World::new();
    world.reports.members.get_mut(&member("g1-1")).unwrap().exit = Some(Exit {
        at_ms: 77,
        ordered: false,
    });
    insta::assert_snapshot!(world.run(1_500));
}

#[test]
fn an_exit_that_the_agent_ordered_is_none() {
    let mut world = World::new();
    world.reports.members.get_mut(&member("g1-1")).unwrap().exit = Some(Exit {
        at_ms: 77,
        ordered: true,
    });
    assert_eq!(world.run(3_000), "");
}

#[test]
fn an_exit_from_before_its_term_is_forgotten() {
    let mut world = World::new();
    world.reports.members.get_mut(&member("g1-2")).unwrap().exit = Some(Exit {
        at_ms: 77,
        ordered: false,
    });
    world.run(500);
    // It wins the next term; its first reports still show the old exit and no open port.
    world.open("g1", "g1-2");
    assert_eq!(world.run(3_000), "");
}

#[test]
fn a_silent_primary_is_lost_when_two_members_miss_it() {
    let mut world = World::new();
    world.dead_members.insert(member("g1-1"));
    insta::assert_snapshot!(world.run(3_000));
}

#[test]
fn one_member_that_misses_the_primary_is_not_enough() {
    let mut world = World::new();
    world.cut.insert((region("hangzhou"), region("shanghai")));
    // g1 and g2 in hangzhou are still heard in shenzhen, g3 in shanghai too.
    assert_eq!(world.run(3_000), "");
}

#[test]
fn a_member_that_was_frozen_says_nothing_when_it_thaws() {
    let mut world = World::new();
    world.dark.extend([region("shanghai"), region("shenzhen")]);
    let while_dark = world.run(5_000);
    assert!(while_dark.starts_with(" 2000 ms  frozen:"), "{while_dark}");
    world.dark.clear();
    // On the tick of the thaw the members still say that they have not heard anyone for long.
    let homes = world.beats.clone();
    world.tick();
    world.beats = homes;
    assert_eq!(world.run(3_000), "");
}

#[test]
fn a_judge_that_was_frozen_judges_nothing_that_it_missed() {
    let mut world = World::new();
    world.now_ms += 30_000;
    for at in world.beats.values_mut() {
        *at = world.now_ms;
    }
    assert_eq!(world.run(3_000), "");
}

#[test]
fn a_restarted_agent_does_not_lead() {
    let mut world = World::new();
    world.restarted.insert(member("g1-1"));
    insta::assert_snapshot!(world.run(2_000));
}

#[test]
fn a_running_op_is_replaced_only_when_its_target_is_lost_or_it_is_overdue() {
    let mut world = World::new();
    world.begin("g1", "g1-2", 10_000);
    world.dead_members.insert(member("g1-1"));
    assert_eq!(world.run(3_000), "");
    world.dead_members.clear();
    world.run(800);
    world.dead_members.insert(member("g1-2"));
    insta::assert_snapshot!(world.run(2_000));
    world.dead_members.clear();
    world.run(1_000);
    insta::assert_snapshot!(world.run(5_000));
}

#[test]
fn a_silent_city_is_lost_and_its_groups_fail_over_first() {
    let mut world = World::new();
    world.dark.insert(region("hangzhou"));
    insta::assert_snapshot!(world.run(3_000));
}

#[test]
fn a_city_whose_groups_are_failing_over_is_lost_once_they_are_open() {
    let mut world = World::new();
    world.dark.insert(region("hangzhou"));
    world.run(1_200);
    world.begin("g1", "g1-2", 10_000);
    world.begin("g2", "g2-2", 10_000);
    assert_eq!(world.run(3_000), "");
    world.open("g1", "g1-2");
    insta::assert_snapshot!(world.run(500));
    world.open("g2", "g2-2");
    insta::assert_snapshot!(world.run(500));
}

#[test]
fn a_city_that_only_control_does_not_hear_is_not_lost() {
    let mut world = World::new();
    world.unreported.insert(region("hangzhou"));
    assert_eq!(world.run(5_000), "");
}

#[test]
fn one_lying_observer_moves_nothing() {
    let mut world = World::new();
    world
        .lies
        .insert(gateway(&cell("sh-1")), BTreeSet::from([cell("hz-1")]));
    assert_eq!(world.run(5_000), "");
    // Nor together with a cell that control does not hear, as long as they are of one region.
    world.reports.here = region("shanghai");
    world.unreported.insert(region("hangzhou"));
    assert_eq!(world.run(5_000), "");
}

#[test]
fn an_observer_that_is_cut_off_abstains() {
    let mut world = World::new();
    for other in ["hangzhou", "shenzhen"] {
        world.cut.insert((region("shanghai"), region(other)));
    }
    // Its group g3 has its primary in shanghai: the other two members miss it, and are right.
    insta::assert_snapshot!(world.run(3_000));
    world.open("g3", "g3-2");
    assert_eq!(world.run(3_000), "");
}

#[test]
fn two_of_three_observers_convict_a_cell_whose_application_is_gone() {
    let mut world = World::new();
    world.dead_cells.insert(cell("sh-1"));
    insta::assert_snapshot!(world.run(4_000));
}

#[test]
fn a_cell_that_answers_errors_is_lost_although_it_reports() {
    let mut world = World::new();
    world.broken_cells.insert(cell("sh-1"));
    insta::assert_snapshot!(world.run(8_000));
}

#[test]
fn a_cell_that_is_slow_for_three_seconds_keeps_its_shards() {
    let mut world = World::new();
    world.broken_cells.insert(cell("sh-1"));
    assert_eq!(world.run(3_000), "");
    world.broken_cells.clear();
    assert_eq!(world.run(5_000), "");
}

#[test]
fn canaries_that_fail_while_a_group_fails_over_do_not_count() {
    let mut world = World::new();
    world.begin("g3", "g3-2", 10_000);
    for observer in ["hz-1", "hz-2", "sz-1"] {
        world
            .lies
            .insert(gateway(&cell(observer)), BTreeSet::from([cell("sh-1")]));
    }
    assert_eq!(world.run(3_000), "");
    world.lies.clear();
    world.open("g3", "g3-2");
    assert_eq!(world.run(3_000), "");
}

#[test]
fn a_group_without_quorum_is_no_second_lost_city() {
    // Group g1 has failed over, and its third member is being rebuilt when a city is lost: its
    // primary in hangzhou has nobody to acknowledge, so all of hz-1's writes fail there too.
    let mut world = World::new();
    world.rebuilding.insert(member("g1-3"));
    world.broken_cells.insert(cell("hz-1"));
    world.dark.insert(region("shanghai"));
    let told = world.run(4_000);
    assert!(!told.contains("frozen"), "{told}");
    assert!(told.contains("region shanghai is lost"), "{told}");
    assert!(!told.contains("cell hz-1"), "{told}");
    // Once the group can acknowledge again, what is still wrong with the cell counts.
    world.rebuilding.clear();
    let told = world.run(8_000);
    assert!(told.contains("frozen: hangzhou, shanghai"), "{told}");
}

#[test]
fn a_lost_city_moves_while_others_are_slow_and_what_stays_slow_freezes() {
    let mut world = World::new();
    world.dark.insert(region("shanghai"));
    world.run(1_500);
    world.broken_cells.insert(cell("hz-1"));
    let told = world.run(8_000);
    insta::assert_snapshot!(told);
}

#[test]
fn two_suspect_cities_freeze() {
    let mut world = World::new();
    world.dark.extend([region("hangzhou"), region("shenzhen")]);
    insta::assert_snapshot!(world.run(5_000));
}

#[test]
fn a_city_that_thaws_is_suspect_no_more() {
    let mut world = World::new();
    world.dark.insert(region("hangzhou"));
    world.run(3_000);
    for (id, primary) in [("g1", "g1-2"), ("g2", "g2-2")] {
        world.open(id, primary);
        world.reports.groups.get_mut(&group(id)).unwrap().runs[0].cell = cell("sh-1");
    }
    world.dark.clear();
    assert_eq!(world.run(5_000), "");
}

fn lost(world: &mut World) -> atoll_detection::LostVerdict {
    for _ in 0..100 {
        if let Some(Verdict::Lost(lost)) = world
            .tick()
            .into_iter()
            .find(|verdict| matches!(verdict, Verdict::Lost(_)))
        {
            return lost;
        }
    }
    panic!("nothing is lost");
}

#[test]
fn guards_admit_one_failure_domain_in_a_window_and_count() {
    let mut world = World::new();
    world.dark.insert(region("hangzhou"));
    let hangzhou = lost(&mut world);
    let mut other = World::new();
    other.dark.insert(region("shanghai"));
    let shanghai = lost(&mut other);
    let limits = Limits::default();
    let shards = [(ShardId(0), ShardId(24))];
    let more = [(ShardId(25), ShardId(49))];
    let none = Guard::default();
    let once = none
        .admit_owner_change(&hangzhou, &shards, &limits, 1_000)
        .unwrap();
    assert_eq!(once.number, 1);
    let twice = once
        .admit_owner_change(&hangzhou, &more, &limits, 1_100)
        .unwrap();
    let held = |guard: &Guard, verdict, shards: &[_], now_ms| {
        guard
            .admit_owner_change(verdict, shards, &limits, now_ms)
            .unwrap_err()
            .to_string()
    };
    insta::assert_snapshot!(held(&twice, &shanghai, &shards, 5_000));
    insta::assert_snapshot!(held(&twice, &hangzhou, &shards, 5_000));
    insta::assert_snapshot!(held(
        &none.freeze(Some("two cities".into())),
        &shanghai,
        &shards,
        0
    ));
    insta::assert_snapshot!(held(
        &none.kill_switch(Some("maintenance".into())),
        &shanghai,
        &shards,
        0
    ));
    assert!(
        twice
            .admit_owner_change(&shanghai, &shards, &limits, 700_000)
            .is_ok()
    );
}

#[test]
fn shards_that_were_just_moved_stay_with_a_cell_that_reports() {
    let mut world = World::new();
    world.broken_cells.insert(cell("sh-1"));
    let slow = lost(&mut world);
    let mut other = World::new();
    other.dark.insert(region("shanghai"));
    let silent = lost(&mut other);
    let limits = Limits {
        automatic_switch_min_interval_ms: 0,
        ..Limits::default()
    };
    let shards = [(ShardId(50), ShardId(74))];
    let moved = Guard::default()
        .admit_owner_change(&slow, &shards, &limits, 1_000)
        .unwrap();
    let again = |verdict, now_ms| moved.admit_owner_change(verdict, &shards, &limits, now_ms);
    insta::assert_snapshot!(again(&slow, 31_000).unwrap_err().to_string());
    assert!(again(&slow, 61_000).is_ok());
    assert!(again(&silent, 2_000).is_ok());
}

#[test]
fn a_group_that_keeps_failing_over_pages() {
    let mut world = World::new();
    world.dead_members.insert(member("g1-1"));
    let verdict = (0..30).find_map(|_| match world.tick().pop() {
        Some(Verdict::Failover(verdict)) => Some(verdict),
        _ => None,
    });
    let verdict = verdict.unwrap();
    let limits = Limits::default();
    let mut guard = Guard::default();
    for n in 0..3 {
        guard = guard.admit_failover(&verdict, &limits, n * 1_000).unwrap();
    }
    let held = guard.admit_failover(&verdict, &limits, 4_000).unwrap_err();
    assert!(matches!(held, Held::FailoversPerWindow { count: 3, .. }));
    assert!(guard.admit_failover(&verdict, &limits, 601_000).is_ok());
}
