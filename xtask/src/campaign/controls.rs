//! Negative controls: in every campaign, each oracle is shown a lie, and must say so.

use std::collections::BTreeMap;

use bank::oracle::{Account, Booked, Books, Fate, Meant, Notes, judge};
use serde::Serialize;

/// One lie, and whether it was found out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Control {
    pub(crate) name: &'static str,
    pub(crate) caught: bool,
}

/// A change to true books.
type Lie = fn(&mut Notes, &mut Books);

/// Every oracle is lied to once; the truth itself must pass.
pub(crate) fn run() -> Vec<Control> {
    let lies: [(&'static str, Lie); 6] = [
        ("an acknowledged transfer is missing", |_, books| {
            books.transfers.pop();
        }),
        ("a transfer is there twice", |_, books| {
            let again = books.transfers[0].clone();
            books.transfers.push(again);
        }),
        ("a transfer has another amount", |_, books| {
            books.transfers[0].amount += 1;
        }),
        ("a denied transfer was executed", |notes, _| {
            notes.transfers[0].fate = Fate::Failed;
        }),
        ("money came from nowhere", |_, books| {
            books.accounts[0].balance += 1;
        }),
        ("a shard's books cannot be read", |notes, _| {
            notes.shards.push(99);
        }),
    ];
    let (notes, books) = truth();
    let mut controls = vec![Control {
        name: "the truth of the books passes",
        caught: judge(&notes, &[books]).sound(),
    }];
    controls.extend(lies.into_iter().map(|(name, lie)| {
        let (mut notes, mut books) = truth();
        lie(&mut notes, &mut books);
        let caught = !judge(&notes, &[books]).sound();
        Control { name, caught }
    }));
    controls.extend(atoll_workloads::lies().into_iter().map(|lie| Control {
        name: lie.name,
        caught: lie.caught,
    }));
    controls
}

/// Two users of one shard, and one transfer between them, acknowledged.
fn truth() -> (Notes, Books) {
    let opened = BTreeMap::from([("a".to_owned(), 100), ("b".to_owned(), 100)]);
    let transfer = Booked {
        id: "r-1".to_owned(),
        payer: "a".to_owned(),
        payee: "b".to_owned(),
        amount: 30,
    };
    let meant = Meant {
        id: transfer.id.clone(),
        payer: transfer.payer.clone(),
        payee: transfer.payee.clone(),
        amount: transfer.amount,
        fate: Fate::Acknowledged,
    };
    let account = |user: &str, balance| Account {
        user: user.to_owned(),
        opened: 100,
        balance,
    };
    let notes = Notes {
        run: "r-".to_owned(),
        opened,
        transfers: vec![meant],
        shards: vec![0],
    };
    let books = Books {
        shard: 0,
        accounts: vec![account("a", 70), account("b", 130)],
        transfers: vec![transfer],
    };
    (notes, books)
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_lie_is_found_out_and_the_truth_passes() {
        for control in super::run() {
            assert!(control.caught, "{}", control.name);
        }
    }
}
