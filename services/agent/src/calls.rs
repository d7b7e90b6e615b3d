//! Calls between members, both ends.

use std::pin::Pin;
use std::sync::Arc;

use atoll_ownership::{Answer, Call};
use atoll_runtime::{Listener, Runtime};
use atoll_streams::agent::{answer, answer_message, call, call_message};
use atoll_streams::proto::agent as wire;
use atoll_streams::proto::agent::member_server::{Member, MemberServer};
use atoll_topology::{GroupId, MemberId};
use futures::Stream;
use tokio::time::{Duration, timeout};
use tonic::{Request, Response, Status, Streaming};
use tracing::warn;

use crate::actor::Handle;
use crate::beats::Beats;
use crate::peers::Peers;

/// A call that is not answered within this counts as not having arrived; the member may still
/// perform it, which harms nobody: every call may be repeated.
const CALL_LIMIT: Duration = Duration::from_secs(3);

/// Keep-alives: a cut is silent.
const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// Calls another member.
pub(crate) async fn call_member(
    peers: &Peers,
    group: &GroupId,
    from: &MemberId,
    to: &MemberId,
    what: &Call,
) -> Result<Answer, String> {
    let mut client = peers.client(to).ok_or("it is not a member of the group")?;
    let message = call_message(group, from, to, what);
    let answered = timeout(CALL_LIMIT, client.call(message)).await;
    let answered = answered.map_err(|_| format!("no answer within {CALL_LIMIT:?}"))?;
    let message = answered
        .map_err(|status| status.message().to_owned())?
        .into_inner();
    let sent = answer(&message).map_err(|error| error.to_string())?;
    if sent.group != *group || sent.from != *to {
        return Err(format!(
            "{} of {} answered in its place",
            sent.from, sent.group
        ));
    }
    if let Some(term) = sent.message.promised() {
        peers.has_promised(to, term);
    }
    Ok(sent.message)
}

/// Serves the other members' calls and beats until shutdown.
pub(crate) fn serve(
    runtime: &Runtime,
    listener: Listener,
    group: GroupId,
    member: MemberId,
    actor: Handle,
    beats: Arc<Beats>,
) {
    let (runtime_here, shutdown) = (runtime.clone(), runtime.shutdown());
    let service = Served {
        runtime: runtime_here,
        group,
        member,
        actor,
        beats,
    };
    runtime.tasks().spawn("calls", async move {
        let server = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(KEEP_ALIVE))
            .http2_keepalive_timeout(Some(2 * KEEP_ALIVE))
            .add_service(MemberServer::new(service))
            .serve_with_incoming(listener.incoming());
        // A plain stop: the streams of beats never end by themselves.
        tokio::select! {
            served = server => if let Err(error) = served {
                warn!(%error, "the calls port ended");
            },
            () = shutdown.requested() => {}
        }
    });
}

struct Served {
    runtime: Runtime,
    group: GroupId,
    member: MemberId,
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
        if sent.group != self.group || to != self.member {
            return Err(invalid(format!(
                "this is {} of {}",
                self.member, self.group
            )));
        }
        let answered = self.actor.call(sent.message).await;
        let answer = answered.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(Response::new(answer_message(
            &self.group,
            &self.member,
            &answer,
        )))
    }

    async fn beats(
        &self,
        request: Request<Streaming<wire::Beat>>,
    ) -> Result<Response<BeatsOut>, Status> {
        let answers = self.beats.answer(&self.runtime, request.into_inner());
        Ok(Response::new(Box::pin(answers)))
    }
}
