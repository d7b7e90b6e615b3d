//! A proof is believed as it is, and not in any other way.

use atoll_proof::{
    Execution, Flaw, Gateway, Group, Hold, Key, Member, Plan, Proxy, Sections, ShardRows, Step,
    seal, verify,
};

fn sections() -> Sections {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    Sections {
        execution: Execution {
            name: "run-1".into(),
            world: "w1".into(),
            automatic: false,
            phase: "Succeeded".into(),
            message: String::new(),
            ordered_unix_ms: 1_000,
            over_unix_ms: 1_500,
            table: 13,
        },
        plan: Plan {
            hash: "7f3a".into(),
            text: "switch cell hz-1 to cell sh-1\n1. group g1".into(),
        },
        groups: vec![Group {
            group: "g1".into(),
            term_before: 2,
            term: 3,
            primary_before: "g1-1".into(),
            primary: "g1-2".into(),
            owners_before: words(&["0-24 hz-1 epoch 1"]),
            owners: words(&["0-24 sh-1 epoch 2"]),
        }],
        members: vec![Member {
            group: "g1".into(),
            member: "g1-1".into(),
            before: Some("t2 0/100".into()),
            after: None,
        }],
        rows: vec![
            ShardRows::not_compared("g1".into(), 6, words(&["g1-1", "g1-2"])),
            ShardRows {
                group: "g1".into(),
                shard: 7,
                rows: 12,
                hash: "0123456789abcdef0123".into(),
                lsn: "0/200".into(),
                equal: words(&["g1-3"]),
                moving: vec![],
                different: vec![],
                silent: words(&["g1-1"]),
            },
        ],
        steps: vec![Step {
            group: "g1".into(),
            op: 2,
            term: 3,
            step: "begun".into(),
            unix_ms: 1_001,
        }],
        holds: vec![Hold {
            group: "g1".into(),
            hold_ms: Some(171),
            convergence_ms: Some(28),
        }],
        requests: vec![Gateway {
            process: "hz-1-gateway".into(),
            held: Some(12),
            answered: Some(40),
            failed: Some(1),
            unknown: Some(0),
            held_most: 9,
        }],
        proxies: vec![Proxy {
            process: "hz-1-gateway".into(),
            role: "gateway".into(),
            table: Some(13),
            live: true,
        }],
    }
}

fn key(byte: u8) -> Key {
    Key::from_secret(&[byte; 32])
}

#[test]
fn a_proof_is_one_text_and_says_what_it_says() {
    let text = seal(&sections(), &key(1)).unwrap();
    insta::assert_snapshot!(text);
    let verified = verify(&text, Some(&key(1).public())).unwrap();
    assert_eq!(verified.sections, sections());
    assert_eq!(
        verify(&format!("{text}\n"), None).unwrap().key,
        key(1).public()
    );
    insta::assert_snapshot!("said", verified.sections.to_string());
}

#[test]
fn shards_whose_rows_differ_are_named() {
    let mut sections = sections();
    assert!(sections.different().is_empty());
    sections.rows[1].different.push("g1-3".into());
    let found: Vec<u16> = sections.different().iter().map(|rows| rows.shard).collect();
    assert_eq!(found, [7]);
}

#[test]
fn a_changed_section_is_named() {
    let text = seal(&sections(), &key(1)).unwrap();
    let changed = text.replace("\"answered\":40", "\"answered\":41");
    let flaw = verify(&changed, None).unwrap_err();
    assert!(
        matches!(&flaw, Flaw::Digest { section, .. } if section == "requests"),
        "{flaw}"
    );
    // Another key cannot sign in this one's name.
    let other = seal(&sections(), &key(2)).unwrap();
    let flaw = verify(&other, Some(&key(1).public())).unwrap_err();
    assert!(matches!(flaw, Flaw::OtherKey { .. }), "{flaw}");
    let forged = text.replace(&key(1).public(), &key(2).public());
    let flaw = verify(&forged, None).unwrap_err();
    assert!(matches!(flaw, Flaw::Signature { .. }), "{flaw}");
}

#[test]
fn no_byte_of_a_proof_can_be_changed_added_or_left_out() {
    let text = seal(&sections(), &key(1)).unwrap();
    for at in 0..text.len() {
        for flip in [1, 2, 32] {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= flip;
            let Ok(changed) = String::from_utf8(bytes) else {
                continue;
            };
            assert!(
                verify(&changed, None).is_err(),
                "byte {at} changed: {changed}"
            );
        }
        let mut shorter = text.clone();
        shorter.remove(at);
        assert!(verify(&shorter, None).is_err(), "byte {at} left out");
        let mut longer = text.clone();
        longer.insert(at, ' ');
        assert!(verify(&longer, None).is_err(), "a space at {at}");
    }
}
