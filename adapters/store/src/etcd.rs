//! The store on etcd: several nodes in several regions, one of which may be lost.
//!
//! A thin client of the four calls that the store needs, on the runtime's own sockets. No lease is
//! used, and nobody may conclude anything from what a watch has not told: reads are linearizable,
//! and a write decides by what it compares. A transaction that was sent and not answered is never
//! sent again: its outcome is unknown.

mod endpoints;
mod watch;

/// etcd's public API, as far as it is used.
#[expect(
    unreachable_pub,
    clippy::derive_partial_eq_without_eq,
    clippy::enum_variant_names,
    clippy::doc_markdown,
    clippy::missing_const_for_fn,
    clippy::allow_attributes_without_reason,
    reason = "generated"
)]
mod proto {
    tonic::include_proto!("etcdserverpb");
}

use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use atoll_runtime::Runtime;
use bytes::Bytes;
use tonic::{Code, Request};

use self::endpoints::{Endpoints, Failed};
use self::proto::compare::{CompareResult, CompareTarget, TargetUnion};
use self::proto::{
    CompactionRequest, Compare, DeleteRangeRequest, KeyValue, PutRequest, RangeRequest,
    RangeResponse, RequestOp, ResponseHeader, TxnRequest, TxnResponse, request_op, response_op,
};
use self::watch::Watching;
use crate::{Expect, Listed, Revision, Store, StoreError, Txn, Versioned, Watch};

/// The first key there can be; with itself as the end of the range: all keys.
const FIRST_KEY: &[u8] = &[0];

/// The store on etcd. Cheap to clone; clones share their connections.
#[derive(Clone)]
pub struct Etcd {
    endpoints: Arc<Endpoints>,
}

impl Etcd {
    /// A client of the nodes at these addresses, the nearest first; connects when it is used.
    pub fn new(runtime: &Runtime, endpoints: &[SocketAddr]) -> Self {
        let endpoints = Arc::new(Endpoints::new(runtime, endpoints));
        Self { endpoints }
    }

    async fn range(&self, range: RangeRequest) -> Result<RangeResponse, StoreError> {
        let call = |mut client: endpoints::Kv| {
            let range = range.clone();
            async move { client.range(Request::new(range)).await }
        };
        self.endpoints.read(call).await.map_err(not_read)
    }

    /// The revision of the newest transaction.
    async fn newest(&self) -> Result<Revision, StoreError> {
        let key = Bytes::from_static(FIRST_KEY);
        let found = self.range(RangeRequest {
            key,
            count_only: true,
            ..RangeRequest::default()
        });
        revision(found.await?.header.as_ref())
    }

    /// Whether changes after `revision` are still there; `at` is the newest.
    async fn reaches(&self, after: Revision, at: Revision) -> Result<bool, StoreError> {
        if after == at {
            return Ok(true);
        }
        let past = RangeRequest {
            key: Bytes::from_static(FIRST_KEY),
            revision: signed(after)? + 1,
            count_only: true,
            ..RangeRequest::default()
        };
        let call = |mut client: endpoints::Kv| {
            let past = past.clone();
            async move { client.range(Request::new(past)).await }
        };
        match self.endpoints.read(call).await {
            Ok(_) => Ok(true),
            Err(Failed::Refused(status)) if status.code() == Code::OutOfRange => Ok(false),
            Err(failed) => Err(not_read(failed)),
        }
    }
}

#[async_trait]
impl Store for Etcd {
    async fn get(&self, key: &str) -> Result<Option<Versioned>, StoreError> {
        let key = Bytes::copy_from_slice(key.as_bytes());
        let found = self.range(RangeRequest {
            key,
            ..RangeRequest::default()
        });
        found
            .await?
            .kvs
            .into_iter()
            .next()
            .map(versioned)
            .transpose()
    }

    async fn list(&self, prefix: &str) -> Result<Listed, StoreError> {
        let (key, range_end) = range_of(prefix);
        let found = self.range(RangeRequest {
            key,
            range_end,
            ..RangeRequest::default()
        });
        let found = found.await?;
        let entries = found.kvs.into_iter().map(|pair| {
            let key = text(&pair.key)?;
            Ok((key, versioned(pair)?))
        });
        Ok(Listed {
            entries: entries.collect::<Result<_, StoreError>>()?,
            revision: revision(found.header.as_ref())?,
        })
    }

    async fn txn(&self, txn: Txn) -> Result<Revision, StoreError> {
        txn.check()?;
        let request = request_of(&txn)?;
        let call = |mut client: endpoints::Kv| {
            let request = request.clone();
            async move { client.txn(Request::new(request)).await }
        };
        let answer = self.endpoints.write(call).await;
        let answer = answer.map_err(|failed| match failed {
            Failed::NotDone(reason) => StoreError::Unavailable { reason },
            Failed::Unknown(reason) => StoreError::OutcomeUnknown { reason },
            Failed::Refused(status) => StoreError::Invalid {
                reason: status.message().to_owned(),
            },
        })?;
        if answer.succeeded {
            return revision(answer.header.as_ref());
        }
        Err(StoreError::Conflict {
            key: first_unmet(&txn, &answer),
        })
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        let at = self.newest().await?;
        if after > at {
            return Err(StoreError::Ahead { asked: after, at });
        }
        let reaches = self.reaches(after, at).await?;
        let mut watching = Watching::new(self.endpoints.clone(), prefix, after);
        if !reaches {
            // The watch is begun all the same: only its refusal says how much is gone.
            return Err(watching.refused().await);
        }
        watching.open().await?;
        Ok(watching.stream())
    }

    /// etcd keeps the newest change whatever it is told, so compacting up to the newest revision
    /// leaves that one.
    async fn compact(&self, up_to: Revision) -> Result<(), StoreError> {
        let at = self.newest().await?;
        if up_to > at {
            return Err(StoreError::Ahead { asked: up_to, at });
        }
        // etcd keeps the changes of the revision that it is given.
        let kept = Revision((up_to.0 + 1).min(at.0));
        let request = CompactionRequest {
            revision: signed(kept)?,
        };
        let call =
            |mut client: endpoints::Kv| async move { client.compact(Request::new(request)).await };
        match self.endpoints.read(call).await {
            Ok(_) => Ok(()),
            // It was done before.
            Err(Failed::Refused(status)) if status.code() == Code::OutOfRange => Ok(()),
            Err(failed) => Err(not_read(failed)),
        }
    }
}

fn not_read(failed: Failed) -> StoreError {
    let reason = match failed {
        Failed::NotDone(reason) | Failed::Unknown(reason) => reason,
        Failed::Refused(status) => status.message().to_owned(),
    };
    StoreError::Unavailable { reason }
}

fn signed(revision: Revision) -> Result<i64, StoreError> {
    i64::try_from(revision.0).map_err(|_| StoreError::Invalid {
        reason: format!("there is no revision {revision}"),
    })
}

fn unsigned(revision: i64) -> Result<Revision, StoreError> {
    u64::try_from(revision)
        .map(Revision)
        .map_err(|_| StoreError::Corrupt {
            place: "etcd's answer".to_owned(),
            reason: format!("revision {revision}"),
        })
}

fn revision(header: Option<&ResponseHeader>) -> Result<Revision, StoreError> {
    unsigned(header.map_or(0, |header| header.revision))
}

fn text(key: &[u8]) -> Result<String, StoreError> {
    String::from_utf8(key.to_vec()).map_err(|error| StoreError::Corrupt {
        place: String::from_utf8_lossy(key).into_owned(),
        reason: error.to_string(),
    })
}

fn versioned(pair: KeyValue) -> Result<Versioned, StoreError> {
    Ok(Versioned {
        revision: unsigned(pair.mod_revision)?,
        value: pair.value,
    })
}

/// All keys that begin with `prefix`, as etcd names a range.
fn range_of(prefix: &str) -> (Bytes, Bytes) {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return (Bytes::copy_from_slice(prefix.as_bytes()), end.into());
        }
    }
    // Nothing is greater than all keys: to the end.
    let first = match prefix {
        "" => Bytes::from_static(FIRST_KEY),
        prefix => Bytes::copy_from_slice(prefix.as_bytes()),
    };
    (first, Bytes::from_static(FIRST_KEY))
}

/// The transaction in etcd's words; where a demand fails, it tells what is there instead.
fn request_of(txn: &Txn) -> Result<TxnRequest, StoreError> {
    let compare = txn.compare.iter().map(|(key, expect)| {
        let (result, target, union) = match expect {
            Expect::Revision(revision) => (
                CompareResult::Equal,
                CompareTarget::Mod,
                // etcd says 0 of a key that is not there; here that is no revision of any key.
                TargetUnion::ModRevision(match signed(*revision)? {
                    0 => -1,
                    revision => revision,
                }),
            ),
            Expect::Absent => (
                CompareResult::Equal,
                CompareTarget::Create,
                TargetUnion::CreateRevision(0),
            ),
            Expect::Present => (
                CompareResult::Greater,
                CompareTarget::Create,
                TargetUnion::CreateRevision(0),
            ),
        };
        Ok(Compare {
            result: result.into(),
            target: target.into(),
            key: Bytes::copy_from_slice(key.as_bytes()),
            target_union: Some(union),
        })
    });
    let op = |request| RequestOp {
        request: Some(request),
    };
    let puts = txn.puts.iter().map(|(key, value)| {
        let key = Bytes::copy_from_slice(key.as_bytes());
        let value = value.clone();
        op(request_op::Request::RequestPut(PutRequest { key, value }))
    });
    let deletes = txn.deletes.iter().map(|key| {
        let key = Bytes::copy_from_slice(key.as_bytes());
        op(request_op::Request::RequestDeleteRange(
            DeleteRangeRequest { key },
        ))
    });
    let look = txn.compare.iter().map(|(key, _)| {
        let key = Bytes::copy_from_slice(key.as_bytes());
        op(request_op::Request::RequestRange(RangeRequest {
            key,
            ..RangeRequest::default()
        }))
    });
    Ok(TxnRequest {
        compare: compare.collect::<Result<_, StoreError>>()?,
        success: puts.chain(deletes).collect(),
        failure: look.collect(),
    })
}

/// The first key that is not as the transaction demands, by what its answer tells.
fn first_unmet(txn: &Txn, answer: &TxnResponse) -> String {
    let found = answer.responses.iter().map(|op| match &op.response {
        Some(response_op::Response::ResponseRange(range)) => {
            range.kvs.first().map(|pair| pair.mod_revision)
        }
        None => None,
    });
    let unmet = |((_, expect), found): &(&(String, Expect), Option<i64>)| match expect {
        Expect::Revision(revision) => *found != i64::try_from(revision.0).ok(),
        Expect::Absent => found.is_some(),
        Expect::Present => found.is_none(),
    };
    let mut demands = txn.compare.iter().zip(found);
    let first = demands.find(unmet).map(|((key, _), _)| key);
    let any = || txn.compare.first().map(|(key, _)| key);
    first.or_else(any).cloned().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_the_range_up_to_the_next_one() {
        let range = |prefix| {
            let (from, to) = range_of(prefix);
            (from.to_vec(), to.to_vec())
        };
        assert_eq!(range("/group/"), (b"/group/".to_vec(), b"/group0".to_vec()));
        assert_eq!(range(""), (vec![0], vec![0]));
    }

    #[test]
    fn revision_zero_is_the_revision_of_no_key() {
        let txn = Txn::new().expect("/k", Expect::Revision(Revision(0)));
        let compare = &request_of(&txn).unwrap().compare[0];
        assert_eq!(compare.target_union, Some(TargetUnion::ModRevision(-1)));
        let txn = Txn::new().expect("/k", Expect::Revision(Revision(7)));
        let compare = &request_of(&txn).unwrap().compare[0];
        assert_eq!(compare.target_union, Some(TargetUnion::ModRevision(7)));
    }
}
