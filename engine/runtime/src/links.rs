//! Links between the regions of a local world: delay, jitter and silent cuts, one way each.
//!
//! They come from the world's `links.json`, which is read again whenever it changes. A region is
//! read off an address (127.W.(16·R+Z).n); `127.0.x.x` and everything that is not loopback belongs
//! to no world and has no links.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::warn;

use crate::polled::{Follower, follow};

/// What bytes meet on their way from one region to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Link {
    /// Added to every byte, after its arrival.
    pub delay: Duration,
    /// At most this much more, at random; never reorders.
    pub jitter: Duration,
    /// Nothing is delivered and nothing is lost until the link is healed.
    pub cut: bool,
}

impl Link {
    /// No delay, no cut.
    pub const NONE: Self = Self {
        delay: Duration::ZERO,
        jitter: Duration::ZERO,
        cut: false,
    };
}

/// The text of `links.json`. A pair that is not listed has no delay and no cut.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct LinksFile {
    /// Region names; the index is the region's number in addresses, 0 being `outside`.
    pub regions: Vec<String>,
    /// One entry for each direction.
    #[serde(default)]
    pub links: Vec<LinkRule>,
}

/// One direction between two regions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LinkRule {
    /// The region that sends.
    pub from: String,
    /// The region that receives.
    pub to: String,
    /// One-way delay in milliseconds.
    #[serde(default)]
    pub delay_ms: f64,
    /// Upper end of the random addition in milliseconds.
    #[serde(default)]
    pub jitter_ms: f64,
    /// Whether the direction is cut.
    #[serde(default)]
    pub cut: bool,
}

/// Why a `links.json` is of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinksError {
    #[error("the file could not be read")]
    Read(#[source] io::Error),
    #[error("the file is not JSON of the expected shape")]
    Parse(#[source] serde_json::Error),
    #[error("a link names the region {0:?}, which is not in `regions`")]
    UnknownRegion(String),
    #[error("a link has a delay or jitter of {0} ms; 0 to 60000 is possible")]
    Delay(f64),
}

/// Resolved form: region numbers instead of names.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Table(BTreeMap<(u8, u8), Link>);

impl Table {
    fn of(file: &LinksFile) -> Result<Self, LinksError> {
        let number = |name: &str| {
            file.regions
                .iter()
                .position(|region| region == name)
                .and_then(|at| u8::try_from(at).ok())
                .ok_or_else(|| LinksError::UnknownRegion(name.to_owned()))
        };
        let millis = |value: f64| {
            if (0.0..=60_000.0).contains(&value) {
                Ok(Duration::from_secs_f64(value / 1000.0))
            } else {
                Err(LinksError::Delay(value))
            }
        };
        let mut table = BTreeMap::new();
        for rule in &file.links {
            let link = Link {
                delay: millis(rule.delay_ms)?,
                jitter: millis(rule.jitter_ms)?,
                cut: rule.cut,
            };
            table.insert((number(&rule.from)?, number(&rule.to)?), link);
        }
        Ok(Self(table))
    }

    fn between(&self, from: IpAddr, to: IpAddr) -> Link {
        crossing(from, to)
            .and_then(|pair| self.0.get(&pair))
            .copied()
            .unwrap_or(Link::NONE)
    }
}

/// World and region of an address.
fn place(address: IpAddr) -> Option<(u8, u8)> {
    match address {
        IpAddr::V4(v4) => {
            let [127, world, zone, _] = Ipv4Addr::octets(&v4) else {
                return None;
            };
            (world >= 1).then_some((world, zone >> 4))
        }
        IpAddr::V6(_) => None,
    }
}

/// The two regions, when the way leads from one region to another of the same world.
pub(crate) fn crossing(from: IpAddr, to: IpAddr) -> Option<(u8, u8)> {
    let ((from_world, from), (to_world, to)) = (place(from)?, place(to)?);
    (from_world == to_world && from != to).then_some((from, to))
}

/// The links as they are now. A cheap handle.
#[derive(Debug, Clone)]
pub struct Links(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    table: watch::Sender<Arc<Table>>,
    /// Follows the file until the last handle is dropped.
    _follower: Option<Follower>,
}

impl Links {
    /// No links, until [`Links::replace`].
    pub fn none() -> Self {
        Self(Arc::new(Shared {
            table: watch::Sender::new(Arc::default()),
            _follower: None,
        }))
    }

    /// The links of a file, which may come to exist later and is read again when it changes.
    pub fn of_file(path: &Path) -> Self {
        let table = watch::Sender::new(Arc::default());
        let (sender, file) = (table.clone(), path.to_owned());
        // The first connection of the process must already meet the links.
        let follower = follow("links", path, move |content| {
            update(&sender, &file, content);
        });
        Self(Arc::new(Shared {
            table,
            _follower: Some(follower),
        }))
    }

    /// The link that bytes from one address to another meet.
    pub fn between(&self, from: IpAddr, to: IpAddr) -> Link {
        self.0.table.borrow().between(from, to)
    }

    /// Sets the links directly; a file that changes afterwards wins again.
    pub fn replace(&self, file: &LinksFile) -> Result<(), io::Error> {
        let table = Table::of(file).map_err(io::Error::other)?;
        self.0.table.send_replace(Arc::new(table));
        Ok(())
    }

    /// Waits for the next change.
    pub async fn changed(&self) {
        // The sender lives as long as `self`, so this cannot fail.
        drop(self.0.table.subscribe().changed().await);
    }

    /// Waits until the link from one address to another satisfies `wanted`; misses no change.
    pub async fn until(&self, from: IpAddr, to: IpAddr, wanted: impl Fn(Link) -> bool) -> Link {
        let mut table = self.0.table.subscribe();
        loop {
            let link = table.borrow_and_update().between(from, to);
            if wanted(link) || table.changed().await.is_err() {
                return link;
            }
        }
    }

    pub(crate) fn subscribe(&self) -> Watching {
        Watching {
            links: self.clone(),
            table: self.0.table.subscribe(),
        }
    }
}

/// A reader of the links that also keeps them alive (and with them the poller).
pub(crate) struct Watching {
    links: Links,
    table: watch::Receiver<Arc<Table>>,
}

impl Watching {
    /// The link, when the table changed since the last call.
    pub(crate) fn refreshed(&mut self, from: IpAddr, to: IpAddr) -> Option<Link> {
        self.table
            .has_changed()
            .unwrap_or(false)
            .then(|| self.table.borrow_and_update().between(from, to))
    }

    /// A future that ends when the table changes after what `refreshed` last saw.
    pub(crate) fn next_change(&self) -> impl Future<Output = ()> + Send + 'static {
        let (mut table, links) = (self.table.clone(), self.links.clone());
        async move {
            drop(table.changed().await);
            drop(links);
        }
    }
}

/// Takes over what the file holds now.
fn update(table: &watch::Sender<Arc<Table>>, path: &Path, content: Option<io::Result<Vec<u8>>>) {
    let read = content.map_or_else(|| Ok(Table::default()), read);
    match read {
        Ok(new) => {
            table.send_if_modified(|old| {
                let changed = **old != new;
                if changed {
                    *old = Arc::new(new);
                }
                changed
            });
        }
        Err(error) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            warn!(path = %path.display(), %error, cause, "links stay as they were");
        }
    }
}

fn read(content: io::Result<Vec<u8>>) -> Result<Table, LinksError> {
    let text = content.map_err(LinksError::Read)?;
    Table::of(&serde_json::from_slice(&text).map_err(LinksError::Parse)?)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn file(cut: bool) -> LinksFile {
        LinksFile {
            regions: vec!["outside".into(), "hz".into(), "sh".into()],
            links: vec![LinkRule {
                from: "hz".into(),
                to: "sh".into(),
                delay_ms: 5.5,
                jitter_ms: 0.0,
                cut,
            }],
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_link_goes_one_way_between_two_regions_of_one_world() {
        let links = Links::none();
        links.replace(&file(true)).unwrap();
        let cut = Link {
            delay: Duration::from_micros(5500),
            jitter: Duration::ZERO,
            cut: true,
        };
        assert_eq!(links.between(ip("127.3.16.1"), ip("127.3.33.2")), cut);
        assert_eq!(
            links.between(ip("127.3.33.2"), ip("127.3.16.1")),
            Link::NONE,
            "the way back"
        );
        assert_eq!(
            links.between(ip("127.3.16.1"), ip("127.3.17.1")),
            Link::NONE,
            "two zones"
        );
        assert_eq!(
            links.between(ip("127.3.16.1"), ip("127.4.33.2")),
            Link::NONE,
            "two worlds"
        );
        assert_eq!(
            links.between(ip("127.0.16.1"), ip("127.0.33.2")),
            Link::NONE,
            "no world"
        );
        assert_eq!(
            links.between(ip("10.3.16.1"), ip("127.3.33.2")),
            Link::NONE,
            "no loopback"
        );
    }

    #[test]
    fn a_link_that_cannot_be_is_refused() {
        let links = Links::none();
        let mut unknown = file(false);
        unknown.links[0].to = "mars".into();
        assert!(
            links
                .replace(&unknown)
                .unwrap_err()
                .to_string()
                .contains("mars")
        );
        let mut negative = file(false);
        negative.links[0].delay_ms = -1.0;
        assert!(links.replace(&negative).is_err());
    }

    #[tokio::test]
    async fn a_changed_file_is_seen_and_a_broken_one_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("links.json");
        let put = |text: &str| {
            let new = dir.path().join("new");
            fs::write(&new, text).unwrap();
            fs::rename(&new, &path).unwrap();
        };
        let links = Links::of_file(&path);
        let (hz, sh) = (ip("127.3.16.1"), ip("127.3.33.2"));
        assert_eq!(
            links.between(hz, sh),
            Link::NONE,
            "the file does not exist yet"
        );
        put(&serde_json::to_string(&file(true)).unwrap());
        links.until(hz, sh, |link| link.cut).await;
        put("{ broken");
        put(&serde_json::to_string(&file(false)).unwrap());
        let healed = links.until(hz, sh, |link| !link.cut).await;
        assert_eq!(
            healed.delay,
            Duration::from_micros(5500),
            "never passed through `no links`"
        );
    }
}
