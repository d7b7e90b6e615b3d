//! The golden vectors of `vectors/`: what every language must answer.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::fmt::Write as _;

use atoll_routing::shard_of;
use atoll_topology::{ShardId, ShardScheme, UserId};
use xxhash_rust::xxh64::xxh64;

const LEGAL: &[u8] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_.:@-";
const COUNTS: [u16; 6] = [1, 7, 100, 128, 1_000, 16_384];

/// SplitMix64 (Steele, Lea, Flood 2014): the same ids for ever, whatever a random crate does.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(n).unwrap()).unwrap()
    }
}

fn ids() -> Vec<String> {
    let mut ids: Vec<String> = Vec::new();
    // Not ids at all.
    let digits_of_others = ["٣٤٥", "１２３", "१२३", "Ⅷ", "½"];
    ids.extend(digits_of_others.map(String::from));
    for text in [
        "",
        " ",
        "a b",
        "a/b",
        "a,b",
        "a%20b",
        "naïve",
        "用户1",
        "a\u{301}1",
        "x+y",
        "#1",
    ] {
        ids.push(text.to_owned());
    }
    ids.push("7".repeat(65));
    // Ids without a digit, and the shortest ones.
    for text in [
        "a",
        "Z",
        "-",
        "_",
        ".",
        ":",
        "@",
        "alice",
        "alice@example.com",
        "a-b_c.d:e@f",
    ] {
        ids.push(text.to_owned());
    }
    // Each legal character alone and between digits.
    for byte in LEGAL {
        let c = char::from(*byte);
        ids.push(format!("{c}{c}"));
        ids.push(format!("1{c}2{c}3"));
    }
    // Paddings, and digits that are not side by side.
    for text in [
        "0",
        "00",
        "000",
        "0000",
        "5",
        "05",
        "50",
        "500",
        "005",
        "0050",
        "user-1",
        "1-user",
        "1a2b3c4",
        "2024-11-22",
        "+",
        "a1b",
        "12:34:56",
        "x99y9z9",
        "0.1",
        "1@2",
    ] {
        ids.push(text.to_owned());
    }
    // The longest.
    ids.push("7".repeat(64));
    ids.push("z".repeat(64));
    ids.push(format!("123{}", "z".repeat(61)));
    ids.push(format!("{}123", "z".repeat(61)));
    // Every shard of the digits scheme, twice.
    for n in 0..200 {
        ids.push(format!("{}", 1_000_000 + n * 10 + n % 7));
    }
    // Lengths around the 4-, 8- and 32-byte steps of XXH64, then anything.
    let mut random = Random(0);
    for length in (1..=64).chain(1..=64) {
        ids.push(text(&mut random, LEGAL, length));
    }
    for _ in 0..250 {
        let length = 1 + random.below(20);
        ids.push(text(&mut random, b"0123456789", length));
    }
    for _ in 0..450 {
        let length = 1 + random.below(64);
        ids.push(text(&mut random, LEGAL, length));
    }
    let mut seen = std::collections::BTreeSet::new();
    ids.retain(|id| seen.insert(id.clone()));
    ids
}

fn text(random: &mut Random, alphabet: &[u8], length: usize) -> String {
    (0..length)
        .map(|_| char::from(alphabet[random.below(alphabet.len())]))
        .collect()
}

fn digits() -> String {
    let mut out = String::from("id\tshard\n");
    for id in ids() {
        let answer = match UserId::parse(id.as_str()) {
            Err(_) => "invalid-id".to_owned(),
            Ok(user) => match shard_of(ShardScheme::Digits, 100, &user) {
                Err(_) => "no-digit".to_owned(),
                Ok(shard) => shard.to_string(),
            },
        };
        writeln!(out, "{id}\t{answer}").unwrap();
    }
    out
}

fn hash() -> String {
    let mut out = String::from("id\txxh64");
    for count in COUNTS {
        write!(out, "\t{count}").unwrap();
    }
    out.push('\n');
    for id in ids() {
        let Ok(user) = UserId::parse(id.as_str()) else {
            writeln!(out, "{id}\tinvalid-id{}", "\t-".repeat(COUNTS.len())).unwrap();
            continue;
        };
        write!(out, "{id}\t{:016x}", xxh64(id.as_bytes(), 0)).unwrap();
        for count in COUNTS {
            write!(
                out,
                "\t{}",
                shard_of(ShardScheme::Hash, count, &user).unwrap()
            )
            .unwrap();
        }
        out.push('\n');
    }
    out
}

#[test]
fn the_vectors_are_what_the_function_answers() {
    assert_eq!(include_str!("../../../vectors/digits.tsv"), digits());
    assert_eq!(include_str!("../../../vectors/hash.tsv"), hash());
}

#[test]
fn there_are_a_thousand_ids_and_every_digit_shard() {
    let lines = |text: &str| {
        text.lines()
            .skip(1)
            .filter(|line| !line.contains("invalid"))
            .count()
    };
    assert!(lines(&digits()) >= 1_000 && lines(&hash()) >= 1_000);
    for shard in 0..100 {
        assert!(digits().contains(&format!("\t{shard}\n")), "shard {shard}");
    }
}

#[test]
fn known_answers_stand() {
    // From the XXH64 specification's own tests: empty input, and "abc".
    assert_eq!(xxh64(b"", 0), 0xEF46_DB37_51D8_E999);
    assert_eq!(xxh64(b"abc", 0), 0x44BC_2CF5_AD77_0999);
    let shard = |id: &str| shard_of(ShardScheme::Digits, 100, &UserId::parse(id).unwrap()).unwrap();
    assert_eq!(shard("user-12345"), ShardId(34));
    assert_eq!(shard("5"), ShardId(0));
    assert_eq!(shard("42"), ShardId(4));
    assert_eq!(shard("a1b2c3"), ShardId(12));
}

/// The vectors are frozen: this is for a new scheme or new ids, never for new answers.
#[test]
#[ignore = "writes the files"]
fn write_the_vectors() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../vectors");
    std::fs::write(folder.join("digits.tsv"), digits()).unwrap();
    std::fs::write(folder.join("hash.tsv"), hash()).unwrap();
}
