//! What fuzzers reach: every kind of value that control keeps in the store, and what is asked of it
//! as soon as it was read.

#![expect(clippy::expect_used, reason = "a fuzzer's finding is a panic")]

use atoll_api::AutomaticEntry;
use atoll_detection::guard::Guard;
use atoll_ownership::record::GroupRecord;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::reconcile::execution;
use crate::stored::{decode, encode};
use crate::{plans, publish, seat, timeline};

/// Reads bytes as each kind of value. What is taken must be written and read again as it was, and
/// must be of use without a panic. Numbers grow by one from nothing: what would follow the last one is
/// not asked.
pub fn stored(data: &[u8]) {
    kept(data, |execution: &execution::Stored| {
        execution.steps_done().count();
        used(&execution.plan);
    });
    kept(data, |stored: &plans::Stored| used(&stored.plan));
    kept(data, |guard: &Guard| {
        if guard.number < u64::MAX {
            drop((guard.kill_switch(None), guard.freeze(None)));
        }
    });
    kept(data, |_: &GroupRecord| ());
    kept(data, |_: &timeline::Marks| ());
    kept(data, |_: &publish::Stage| ());
    kept(data, |_: &seat::Held| ());
    kept(data, |_: &AutomaticEntry| ());
}

fn used(plan: &atoll_planner::Plan) {
    let mut moves = plan.steps.iter().flat_map(|step| &step.moves);
    if moves.any(|moved| moved.epoch.get() == u64::MAX) {
        return;
    }
    plan.hash();
    plan.hold_ms();
    plan.made_for();
    for step in &plan.steps {
        step.begin(plan, "fuzz", 0);
        step.shards();
    }
}

fn kept<T: Serialize + DeserializeOwned>(data: &[u8], look: impl FnOnce(&T)) {
    let Ok(value) = decode::<T>("fuzz", data) else {
        return;
    };
    look(&value);
    let written = encode(&value);
    let again: T = decode("fuzz", &written).expect("what was written is read");
    assert_eq!(encode(&again), written);
}
