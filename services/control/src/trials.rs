//! Control's real code, killed after each step, and on a store that does not say what it did.

mod group;
mod world;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use atoll_api::{AutomaticOrder, AutomaticVerb, Control, Kind, Phase};
use atoll_detection::{FrozenVerdict, Verdict};
use atoll_planner::{Limits, Pace};
use atoll_routing::Closed;
use atoll_store::{Fault, Operation, Store, Txn};
use atoll_topology::RegionId;
use futures::StreamExt;

use crate::api::watch;
use crate::reconcile::execution;
use crate::{automatic, guard, plans};

use world::{Stop, World, once, order, plan};

/// Whether a transaction writes under a prefix, and what it writes holds a text.
fn writes(txn: &Txn, prefix: &str, text: &str) -> bool {
    txn.puts.iter().any(|(key, value)| {
        key.starts_with(prefix) && String::from_utf8_lossy(value).contains(text)
    })
}

const P1: (&str, &str) = ("/group/", "\"execution\":\"run-1\"");

/// The switch is done, once, and nothing went back.
async fn is_done(world: &World) {
    world
        .until("the execution is over", async || {
            world
                .execution("run-1")
                .await
                .is_some_and(|stored| stored.phase.is_over())
        })
        .await;
    let stored = world.execution("run-1").await.unwrap();
    assert_eq!(stored.phase, Phase::Succeeded, "{}", stored.message);
    let record = world.record().await.unwrap();
    assert_eq!(record.op, None);
    assert!(
        record.runs.iter().all(|run| run.cell.as_str() == "b-1"),
        "{record:?}"
    );
    assert_eq!(world.wrong(), Vec::<String>::new());
    // Whatever control is told again, an op is driven from its beginning once.
    let twice: Vec<_> = world
        .group
        .driven()
        .into_iter()
        .filter(|(_, times)| *times > 1)
        .collect();
    assert_eq!(twice, vec![]);
    // Its proof came with its end, and holds.
    let proof = world.store_text("/proof/run-1").await;
    let proof = atoll_proof::verify(&proof, None).unwrap().sections;
    assert_eq!(proof.plan.hash, stored.plan.hash());
    let group = &proof.groups[0];
    assert_eq!((group.term_before, group.term), (2, 3), "{proof}");
    assert_eq!(
        (group.primary_before.as_str(), group.primary.as_str()),
        ("g1-1", "g1-2")
    );
    assert_eq!(group.owners, ["0-3 b-1 epoch 2"], "{proof}");
    assert!(proof.holds[0].hold_ms.is_some(), "{proof}");
    // Nobody was cut off who was not held before.
    let marks = world.store_text("/marks/run-1/").await;
    let held = marks.find("\"routers hold").unwrap();
    assert!(held < marks.find("\"open").unwrap(), "{marks}");
}

/// One switch; control is killed where a peer stops, and comes back.
async fn killed_at(stop: Stop) {
    let world = World::new(1).await;
    let life = world.control(0).await;
    world.born().await;
    let plan = plan(&life.control).await;
    world.stop_at(stop);
    order(&life.control, &plan, "run-1").await.unwrap();
    world.reached().await;
    life.kill().await;
    world.go_on();
    let life = world.control(0).await;
    is_done(&world).await;
    // Birth and this one switch: nothing was begun a second time.
    assert_eq!(world.record().await.unwrap().ops, 2);
    life.kill().await;
}

/// One switch; control dies at a transaction, and comes back.
async fn killed_with(prefix: &'static str, text: &'static str, fault: Fault) -> World {
    let world = World::new(1).await;
    let life = world.control(0).await;
    world.born().await;
    let plan = plan(&life.control).await;
    let died = Arc::new(tokio::sync::Notify::new());
    let (tell, mut first) = (died.clone(), once());
    world.store.inject(move |operation| match operation {
        Operation::Txn(txn) if writes(txn, prefix, text) && first() => {
            tell.notify_one();
            fault
        }
        _ => Fault::None,
    });
    tokio::select! {
        biased;
        () = died.notified() => {}
        () = async {
            order(&life.control, &plan, "run-1").await;
            std::future::pending::<()>().await;
        } => {}
    }
    life.kill().await;
    let life = world.control(0).await;
    if world.execution("run-1").await.is_none() {
        // The order was refused by its death: it is surely not there, and is given again.
        assert_eq!(fault, Fault::DiesBefore);
        world
            .until("the members are heard", async || {
                order(&life.control, &plan, "run-1").await.is_some()
            })
            .await;
    }
    is_done(&world).await;
    assert_eq!(world.record().await.unwrap().ops, 2);
    life.kill().await;
    world
}

#[tokio::test]
async fn an_order_that_died_with_control_before_it_was_kept_is_not_there() {
    killed_with("/execution/", "run-1", Fault::DiesBefore).await;
}

#[tokio::test]
async fn an_order_that_was_kept_runs_though_nobody_lived_to_say_so() {
    killed_with("/execution/", "run-1", Fault::DiesAfter).await;
}

#[tokio::test]
async fn control_dies_before_p1_is_written() {
    killed_with(P1.0, P1.1, Fault::DiesBefore).await;
}

#[tokio::test]
async fn control_dies_after_p1() {
    killed_with(P1.0, P1.1, Fault::DiesAfter).await;
}

#[tokio::test]
async fn control_dies_while_gateways_are_told_to_hold() {
    killed_at(Stop::Table(Closed::Gateways)).await;
}

#[tokio::test]
async fn control_dies_when_gateways_hold_and_routers_are_told_to() {
    killed_at(Stop::Table(Closed::All)).await;
}

#[tokio::test]
async fn control_dies_when_the_driver_is_ordered() {
    killed_at(Stop::Drive).await;
}

#[tokio::test]
async fn control_dies_when_the_driver_is_open_and_has_not_been_heard() {
    killed_at(Stop::Open).await;
}

#[tokio::test]
async fn control_dies_after_p8_before_it_publishes() {
    // The record without an op, after this execution's marks came with it.
    let world = killed_with("/marks/run-1/", "confirmed", Fault::DiesAfter).await;
    // What the dead one could not say is said by the next one.
    let marks = world.store_text("/marks/run-1/").await;
    for step in [
        "begun",
        "gateways hold",
        "open",
        "confirmed",
        "published",
        "converged",
    ] {
        assert_eq!(
            marks.matches(&format!("\"{step}")).count(),
            1,
            "{step}: {marks}"
        );
    }
}

#[tokio::test]
async fn control_dies_after_it_published() {
    killed_at(Stop::Published).await;
}

#[tokio::test]
async fn control_dies_when_the_execution_is_about_to_end() {
    killed_with("/execution/", "\"Succeeded\"", Fault::DiesBefore).await;
    killed_with("/execution/", "\"Succeeded\"", Fault::DiesAfter).await;
}

/// A switch on a store that does not say what became of its n-th transaction; how many there were.
async fn unknown_at(n: usize, fault: Fault) -> usize {
    let world = World::new(1).await;
    let life = world.control(0).await;
    world.born().await;
    let plan = plan(&life.control).await;
    let count = Arc::new(Mutex::new(0));
    let counted = count.clone();
    world.store.inject(move |operation| match operation {
        Operation::Txn(_) => {
            let mut count = counted.lock().unwrap();
            *count += 1;
            if *count == n { fault } else { Fault::None }
        }
        _ => Fault::None,
    });
    // A store that says nothing may make the API say so; the same order again is harmless.
    world
        .until("the order is taken", async || {
            order(&life.control, &plan, "run-1").await.is_some()
        })
        .await;
    is_done(&world).await;
    assert_eq!(
        world.record().await.unwrap().ops,
        2,
        "transaction {n}, {fault:?}"
    );
    world.store.heal();
    life.kill().await;
    *count.lock().unwrap()
}

#[tokio::test]
async fn a_store_that_does_not_say_what_it_did_loses_and_doubles_nothing() {
    let number = unknown_at(usize::MAX, Fault::None).await;
    assert!(number >= 5, "{number} transactions");
    for n in 1..=number {
        for fault in [
            Fault::UnknownApplied,
            Fault::UnknownNotApplied,
            Fault::Unavailable,
        ] {
            unknown_at(n, fault).await;
        }
    }
}

#[tokio::test]
async fn two_suspect_cities_freeze_owner_changes_until_a_person_thaws_them() {
    let world = World::new(1).await;
    let life = world.control(0).await;
    let control = &life.control;
    let regions = ["a", "b"].map(|id| RegionId::parse(id).unwrap()).to_vec();
    let verdict = Verdict::Frozen(FrozenVerdict { regions });
    // Also when the store does not say whether it was written, it is written once.
    let mut first = once();
    world.store.inject(move |operation| match operation {
        Operation::Txn(txn) if writes(txn, "/guard/", "") && first() => Fault::UnknownApplied,
        _ => Fault::None,
    });
    let follow = async |age_ms| {
        let judged_ms = control.runtime.wall_clock().0 - age_ms;
        let followed = automatic::follow(control, &verdict, &Limits::default(), judged_ms).await;
        assert_eq!(followed, Ok(None));
    };
    // Whoever waited for the store meanwhile, because it was cut off itself, does not freeze others.
    follow(Limits::default().automatic.judge_gap_ms).await;
    assert_eq!(
        guard::load(control.store.as_ref()).await.unwrap().0.frozen,
        None
    );
    let mut told = control.guard.subscribe();
    for _ in 0..3 {
        follow(0).await;
    }
    // What the store wrote without saying so is seen when its watch tells.
    while guard::seen(control).frozen.is_none() {
        told.changed().await.unwrap();
    }
    let frozen = guard::seen(control).frozen.unwrap();
    assert_eq!(frozen, "detection: frozen: a, b are suspect at once");
    let thaw = AutomaticOrder {
        order: AutomaticVerb::Thaw,
        by: "ana".to_owned(),
        reason: "looked".to_owned(),
    };
    guard::obey(control, thaw).await.unwrap();
    assert_eq!(guard::seen(control).frozen, None);
    let orders = guard::orders(control.store.as_ref()).await.unwrap();
    let orders: Vec<_> = orders
        .iter()
        .map(|entry| (entry.order.order, entry.order.by.as_str()))
        .collect();
    assert_eq!(
        orders,
        [
            (AutomaticVerb::Thaw, "ana"),
            (AutomaticVerb::Freeze, "detection")
        ]
    );
    life.kill().await;
}

#[tokio::test]
async fn an_execution_that_is_paused_begins_nothing_until_it_goes_on() {
    let world = World::new(1).await;
    let life = world.control(0).await;
    world.born().await;
    let plan = plan(&life.control).await;
    // Paused before anything is begun: P1 cannot be written meanwhile.
    world.store.inject(|operation| match operation {
        Operation::Txn(txn) if writes(txn, P1.0, P1.1) => Fault::Unavailable,
        _ => Fault::None,
    });
    order(&life.control, &plan, "run-1").await.unwrap();
    execution::want(&life.control, "run-1", Control::Pause)
        .await
        .unwrap();
    world
        .until("it is paused", async || {
            world
                .execution("run-1")
                .await
                .is_some_and(|run| run.phase == Phase::Paused)
        })
        .await;
    world.store.heal();
    assert_eq!(world.record().await.unwrap().ops, 1);
    execution::want(&life.control, "run-1", Control::Run)
        .await
        .unwrap();
    is_done(&world).await;
    life.kill().await;
}

#[tokio::test]
async fn two_replicas_of_control_at_once_do_it_once() {
    let world = World::new(2).await;
    let (one, two) = (world.control(0).await, world.control(1).await);
    world.born().await;
    let plan = plan(&one.control).await;
    // The same order to both.
    let (first, second) = tokio::join!(
        order(&one.control, &plan, "run-1"),
        order(&two.control, &plan, "run-1"),
    );
    assert!(first.is_some() && second.is_some());
    is_done(&world).await;
    assert_eq!(world.record().await.unwrap().ops, 2);
    one.kill().await;
    two.kill().await;
}

#[tokio::test]
async fn a_switch_ends_with_a_proof_of_all_that_it_did() {
    let world = World::new(1).await;
    let life = world.control(0).await;
    world.born().await;
    let plan = plan(&life.control).await;
    order(&life.control, &plan, "run-1").await.unwrap();
    is_done(&world).await;
    let text = world.store_text("/proof/run-1").await;
    let key = life.control.key.public();
    let proof = atoll_proof::verify(&text, Some(&key)).unwrap().sections;
    assert_eq!(proof.members.len(), 3, "{proof}");
    assert!(
        proof
            .members
            .iter()
            .all(|m| m.before.is_some() && m.after.is_some()),
        "{proof}"
    );
    assert_eq!(proof.rows.len(), 4, "{proof}");
    for rows in &proof.rows {
        assert_eq!(rows.rows, 2, "{proof}");
        assert_eq!(rows.equal, ["g1-1", "g1-3"], "{proof}");
    }
    assert_eq!(proof.proxies.len(), 4, "{proof}");
    let table = Some(proof.execution.table);
    assert!(
        proof.proxies.iter().all(|p| p.live && p.table >= table),
        "{proof}"
    );
    // Another life of control signs with the same key.
    life.kill().await;
    let life = world.control(0).await;
    assert_eq!(life.control.key.public(), key);
    life.kill().await;
}

#[tokio::test]
async fn another_replica_ends_what_a_dead_one_began() {
    let world = World::new(2).await;
    let (one, two) = (world.control(0).await, world.control(1).await);
    world.born().await;
    let plan = plan(&one.control).await;
    world.stop_at(Stop::Drive);
    order(&one.control, &plan, "run-1").await.unwrap();
    world.reached().await;
    one.kill().await;
    // The one that is left has ordered it too, in vain; a killed stream makes no difference to it.
    world.go_on();
    let again = world.control(0).await;
    is_done(&world).await;
    two.kill().await;
    again.kill().await;
}

#[tokio::test]
async fn a_replica_whose_tables_do_not_go_out_gives_the_seat_away_and_publishes_where_nobody_is_left()
 {
    let world = World::new(2).await;
    let old = world.seated(0, "control-old", "127.0.0.1").await;
    world.born().await;
    assert!(old.control.seat.acts() && old.control.publisher.publishes());
    // The next one has another address book: its tables count from now on.
    let new = world.seated(1, "control-new", "127.0.0.2").await;
    world
        .until("the new one acts", async || {
            new.control.seat.acts() && !old.control.seat.acts()
        })
        .await;
    assert!(new.control.publisher.publishes() && !old.control.publisher.publishes());
    let plan = plan(&new.control).await;
    order(&new.control, &plan, "run-1").await.unwrap();
    is_done(&world).await;
    // It is lost, and only the old one is left.
    new.kill().await;
    world
        .until("the old one acts and publishes", async || {
            old.control.seat.acts() && old.control.publisher.publishes()
        })
        .await;
    old.kill().await;
}

#[tokio::test]
async fn a_refused_step_lets_the_ops_that_run_come_to_their_end_before_the_proof_is_taken() {
    let world = World::new(1).await;
    let life = world.control(0).await;
    world.born().await;
    let hash = plan(&life.control).await;
    // The same group twice at once: the second step is refused while the op of the first runs.
    let mut plan = plans::find(&life.control, &hash).await.ok().unwrap();
    plan.steps.push(plan.steps[0].clone());
    plan.pace = Pace::Together;
    world.stop_at(Stop::Open);
    let stored = execution::Stored::new(&life.control, "run-1".to_owned(), plan);
    execution::create(&life.control, &stored).await.unwrap();
    world.reached().await;
    world
        .until("the refusal is noted", async || {
            let stored = world.execution("run-1").await.unwrap();
            stored.ends.is_some()
        })
        .await;
    let stored = world.execution("run-1").await.unwrap();
    assert!(!stored.phase.is_over(), "{:?}", stored.phase);
    world.go_on();
    world
        .until("the execution is over", async || {
            let stored = world.execution("run-1").await.unwrap();
            stored.phase.is_over()
        })
        .await;
    let stored = world.execution("run-1").await.unwrap();
    assert_eq!(stored.phase, Phase::Failed, "{}", stored.message);
    assert!(
        stored.message.starts_with("group g1: "),
        "{}",
        stored.message
    );
    let proof = world.store_text("/proof/run-1").await;
    let proof = atoll_proof::verify(&proof, None).unwrap().sections;
    assert_eq!(proof.groups[0].owners, ["0-3 b-1 epoch 2"], "{proof}");
    assert_eq!(world.wrong(), Vec::<String>::new());
    life.kill().await;
}

#[tokio::test]
async fn of_executions_that_are_over_the_newest_are_kept_and_every_proof() {
    let world = World::new(1).await;
    let life = world.control(0).await;
    world.born().await;
    let hash = plan(&life.control).await;
    let plan = plans::find(&life.control, &hash).await.ok().unwrap();
    let mut txn = Txn::new();
    for number in 0..execution::OVER_MAX {
        let mut stored =
            execution::Stored::new(&life.control, format!("old-{number}"), plan.clone());
        stored.phase = Phase::Failed;
        stored.finished_ms = Some(u64::try_from(number).unwrap());
        let name = &stored.name;
        txn = txn.put(format!("/execution/{name}"), crate::stored::encode(&stored));
        if number % 50 == 49 {
            life.control
                .store
                .txn(std::mem::take(&mut txn))
                .await
                .unwrap();
        }
    }
    let proof = Txn::new().put("/proof/old-0", "kept");
    life.control.store.txn(proof).await.unwrap();
    world
        .until("they are known", async || {
            life.control.executions.all().len() == execution::OVER_MAX
        })
        .await;
    order(&life.control, &hash, "run-1").await.unwrap();
    is_done(&world).await;
    world
        .until("the oldest is gone", async || {
            let all = life.control.executions.all();
            !all.contains_key("old-0") && all.len() == execution::OVER_MAX
        })
        .await;
    assert!(world.execution("old-0").await.is_none());
    assert!(world.execution("old-1").await.is_some());
    assert_eq!(world.store_text("/proof/old-0").await, "kept");
    life.kill().await;
}

#[tokio::test]
async fn a_watch_tells_that_it_lives_whatever_else_the_store_is_told_and_shows_what_is_selected() {
    let world = World::new(1).await;
    let life = world.control(0).await;
    world.born().await;
    let hash = plan(&life.control).await;
    let only = Some("run-1".to_owned());
    let lines = watch::stream(life.control.clone(), Kind::Execution, only).await;
    let mut lines = lines.ok().unwrap().into_body().into_data_stream();
    let mut next = async || {
        let line = tokio::time::timeout(Duration::from_secs(6), lines.next()).await;
        let line = line.expect("a line in time").unwrap().unwrap();
        String::from_utf8(line.to_vec()).unwrap()
    };
    let beats = async {
        loop {
            let beat = Txn::new().put("/control/seat", "of no account");
            world.store.txn(beat).await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let bookmark = tokio::select! {
        line = next() => line,
        () = beats => unreachable!(),
    };
    assert!(bookmark.contains("BOOKMARK"), "{bookmark}");
    order(&life.control, &hash, "run-2").await.unwrap();
    let bookmark = next().await;
    assert!(bookmark.contains("BOOKMARK"), "{bookmark}");
    life.kill().await;
}
