//! The other members: where they are, a channel to each, and what they are known to have promised.

use std::collections::BTreeMap;

use atoll_runtime::Runtime;
use atoll_streams::proto::agent::member_client::MemberClient;
use atoll_topology::{MemberId, Term};
use tokio::sync::watch;
use tonic::transport::Channel;

use crate::config::{Config, Peer};

/// The other members.
pub struct Peers {
    peers: BTreeMap<MemberId, (Peer, MemberClient<Channel>)>,
    promised: watch::Sender<BTreeMap<MemberId, Term>>,
}

impl Peers {
    /// With a channel to each, which dials when it is used.
    pub fn new(runtime: &Runtime, config: &Config) -> Self {
        let others = config
            .members
            .iter()
            .filter(|(id, _)| **id != config.member);
        let peers = others
            .map(|(id, peer)| {
                let client = MemberClient::new(runtime.grpc_channel(peer.calls));
                (id.clone(), (*peer, client))
            })
            .collect();
        let promised = watch::Sender::default();
        Self { peers, promised }
    }

    pub(crate) fn peer(&self, member: &MemberId) -> Option<Peer> {
        self.peers.get(member).map(|(peer, _)| *peer)
    }

    pub(crate) fn client(&self, member: &MemberId) -> Option<MemberClient<Channel>> {
        self.peers.get(member).map(|(_, client)| client.clone())
    }

    /// A member has said that this promise of its is durable.
    pub(crate) fn has_promised(&self, member: &MemberId, term: Term) {
        self.promised.send_modify(|promised| {
            let known = promised.entry(member.clone()).or_insert(term);
            *known = known.newest(term);
        });
    }

    /// What members are known to have promised, at least.
    pub(crate) fn promised(&self) -> watch::Receiver<BTreeMap<MemberId, Term>> {
        self.promised.subscribe()
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = &MemberId> + Clone {
        self.peers.keys()
    }
}
