//! The control file: orders from whoever runs the show, one a line.

use std::convert::Infallible;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::watch;

use super::Orders;
use crate::clock;
use crate::report::Mark;
use crate::talk;

/// How often the file is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Follows the file; never returns. Without a file it only waits.
pub(super) async fn follow(file: Option<PathBuf>, orders: watch::Sender<Orders>) -> Infallible {
    let Some(file) = file else {
        return std::future::pending().await;
    };
    let mut taken = 0;
    loop {
        // It may not be there yet.
        let text = tokio::fs::read_to_string(&file).await.unwrap_or_default();
        // A line counts when it has ended: the rest may still be on its way.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        for line in text.get(taken..whole).unwrap_or_default().lines() {
            match parse(line, clock::unix_ms()) {
                Some(Order::Stop) => orders.send_modify(|orders| orders.stop = true),
                Some(Order::Event(mark)) => orders.send_modify(|orders| orders.marks.push(mark)),
                None => talk::say(&format!("bank load: order not understood: {line:?}")),
            }
        }
        taken = taken.max(whole);
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[derive(Debug, PartialEq)]
enum Order {
    Stop,
    Event(Mark),
}

fn parse(line: &str, now_unix_ms: u64) -> Option<Order> {
    let (word, rest) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
    match word {
        "stop" => Some(Order::Stop),
        "event" if !rest.is_empty() => {
            let (name, text) = rest.split_once(' ').unwrap_or((rest, ""));
            let (name, text) = (name.to_owned(), text.to_owned());
            Some(Order::Event(Mark {
                name,
                at_unix_ms: now_unix_ms,
                text,
            }))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_stop_and_event() {
        assert_eq!(parse("stop", 1), Some(Order::Stop));
        let mark = |name: &str, text: &str| {
            Some(Order::Event(Mark {
                name: name.into(),
                at_unix_ms: 7,
                text: text.into(),
            }))
        };
        assert_eq!(
            parse("event city-loss hz is frozen", 7),
            mark("city-loss", "hz is frozen")
        );
        assert_eq!(parse("event failback", 7), mark("failback", ""));
        assert_eq!(parse("event", 7), None);
        assert_eq!(parse("start", 7), None);
    }
}
