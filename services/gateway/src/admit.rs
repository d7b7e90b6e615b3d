//! What may come in, and what is taken off before anybody looks at it.

use atoll_proxy::Violation;
use http::request::Parts;
use http::{HeaderMap, HeaderName, Uri, Version, header};

use crate::error::Problem;
use crate::peer::{self, PeerIdentity, PeerKey, Stamp};

/// Where a request came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A client, at the edge.
    Edge,
    /// Another gateway, which has decided already.
    Peer(PeerIdentity, Stamp),
    /// Ourselves: the write canary.
    Canary,
}

/// A client's own request, not one that another gateway passes on.
pub(crate) const EDGE: &str = "edge";

impl Origin {
    /// For logs and metrics.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Edge => EDGE,
            Self::Peer(..) => "peer",
            Self::Canary => "canary",
        }
    }
}

/// Admits a client's request: whatever it claims in our name is taken off.
pub(crate) fn edge(request: &mut Parts) -> Result<Origin, Problem> {
    refused(request)?;
    peer::strip(&mut request.headers);
    normalise(request);
    Ok(Origin::Edge)
}

/// Admits a gateway's request: what it claims must be proved.
pub(crate) fn peer(request: &mut Parts, key: &PeerKey) -> Result<Origin, Problem> {
    refused(request)?;
    let (who, stamp) = key
        .verify(&request.method, &request.uri, &request.headers)
        .map_err(|reason| Problem::NotAPeer(reason.to_owned()))?;
    peer::strip(&mut request.headers);
    normalise(request);
    Ok(Origin::Peer(who, stamp))
}

/// The strict reader puts `REFUSED /<violation>` in place of what it refuses.
fn refused(request: &Parts) -> Result<(), Problem> {
    if request.method.as_str() != "REFUSED" {
        return Ok(());
    }
    let name = request.uri.path().trim_start_matches('/');
    Err(Problem::Violation(
        Violation::named(name).unwrap_or(Violation::RequestLine),
    ))
}

/// Origin form, and nothing that concerns only the connection it came on.
fn normalise(request: &mut Parts) {
    if request.uri.scheme().is_some() || request.uri.authority().is_some() {
        let target = request.uri.path_and_query().cloned();
        request.uri = target.map_or_else(|| Uri::from_static("/"), Uri::from);
    }
    request.version = Version::HTTP_11;
    hop_by_hop(&mut request.headers);
    // The client has been, or will be, told to continue by us.
    request.headers.remove(header::EXPECT);
}

/// Takes off the headers of one connection (RFC 9110 section 7.6.1).
pub(crate) fn hop_by_hop(headers: &mut HeaderMap) {
    const FIXED: [HeaderName; 5] = [
        header::TRANSFER_ENCODING,
        header::TE,
        header::TRAILER,
        header::UPGRADE,
        header::CONNECTION,
    ];
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        // A client must not be able to have these taken off.
        .filter(|name| *name != header::HOST && *name != header::CONTENT_LENGTH)
        .collect();
    for name in named.iter().chain(&FIXED) {
        headers.remove(name);
    }
    for name in [
        "keep-alive",
        "proxy-connection",
        "proxy-authenticate",
        "proxy-authorization",
    ] {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_concerns_one_connection_or_claims_our_name_is_taken_off() {
        let mut request = http::Request::builder()
            .uri("http://bank/pay?x=1")
            .header("host", "bank")
            .header("connection", "close, x-hop, host")
            .header("x-hop", "1")
            .header("keep-alive", "1")
            .header("atoll-from", "b-gateway")
            .header("atoll_epoch", "99")
            .header("atoll-anything", "1")
            .header("x-stays", "1")
            .body(())
            .unwrap()
            .into_parts()
            .0;
        edge(&mut request).unwrap();
        assert_eq!(request.uri, "/pay?x=1");
        let mut names: Vec<_> = request.headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["host", "x-stays"]);
    }
}
