//! Headers of ours, and how a gateway proves to another that it is one: an HMAC-SHA256 over them
//! with the world's key, until TLS does it.

use std::path::Path;

use atoll_routing::TableVersion;
use atoll_topology::{Epoch, ProcessId, ShardId};
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use sha2::Sha256;

use crate::error::Error;

/// The user's shard.
pub(crate) const SHARD: HeaderName = HeaderName::from_static("atoll-shard");
/// The ownership that the decision rests on.
pub(crate) const EPOCH: HeaderName = HeaderName::from_static("atoll-epoch");
/// The table that the decision rests on.
pub(crate) const TABLE: HeaderName = HeaderName::from_static("atoll-table");
/// The gateway that forwarded: a request with it is never forwarded again.
pub(crate) const FROM: HeaderName = HeaderName::from_static("atoll-from");
/// One request, over all processes.
pub(crate) const TRACE: HeaderName = HeaderName::from_static("atoll-trace");
/// Proves the others.
const MAC: HeaderName = HeaderName::from_static("atoll-mac");
/// Whether a failed request may have been executed.
pub(crate) const OUTCOME: HeaderName = HeaderName::from_static("atoll-outcome");
/// The code of an answer of ours.
pub(crate) const CODE: HeaderName = HeaderName::from_static("atoll-code");

/// Where a gateway answers other gateways' question whether it lives.
pub(crate) const ALIVE_PATH: &str = "/.atoll/alive";

/// The world's key for gateways.
#[derive(Clone)]
pub struct PeerKey(Hmac<Sha256>);

impl std::fmt::Debug for PeerKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PeerKey")
    }
}

/// Somebody who has proved to be a gateway of this world. (Later issued by TLS.)
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Which one.
    pub process: ProcessId,
}

/// What the sender had decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    /// The user's shard; none where no user decided.
    pub shard: Option<(ShardId, Epoch)>,
    /// By which table.
    pub table: TableVersion,
    /// One request, over all processes.
    pub trace: HeaderValue,
}

impl PeerKey {
    /// Reads 64 hexadecimal digits.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let wrong = |reason: String| Error::PeerKey {
            path: path.display().to_string(),
            reason,
        };
        let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
        let key = hex::decode(text.trim()).map_err(|error| wrong(error.to_string()))?;
        Self::new(&key).ok_or_else(|| wrong("it must be 32 bytes, as 64 hexadecimal digits".into()))
    }

    /// From 32 bytes.
    pub fn new(key: &[u8]) -> Option<Self> {
        (key.len() == 32)
            .then(|| Hmac::new_from_slice(key).ok().map(Self))
            .flatten()
    }

    /// Stamps a request and proves it; earlier headers of ours are gone already.
    pub(crate) fn sign(
        &self,
        from: &HeaderValue,
        method: &Method,
        uri: &Uri,
        headers: &mut HeaderMap,
    ) {
        headers.insert(FROM, from.clone());
        let proof = hex::encode(self.mac(method, uri, headers).finalize().into_bytes());
        if let Ok(proof) = HeaderValue::from_maybe_shared(bytes::Bytes::from(proof)) {
            headers.insert(MAC, proof);
        }
    }

    /// Who sent this, and what it had decided.
    pub(crate) fn verify(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> Result<(PeerIdentity, Stamp), &'static str> {
        let proof = headers.get(MAC).ok_or("there is no atoll-mac")?;
        let proof = hex::decode(proof.as_bytes()).map_err(|_| "atoll-mac is not hexadecimal")?;
        self.mac(method, uri, headers)
            .verify_slice(&proof)
            .map_err(|_| "atoll-mac does not prove the headers")?;
        let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        let process = text(&FROM).and_then(|name| ProcessId::parse(name).ok());
        let process = process.ok_or("atoll-from is not a process")?;
        let table = text(&TABLE)
            .and_then(parse_version)
            .ok_or("atoll-table is not a version")?;
        let trace = headers.get(TRACE).ok_or("there is no atoll-trace")?.clone();
        let shard = match (text(&SHARD), text(&EPOCH)) {
            (Some(shard), Some(epoch)) => {
                let shard = shard.parse().map_err(|_| "atoll-shard is not a number")?;
                let epoch = epoch.parse().map_err(|_| "atoll-epoch is not a number")?;
                Some((ShardId(shard), Epoch::new(epoch)))
            }
            _ => None,
        };
        Ok((
            PeerIdentity { process },
            Stamp {
                shard,
                table,
                trace,
            },
        ))
    }

    /// Over the method, the target and our headers but the proof, each with its length.
    fn mac(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Hmac<Sha256> {
        let mut mac = self.0.clone();
        let mut add = |bytes: &[u8]| {
            mac.update(&(bytes.len() as u64).to_le_bytes());
            mac.update(bytes);
        };
        add(method.as_str().as_bytes());
        add(uri
            .path_and_query()
            .map_or("/", |target| target.as_str())
            .as_bytes());
        for name in [&FROM, &SHARD, &EPOCH, &TABLE, &TRACE] {
            add(headers.get(name).map_or(b"", |value| value.as_bytes()));
        }
        mac
    }
}

/// Takes away everything that looks like a header of ours; with `_` too, which some applications
/// read as `-`.
pub(crate) fn strip(headers: &mut HeaderMap) {
    let ours = |name: &HeaderName| {
        let name = name.as_str();
        name.starts_with("atoll-") || name.starts_with("atoll_")
    };
    if headers.keys().any(ours) {
        let names: Vec<HeaderName> = headers.keys().filter(|name| ours(name)).cloned().collect();
        for name in names {
            headers.remove(name);
        }
    }
}

/// Stamps what was decided.
pub(crate) fn stamp(headers: &mut HeaderMap, stamp: &Stamp) {
    if let Some((shard, epoch)) = stamp.shard {
        headers.insert(SHARD, HeaderValue::from(shard.0));
        headers.insert(EPOCH, HeaderValue::from(epoch.get()));
    }
    if let Some(table) = version(&stamp.table) {
        headers.insert(TABLE, table);
    }
    headers.insert(TRACE, stamp.trace.clone());
}

/// `<world>.<number>`.
pub(crate) fn version(version: &TableVersion) -> Option<HeaderValue> {
    HeaderValue::try_from(version.to_string()).ok()
}

/// The inverse of [`version`].
pub(crate) fn parse_version(text: &str) -> Option<TableVersion> {
    let (world, number) = text.rsplit_once('.')?;
    Some(TableVersion {
        world: world.to_owned(),
        number: number.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_proves_every_header_of_ours_and_the_target() {
        let key = PeerKey::new(&[7; 32]).unwrap();
        let uri: Uri = "/pay?user=1".parse().unwrap();
        let sent = Stamp {
            shard: Some((ShardId(17), Epoch::new(3))),
            table: TableVersion {
                world: "w.1".into(),
                number: 9,
            },
            trace: HeaderValue::from_static("t-1"),
        };
        let mut headers = HeaderMap::new();
        stamp(&mut headers, &sent);
        key.sign(
            &HeaderValue::from_static("a-gateway"),
            &Method::POST,
            &uri,
            &mut headers,
        );
        let (who, received) = key.verify(&Method::POST, &uri, &headers).unwrap();
        assert_eq!((who.process.as_str(), received), ("a-gateway", sent));

        for name in [FROM, SHARD, EPOCH, TABLE, TRACE] {
            let mut changed = headers.clone();
            changed.insert(&name, HeaderValue::from_static("18"));
            assert!(key.verify(&Method::POST, &uri, &changed).is_err(), "{name}");
            changed.remove(&name);
            assert!(
                key.verify(&Method::POST, &uri, &changed).is_err(),
                "without {name}"
            );
        }
        let other: Uri = "/pay?user=2".parse().unwrap();
        assert!(key.verify(&Method::POST, &other, &headers).is_err());
        assert!(key.verify(&Method::GET, &uri, &headers).is_err());
        let stranger = PeerKey::new(&[8; 32]).unwrap();
        assert!(stranger.verify(&Method::POST, &uri, &headers).is_err());
    }
}
