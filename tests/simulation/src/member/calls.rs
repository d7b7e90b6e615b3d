//! Calls between simulated members, both ends: the real agents' wire.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use atoll_ownership::{Answer, Call};
use atoll_runtime::{Listener, Runtime};
use atoll_streams::agent::{answer, answer_message, call, call_message};
use atoll_streams::proto::agent as wire;
use atoll_streams::proto::agent::member_client::MemberClient;
use atoll_streams::proto::agent::member_server::{Member, MemberServer};
use atoll_topology::{GroupId, MemberId};
use futures::Stream;
use tokio::time::{Duration, timeout};
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use super::actor::Handle;
use super::beats::Beats;

/// A call that is not answered within this counts as not having arrived.
const CALL_LIMIT: Duration = Duration::from_secs(3);
/// Keep-alives: a cut is silent.
const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// Where another member is reached.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer {
    pub(crate) calls: SocketAddr,
    pub(crate) replication: SocketAddr,
}

/// The other members.
pub(crate) struct Peers {
    group: GroupId,
    member: MemberId,
    peers: BTreeMap<MemberId, (Peer, MemberClient<Channel>)>,
}

impl Peers {
    pub(crate) fn new(
        runtime: &Runtime,
        group: GroupId,
        member: MemberId,
        all: &BTreeMap<MemberId, Peer>,
    ) -> Self {
        let others = all.iter().filter(|(id, _)| **id != member);
        let peers = others
            .map(|(id, peer)| {
                let client = MemberClient::new(runtime.grpc_channel(peer.calls));
                (id.clone(), (*peer, client))
            })
            .collect();
        Self {
            group,
            member,
            peers,
        }
    }

    pub(crate) fn peer(&self, member: &MemberId) -> Option<Peer> {
        self.peers.get(member).map(|(peer, _)| *peer)
    }

    pub(crate) fn clients(&self) -> impl Iterator<Item = (MemberId, MemberClient<Channel>)> + '_ {
        self.peers
            .iter()
            .map(|(id, (_, client))| (id.clone(), client.clone()))
    }

    /// Calls another member.
    pub(crate) async fn call(&self, to: &MemberId, what: &Call) -> Result<Answer, String> {
        let (_, client) = self.peers.get(to).ok_or("it is no member of the group")?;
        let message = call_message(&self.group, &self.member, to, what);
        let mut client = client.clone();
        let answered = timeout(CALL_LIMIT, client.call(message)).await;
        let answered = answered.map_err(|_| format!("no answer within {CALL_LIMIT:?}"))?;
        let message = answered
            .map_err(|status| status.message().to_owned())?
            .into_inner();
        let sent = answer(&message).map_err(|error| error.to_string())?;
        if sent.group != self.group || sent.from != *to {
            return Err(format!("{} answered in its place", sent.from));
        }
        Ok(sent.message)
    }
}

/// Serves the other members' calls and beats.
pub(crate) fn serve(runtime: &Runtime, listener: Listener, actor: Handle, beats: Arc<Beats>) {
    let service = Served {
        runtime: runtime.clone(),
        actor,
        beats,
    };
    runtime.tasks().spawn("calls", async move {
        let server = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(KEEP_ALIVE))
            .http2_keepalive_timeout(Some(2 * KEEP_ALIVE))
            .add_service(MemberServer::new(service))
            .serve_with_incoming(listener.incoming());
        if let Err(error) = server.await {
            tracing::warn!(%error, "the calls port ended");
        }
    });
}

struct Served {
    runtime: Runtime,
    actor: Handle,
    beats: Arc<Beats>,
}

type BeatsOut = Pin<Box<dyn Stream<Item = Result<wire::Beat, Status>> + Send>>;

#[tonic::async_trait]
impl Member for Served {
    type BeatsStream = BeatsOut;

    async fn call(
        &self,
        request: Request<wire::MemberCall>,
    ) -> Result<Response<wire::MemberAnswer>, Status> {
        let invalid = |error: String| Status::invalid_argument(error);
        let (sent, to) = call(&request.into_inner()).map_err(|error| invalid(error.to_string()))?;
        let (group, member) = (&self.beats.group, &self.beats.member);
        if sent.group != *group || to != *member {
            return Err(invalid(format!("this is {member} of {group}")));
        }
        let answered = self.actor.call(sent.message).await;
        let answer = answered.map_err(Status::unavailable)?;
        Ok(Response::new(answer_message(group, member, &answer)))
    }

    async fn beats(
        &self,
        request: Request<Streaming<wire::Beat>>,
    ) -> Result<Response<BeatsOut>, Status> {
        let answers = self.beats.answer(&self.runtime, request.into_inner());
        Ok(Response::new(Box::pin(answers)))
    }
}
