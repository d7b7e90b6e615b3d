//! The other members: where they are, and a channel to each.

use std::collections::BTreeMap;

use atoll_runtime::Runtime;
use atoll_streams::proto::agent::member_client::MemberClient;
use atoll_topology::MemberId;
use tonic::transport::Channel;

use crate::config::{Config, Peer};

/// The other members.
pub(crate) struct Peers {
    peers: BTreeMap<MemberId, (Peer, MemberClient<Channel>)>,
}

impl Peers {
    pub(crate) fn new(runtime: &Runtime, config: &Config) -> Self {
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
        Self { peers }
    }

    pub(crate) fn peer(&self, member: &MemberId) -> Option<Peer> {
        self.peers.get(member).map(|(peer, _)| *peer)
    }

    pub(crate) fn client(&self, member: &MemberId) -> Option<MemberClient<Channel>> {
        self.peers.get(member).map(|(_, client)| client.clone())
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = &MemberId> {
        self.peers.keys()
    }
}
