//! Says from the users' notes and the bank's books whether anything acknowledged was lost, doubled
//! or changed. Pure, linear but for sorting, and without a line of the code that it judges.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a user knows of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// The bank said yes: it must be there exactly once.
    Acknowledged,
    /// Nobody knows: it may be there once.
    Unknown,
    /// Every gateway said that it surely was not executed: it must not be there.
    Failed,
    /// The bank said no: it must not be there.
    Refused,
}

/// A transfer as its user meant it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meant {
    /// Idempotency key.
    pub id: String,
    /// Who pays.
    pub payer: String,
    /// Who gets.
    pub payee: String,
    /// In cents.
    pub amount: i64,
    /// What the user knows.
    pub fate: Fate,
}

/// A transfer in the books.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Booked {
    /// Idempotency key.
    pub id: String,
    /// Who paid.
    pub payer: String,
    /// Who got.
    pub payee: String,
    /// In cents.
    pub amount: i64,
}

/// An account in the books.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Whose.
    pub user: String,
    /// What it was opened with.
    pub opened: i64,
    /// What it holds.
    pub balance: i64,
}

/// One shard's books, from one snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Books {
    /// Which shard.
    pub shard: u16,
    /// All accounts.
    pub accounts: Vec<Account>,
    /// All transfers, as often as they are there.
    pub transfers: Vec<Booked>,
}

/// Everything that the users know.
#[derive(Debug, Clone, Default)]
pub struct Notes {
    /// Prefix of the ids of this run's transfers.
    pub run: String,
    /// Each account that was opened, with what, by user.
    pub opened: BTreeMap<String, i64>,
    /// Every transfer.
    pub transfers: Vec<Meant>,
    /// Shards that have users.
    pub shards: Vec<u16>,
}

/// Examples kept of each kind of finding.
const EXAMPLES_MAX: usize = 20;

/// What the oracle found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Acknowledged transfers.
    pub acknowledged: u64,
    /// Acknowledged and in the books.
    pub present: u64,
    /// Acknowledged and not in the books.
    pub lost: u64,
    /// In the books more than once, acknowledged or not.
    pub duplicated: u64,
    /// Unknown and in the books; neither good nor bad.
    pub unknown_present: u64,
    /// Said to be surely not executed, and in the books.
    pub denied_but_present: u64,
    /// In the books with another payer, payee or amount.
    pub altered: u64,
    /// In the books under this run's prefix, and meant by no user.
    pub strangers: u64,
    /// Every account holds what it was opened with and what the transfers in the books say, and
    /// each shard and the whole hold what all accounts were opened with.
    pub conserved: bool,
    /// Shards whose books could not be read: nothing is known of them.
    pub unread_shards: Vec<u16>,
    /// Some of the findings, in words.
    pub examples: Vec<String>,
}

impl Verdict {
    /// Whether there is nothing to complain of.
    pub fn sound(&self) -> bool {
        self.lost == 0
            && self.duplicated == 0
            && self.denied_but_present == 0
            && self.altered == 0
            && self.strangers == 0
            && self.conserved
            && self.unread_shards.is_empty()
    }

    /// The worse of two readings in every figure, so that no source can hide what another shows.
    pub fn worst(mut self, other: &Self) -> Self {
        self.present = self.present.min(other.present);
        self.lost = self.lost.max(other.lost);
        self.duplicated = self.duplicated.max(other.duplicated);
        self.unknown_present = self.unknown_present.max(other.unknown_present);
        self.denied_but_present = self.denied_but_present.max(other.denied_but_present);
        self.altered = self.altered.max(other.altered);
        self.strangers = self.strangers.max(other.strangers);
        self.conserved &= other.conserved;
        self.unread_shards.extend(&other.unread_shards);
        self.unread_shards.sort_unstable();
        self.unread_shards.dedup();
        for example in &other.examples {
            self.complain(|| example.clone());
        }
        self
    }

    /// One line.
    pub fn in_words(&self) -> String {
        let mut words = format!(
            "present {} of {}, lost {}, duplicated {}, conserved {}",
            self.present, self.acknowledged, self.lost, self.duplicated, self.conserved
        );
        if !self.unread_shards.is_empty() {
            words.push_str(&format!(", {} shards UNREAD", self.unread_shards.len()));
        }
        if let Some(first) = self.examples.first() {
            words.push_str(&format!("; first finding: {first}"));
        }
        words
    }

    fn complain(&mut self, what: impl FnOnce() -> String) {
        if self.examples.len() < EXAMPLES_MAX {
            let what = what();
            if !self.examples.contains(&what) {
                self.examples.push(what);
            }
        }
    }
}

/// Compares what users know with the books of all shards that could be read.
pub fn judge(notes: &Notes, books: &[Books]) -> Verdict {
    let mut verdict = Verdict {
        conserved: true,
        ..Verdict::default()
    };
    let read = |shard: &u16| books.iter().any(|b| b.shard == *shard);
    verdict.unread_shards = notes.shards.iter().copied().filter(|s| !read(s)).collect();

    let mut booked: BTreeMap<&str, Vec<&Booked>> = BTreeMap::new();
    for transfer in books.iter().flat_map(|b| &b.transfers) {
        booked.entry(&transfer.id).or_default().push(transfer);
    }
    for meant in &notes.transfers {
        let found = booked.remove(meant.id.as_str()).unwrap_or_default();
        transfer(&mut verdict, meant, &found);
    }
    // What is left belongs to earlier runs on the same world, or to nobody.
    for (id, found) in booked {
        if id.starts_with(&notes.run) {
            verdict.strangers += 1;
            verdict.complain(|| format!("transfer {id} is in the books and nobody meant it"));
        }
        if found.len() > 1 {
            verdict.duplicated += 1;
            verdict.complain(|| format!("transfer {id} is {} times in the books", found.len()));
        }
    }
    money(&mut verdict, notes, books);
    verdict
}

fn transfer(verdict: &mut Verdict, meant: &Meant, found: &[&Booked]) {
    let id = &meant.id;
    if found.len() > 1 {
        verdict.duplicated += 1;
        verdict.complain(|| format!("transfer {id} is {} times in the books", found.len()));
    }
    let same =
        |b: &&Booked| (&b.payer, &b.payee, b.amount) == (&meant.payer, &meant.payee, meant.amount);
    if !found.iter().all(same) {
        verdict.altered += 1;
        verdict.complain(|| format!("transfer {id} is in the books with other values"));
    }
    let present = !found.is_empty();
    match meant.fate {
        Fate::Acknowledged => {
            verdict.acknowledged += 1;
            if present {
                verdict.present += 1;
            } else {
                verdict.lost += 1;
                verdict.complain(|| format!("transfer {id} was acknowledged and is lost"));
            }
        }
        Fate::Unknown => verdict.unknown_present += u64::from(present),
        Fate::Failed | Fate::Refused if present => {
            verdict.denied_but_present += 1;
            verdict.complain(|| format!("transfer {id} was denied and is in the books"));
        }
        Fate::Failed | Fate::Refused => {}
    }
}

fn money(verdict: &mut Verdict, notes: &Notes, books: &[Books]) {
    let mut missing: BTreeMap<&str, i64> = notes
        .opened
        .iter()
        .map(|(user, opened)| (user.as_str(), *opened))
        .collect();
    let mut off = Vec::new();
    for shard in books {
        let mut moved: BTreeMap<&str, i128> = BTreeMap::new();
        for t in &shard.transfers {
            *moved.entry(&t.payer).or_default() -= i128::from(t.amount);
            *moved.entry(&t.payee).or_default() += i128::from(t.amount);
        }
        let (mut opened, mut balance) = (0_i128, 0_i128);
        for account in &shard.accounts {
            opened += i128::from(account.opened);
            balance += i128::from(account.balance);
            let user = account.user.as_str();
            let should = i128::from(account.opened) + moved.remove(user).unwrap_or(0);
            if should != i128::from(account.balance) {
                off.push(format!(
                    "account {user} holds {} instead of {should}",
                    account.balance
                ));
            }
            if missing
                .remove(user)
                .is_some_and(|known| known != account.opened)
            {
                off.push(format!("account {user} was opened with another amount"));
            }
        }
        if opened != balance {
            let s = shard.shard;
            off.push(format!(
                "shard {s} holds {balance}, its accounts were opened with {opened}"
            ));
        }
        for (user, amount) in moved {
            off.push(format!(
                "{amount} moved on {user}, who has no account in {}",
                shard.shard
            ));
        }
    }
    if verdict.unread_shards.is_empty() {
        let lost = missing
            .keys()
            .map(|user| format!("account {user} was opened and is lost"));
        off.extend(lost);
    }
    verdict.conserved = off.is_empty();
    for what in off {
        verdict.complain(|| what);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meant(n: u32, fate: Fate) -> Meant {
        let (payer, payee) = ("100".into(), "200".into());
        Meant {
            id: format!("run-{n}"),
            payer,
            payee,
            amount: 5,
            fate,
        }
    }

    fn booked(n: u32) -> Booked {
        let Meant {
            id,
            payer,
            payee,
            amount,
            ..
        } = meant(n, Fate::Acknowledged);
        Booked {
            id,
            payer,
            payee,
            amount,
        }
    }

    /// Three acknowledged transfers and an unknown one that was not executed.
    fn good() -> (Notes, Books) {
        let account = |user: &str, balance| Account {
            user: user.into(),
            opened: 100,
            balance,
        };
        let books = Books {
            shard: 0,
            accounts: vec![account("100", 85), account("200", 115)],
            transfers: vec![booked(1), booked(2), booked(3)],
        };
        let mut transfers: Vec<_> = (1..=3).map(|n| meant(n, Fate::Acknowledged)).collect();
        transfers.push(meant(4, Fate::Unknown));
        let opened = [("100".to_owned(), 100), ("200".to_owned(), 100)].into();
        (
            Notes {
                run: "run-".into(),
                opened,
                transfers,
                shards: vec![0],
            },
            books,
        )
    }

    #[test]
    fn it_is_silent_when_all_is_well() {
        let (notes, books) = good();
        let verdict = judge(&notes, &[books]);
        assert!(verdict.sound(), "{verdict:?}");
        assert_eq!((verdict.acknowledged, verdict.present), (3, 3));
    }

    #[test]
    fn it_cries_when_an_acknowledged_transfer_is_lost() {
        let (notes, mut books) = good();
        books.transfers.pop();
        books.accounts[0].balance += 5;
        books.accounts[1].balance -= 5;
        let verdict = judge(&notes, &[books]);
        assert_eq!(
            (verdict.lost, verdict.present, verdict.conserved),
            (1, 2, true)
        );
        assert!(!verdict.sound());
        assert_eq!(
            verdict.examples,
            ["transfer run-3 was acknowledged and is lost"]
        );
    }

    #[test]
    fn it_cries_when_a_transfer_is_doubled_in_one_shard_or_in_two() {
        let (notes, mut books) = good();
        let other = Books {
            shard: 1,
            accounts: vec![],
            transfers: vec![booked(2)],
        };
        let verdict = judge(&notes, &[books.clone(), other]);
        assert_eq!((verdict.duplicated, verdict.sound()), (1, false));

        books.transfers.push(booked(2));
        let verdict = judge(&notes, &[books]);
        assert_eq!((verdict.duplicated, verdict.conserved), (1, false));
    }

    #[test]
    fn it_cries_when_a_transfer_took_effect_twice_under_one_row() {
        let (notes, mut books) = good();
        books.accounts[0].balance -= 5;
        books.accounts[1].balance += 5;
        let verdict = judge(&notes, &[books]);
        assert_eq!(
            (verdict.duplicated, verdict.conserved, verdict.sound()),
            (0, false, false)
        );
    }

    #[test]
    fn an_unknown_transfer_may_be_there_once_and_not_twice() {
        let (notes, mut books) = good();
        let once = |books: &mut Books| {
            books.transfers.push(booked(4));
            books.accounts[0].balance -= 5;
            books.accounts[1].balance += 5;
        };
        once(&mut books);
        let verdict = judge(&notes, &[books.clone()]);
        assert_eq!((verdict.unknown_present, verdict.sound()), (1, true));
        once(&mut books);
        assert_eq!(judge(&notes, &[books]).duplicated, 1);
    }

    #[test]
    fn it_cries_when_what_was_denied_is_there() {
        let (mut notes, books) = good();
        notes.transfers[1].fate = Fate::Failed;
        let verdict = judge(&notes, &[books]);
        assert_eq!((verdict.denied_but_present, verdict.sound()), (1, false));
    }

    #[test]
    fn it_cries_about_changed_and_strange_transfers() {
        let (mut notes, mut books) = good();
        books.transfers[0].amount = 6;
        assert_eq!(judge(&notes, &[books.clone()]).altered, 1);
        books.transfers[0].amount = 5;
        notes.transfers.remove(0);
        let verdict = judge(&notes, &[books]);
        assert_eq!((verdict.strangers, verdict.sound()), (1, false));
    }

    #[test]
    fn it_cries_when_money_or_an_account_is_gone() {
        let (notes, mut books) = good();
        books.accounts[1].balance -= 1;
        assert!(!judge(&notes, &[books.clone()]).conserved);
        books.accounts.pop();
        assert!(!judge(&notes, &[books]).conserved);
    }

    #[test]
    fn what_could_not_be_read_is_never_called_sound() {
        let (notes, _) = good();
        let verdict = judge(&notes, &[]);
        assert_eq!(verdict.unread_shards, [0]);
        assert!(!verdict.sound());
    }

    #[test]
    fn the_worse_of_two_readings_counts() {
        let (notes, books) = good();
        let fine = judge(&notes, std::slice::from_ref(&books));
        let mut short = books;
        short.transfers.pop();
        let bad = judge(&notes, &[short]);
        for worst in [fine.clone().worst(&bad), bad.clone().worst(&fine)] {
            assert_eq!((worst.lost, worst.present, worst.conserved), (1, 2, false));
        }
    }
}
